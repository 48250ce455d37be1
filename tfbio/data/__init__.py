"""Data sets as functions: a name in, a `tf.data.Dataset` of uint8 images and integer labels out.

    train, info = tfbio.data.load("digits", "train", batch_size=64)
    test, _ = tfbio.data.load("digits", "test", batch_size=64)
    model = keras.Sequential([keras.Input(info.shape), info.preprocessing, ...])

Images stay uint8 until they reach the device: a quarter of the bytes to hold and to move. `info.preprocessing` is the
plain Keras layer that turns them into floats there.

A set that fits in memory is an `InMemory`: its images, and an order of them that is a pure function of (seed, epoch).
So is its augmentation, of (seed, epoch, batch, position). Nothing about the data is state that a checkpoint must hold,
and any number of replicas together sees exactly what one sees. `from_arrays` gives your own arrays the same qualities.

Photographs are a `Streaming`: read, decoded, cropped and brought to one size while training goes on, in an order and
with an augmentation that are functions of (seed, epoch) as well.
"""

from tfbio.data.errors import DataNotFoundError
from tfbio.data.memory import InMemory, from_arrays, memory_of
from tfbio.data.registry import DatasetInfo, load
from tfbio.data.streaming import Streaming, stream_of

__all__ = [
    "DataNotFoundError",
    "DatasetInfo",
    "InMemory",
    "Streaming",
    "from_arrays",
    "load",
    "memory_of",
    "stream_of",
]
