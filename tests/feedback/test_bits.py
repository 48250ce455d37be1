"""Stateless bits against NumPy's integers, and against chance."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from tfbio.feedback.bits import stateless_bits, stateless_normal, stateless_uniform


def draw(shape, *key, jit_compile=None):
    def function(k):
        return stateless_bits(shape, k)

    if jit_compile is not None:
        function = tf.function(function, jit_compile=jit_compile)
    return function(tf.constant(key, tf.int64)).numpy()


def reference(shape, key):
    words = tf.random.stateless_uniform((2,), key, minval=None, maxval=None, dtype=tf.uint32, alg="philox").numpy()
    x = np.arange(np.prod(shape), dtype=np.uint32) + words[0]
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D) + words[1]
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return (x ^ (x >> np.uint32(16))).view(np.int32).reshape(shape)


@pytest.mark.parametrize("jit_compile", [None, False, True], ids=["eager", "graph", "xla"])
@pytest.mark.parametrize("shape", [(1,), (7, 33), (3, 5, 1000)])
def test_bits_are_numpy_s(shape, jit_compile):
    for key in ((0, 0), (3, 1 << 40), (-5, 7)):
        np.testing.assert_array_equal(draw(shape, *key, jit_compile=jit_compile), reference(shape, key))


def test_bits_look_random():
    """Each bit, neighbouring numbers, and nearby keys, over 2¹⁸ numbers: all within five standard errors."""
    count = 1 << 18
    keys = [(seed, number) for seed in range(3) for number in (0, 1, 1 << 32)]
    drawn = [draw((count,), *key).view(np.uint32) for key in keys]
    for x in drawn:
        bits = (x[:, None] >> np.arange(32, dtype=np.uint32)) & 1
        assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(count)
        cells = np.bincount(x >> np.uint32(24), minlength=256)  # chi squared of 255 degrees of freedom
        assert abs(((cells - count / 256) ** 2).sum() / (count / 256) - 255) < 5 * np.sqrt(2 * 255)
        u = x / 2.0**32 - 0.5
        for lag in (1, 2, 10, 1000, 1024):
            assert abs((u[lag:] * u[:-lag]).mean() * 12) < 5 / np.sqrt(count)
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            same = np.unpackbits((a ^ b).view(np.uint8)).mean()
            assert abs(same - 0.5) < 5 * 0.5 / np.sqrt(32 * count)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("shape", [(1,), (7, 33), (4, 5, 6)])
def test_numbers_are_made_of_the_bits(shape, jit_compile):
    """Shapes may be tensors; an odd count leaves half a word, or half a pair of normal numbers, over."""
    key, count = (5, 1 << 33), int(np.prod(shape))
    graph = tf.function(
        lambda like, k: (stateless_uniform(tf.shape(like), k), stateless_normal(tf.shape(like), k)),
        jit_compile=jit_compile,
    )
    uniform, normal = graph(tf.zeros(shape), tf.constant(key, tf.int64))
    assert uniform.shape == normal.shape == shape and uniform.dtype == normal.dtype == tf.float32
    halves = reference(((count + 1) // 2,), key).view(np.uint16)[:count].reshape(shape)
    np.testing.assert_allclose(uniform, (halves + 0.5) / 2.0**16, rtol=1e-6)
    pairs = ((reference((2, (count + 1) // 2), key).view(np.uint32) >> 8) + 0.5) / 2.0**24
    radius, angle = np.sqrt(-2 * np.log(pairs[0])), 2 * np.pi * pairs[1]
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].reshape(shape)
    np.testing.assert_allclose(normal, expected, rtol=1e-4, atol=1e-5)


def test_numbers_have_their_distributions():
    """Kolmogorov's distance over 2¹⁸ numbers exceeds 1.95 / √n once in a thousand draws; keys are fixed."""
    for key in ((0, 0), (1, 2), (-3, 1 << 40)):
        key, count = tf.constant(key, tf.int64), 1 << 18
        uniform, normal = (np.asarray(draw((count,), key)) for draw in (stateless_uniform, stateless_normal))
        assert 0 < uniform.min() and uniform.max() < 1 and np.abs(normal).max() < 5.9
        assert stats.kstest(uniform, "uniform").statistic < 1.95 / np.sqrt(count)
        assert stats.kstest(normal, "norm").statistic < 1.95 / np.sqrt(count)
        halves = normal.reshape(2, -1)  # the two of a pair
        assert abs((halves[0] * halves[1]).mean()) < 5 / np.sqrt(count / 2)
        assert abs((halves[0] ** 2 * halves[1] ** 2).mean() - 1) < 5 * np.sqrt(8) / np.sqrt(count / 2)
