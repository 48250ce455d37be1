"""Photographs a second on one core: tfbio's stream beside the bare decoding operations and a plain pipeline.

    taskset -c 0 python benchmarks/input_pipeline.py PHOTOS --json out.json

PHOTOS is a folder of JPEG files at their original size, ImageNet's for instance. They are repeated to the asked number
of examples and written as TFRecord files, as TensorFlow Datasets writes them, into a temporary folder. Contenders, each
from these files to 224 x 224 batches but for the first, in the middle of an epoch, in turns of some batches:

* `bare`: `decode_and_crop_jpeg` and a bilinear resize to float32, bytes and windows ready in memory, nothing else;
* `stream`: `tfbio.data`: reading, shuffling, random resized crop, flip, uint8, batches;
* `one of 8 workers`: the same on a worker that decodes every eighth part of batches eight times as large;
* `decode then crop`: the same pipeline in plain `tf.data` with the whole picture decoded before it is cropped;
* `fast decoding`: `bare` with `INTEGER_FAST` and without fancy upscaling; how far its pixels are off is printed too.

Seconds are of processor time, which other programs on the machine disturb less than time on the wall; a turn ends when
its pipeline has filled its buffers again. After that, the memory of the process is read while batches go by.
"""

import argparse
import functools
import os
import pathlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # TensorFlow reads the log level when it is imported
import tensorflow as tf
from timing import machine, write

from tfbio.data import decoding, streaming
from tfbio.data.record_files import RecordFiles
from tfbio.data.streaming import Streaming
from tfbio.machine import cores

SIZE = 224
_FEATURES = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}


def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    example = tf.io.parse_single_example(record, _FEATURES)
    return example["image"], tf.cast(example["label"], tf.int32)


def write_records(photos: list[bytes], folder: str, examples: int, files: int) -> RecordFiles:
    paths = [f"{folder}/photos-{file:03}.tfrecord" for file in range(files)]
    for file, path in enumerate(paths):
        with tf.io.TFRecordWriter(path) as writer:
            for index in range(file, examples, files):
                features = {
                    "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[photos[index % len(photos)]])),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[index % 10])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    lengths = [len(range(file, examples, files)) for file in range(files)]
    return RecordFiles(paths, lengths, parse, (None, None, 3), tuple("0123456789"))


def windows(photos: list[bytes], examples: int) -> np.ndarray:
    """A random window for each example, as the stream draws them."""
    sizes = [tf.io.extract_jpeg_shape(photo)[:2] for photo in photos]
    seeds = tf.random.stateless_uniform([examples, 2], (0, 1), minval=None, maxval=None, dtype=tf.int64)
    return np.stack([decoding._random_window(sizes[i % len(photos)], seeds[i]) for i in range(examples)])


def bare(photos: tf.Tensor, parts: tf.Tensor, **options) -> tf.Tensor:
    """Decodes and resizes all examples, one after the other."""
    total = tf.zeros(())
    for index in tf.range(len(parts)):
        pixels = tf.image.decode_and_crop_jpeg(photos[index % len(photos)], parts[index], channels=3, **options)
        total += tf.image.resize(pixels, (SIZE, SIZE))[0, 0, 0]
    return total


def plain(source: RecordFiles, examples: int, batch_size: int) -> tf.data.Dataset:
    """The usual pipeline that decodes first."""

    def decode(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, label = parse(record)
        pixels = tf.io.decode_jpeg(encoded, channels=3)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(pixels), tf.zeros([0, 0, 4]), 0, 0.0, (3 / 4, 4 / 3), (0.08, 1.0), 100, True
        )
        image = tf.image.resize(tf.slice(pixels, begin, extent), (SIZE, SIZE))
        return tf.cast(tf.image.random_flip_left_right(image) + 0.5, tf.uint8), label

    records = tf.data.Dataset.from_tensor_slices(source._all_paths).interleave(
        tf.data.TFRecordDataset, cycle_length=16, num_parallel_calls=tf.data.AUTOTUNE
    )
    # Threads and buffers are fixed, as the stream's: tuned ones grow until everything is read ahead of a turn.
    images = records.shuffle(2048).map(decode, num_parallel_calls=cores())
    batches = images.batch(batch_size).prefetch(2).with_options(streaming._options())
    return batches.apply(tf.data.experimental.assert_cardinality(-(-examples // batch_size)))


class Turns:
    """Goes on with a pipeline turn by turn."""

    def __init__(self, make: Callable[[], tf.data.Dataset], batches: int):
        self._make, self._batches = make, batches
        self._iterator, self._left = iter(()), 0

    def prepare(self) -> None:
        """Begins an epoch, if too little is left of the last."""
        if self._left < self._batches:
            dataset = self._make()
            self._iterator, self._left = iter(dataset), int(dataset.cardinality()) - 2
            next(self._iterator)
            settle()

    def __call__(self) -> None:
        for _ in range(self._batches):
            next(self._iterator)
        self._left -= self._batches
        settle()


def settle() -> None:
    """Returns when no thread of this process is busy."""
    before = -1.0
    while time.process_time() - before > 0.01:
        before = time.process_time()
        time.sleep(0.3)


def resident() -> float:
    """Memory of this process, in MiB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def switches() -> int:
    """How often threads of this process have made way for others so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_nvcsw + usage.ru_nivcsw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="a folder of JPEG files")
    parser.add_argument("--examples", type=int, default=9600, help="photographs in the files")
    parser.add_argument("--batches", type=int, default=20, help="batches in a turn")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory_batches", type=int, default=2000, help="batches to watch the memory over; 0: none")
    parser.add_argument("--json", help="write the result here")
    arguments = parser.parse_args()
    photos = [path.read_bytes() for path in sorted(pathlib.Path(arguments.photos).glob("*.jp*g"))]
    examples, size = arguments.examples, arguments.batch_size
    turn = arguments.batches * size
    tf.config.threading.set_intra_op_parallelism_threads(1)
    parts = tf.constant(windows(photos, turn), tf.int32)
    encoded = tf.constant(photos)
    with tempfile.TemporaryDirectory() as folder:
        source = write_records(photos, folder, examples, files=16)
        epochs = iter(range(10**9))
        stream = functools.partial(Streaming, source, augmentation="flip_random_resized_crop")
        timed, large = (stream(count, (SIZE, SIZE, 3)) for count in (size, 8 * size))
        worker = tf.distribute.InputContext(num_input_pipelines=8, input_pipeline_id=3, num_replicas_in_sync=8)
        loops = [
            tf.function(functools.partial(bare, encoded, parts, **options))
            for options in ({}, {"fancy_upscaling": False, "dct_method": "INTEGER_FAST"})
        ]
        contenders = {
            "bare": loops[0],
            "stream": Turns(lambda: timed.batches(next(epochs)), arguments.batches),
            "one of 8 workers": Turns(lambda: large.batches(next(epochs), 0, worker), arguments.batches),
            "decode then crop": Turns(lambda: plain(source, examples, size), arguments.batches),
            "fast decoding": loops[1],
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        switched: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(arguments.rounds + 1):  # the first is not counted
            for name, run in contenders.items():
                if isinstance(run, Turns):
                    run.prepare()
                start, before = time.process_time(), switches()
                run()
                rates[name] += [turn / (time.process_time() - start)] * (number > 0)
                switched[name] += [(switches() - before) / turn] * (number > 0)
        rows = {}
        for name, values in rates.items():
            shares = [value / reference for value, reference in zip(values, rates["bare"], strict=True)]
            rows[name] = {
                "images_per_cpu_second": statistics.median(values),
                "share_of_bare": statistics.median(shares),
            }
            rows[name] |= {"share_min": min(shares), "share_max": max(shares)}
            rows[name] |= {"thread_switches_per_image": statistics.median(switched[name])}
            print(
                f"{name:>17}: {rows[name]['images_per_cpu_second']:6.0f} images/s, share {min(shares):.2f} … ", end=""
            )
            print(f"{rows[name]['share_of_bare']:.3f} … {max(shares):.2f}", end=", ")
            print(f"{rows[name]['thread_switches_per_image']:.1f} thread switches an image", flush=True)
        whole = [tf.io.decode_jpeg(photo, channels=3) for photo in photos]
        fast = [tf.io.decode_jpeg(p, channels=3, fancy_upscaling=False, dct_method="INTEGER_FAST") for p in photos]
        gaps = [np.abs(a.numpy().astype(int) - b.numpy()) for a, b in zip(whole, fast, strict=True)]
        off = {"mean": float(np.mean([g.mean() for g in gaps])), "max": int(max(g.max() for g in gaps))}
        print("fast decoding is off by (grey levels of 255):", off)
        memory, watched = [], 0
        while watched < arguments.memory_batches:
            for _ in timed.batches(next(epochs)):
                watched += 1
                if watched % max(arguments.memory_batches // 10, 1) == 0:
                    memory.append(round(resident()))
        print("resident MiB:", memory)
    bytes_each = sum(map(len, photos)) / len(photos)
    result = {"arguments": vars(arguments) | {"photos": None}, "bytes_per_photo": bytes_each, "machine": machine()}
    write(arguments.json, result | {"rows": rows, "fast_decoding_off_by": off, "resident_mib": memory})


if __name__ == "__main__":
    main()
