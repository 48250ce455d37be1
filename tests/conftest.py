"""Every test starts from the same seed and leaves Keras's dtypes as it found them."""

import gc
import os
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # reads the log level when it is imported
import pytest
import tensorflow as tf

from tfbio.training import strategies  # which imports all of tfbio, for what follows

# For tests of replicas. What names no device is on the first, as it would be on a single one.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

gc.set_threshold(20_000, 10, 10)  # graphs are made of many objects; `_let_go` collects what is large
gc.freeze()  # what was imported stays: a collection need not go through it, a quarter of a second each time

# A shell starts what it runs in the background with SIGINT ignored, and Python and its children leave it so.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean_keras():
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


@pytest.fixture
def float64(_clean_keras):
    """Models made in the test compute in float64."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


@pytest.fixture(scope="session")
def two_replicas():
    """The one strategy of several replicas: those of a second one would meet under the same keys as these."""
    return strategies.make_strategy("mirrored")


@pytest.fixture(autouse=True, scope="module")
def _let_go():
    """Networks hold themselves in cycles, and are large; Python would take its time to look for these."""
    yield
    gc.collect()
