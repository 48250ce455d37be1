"""The order of examples: pure, complete, and the same for any number of replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbio.data import InMemory, from_arrays, memory_of


def numbered(examples, **options):
    """Examples that carry their own index as pixel and label."""
    indices = np.arange(examples)
    images = np.broadcast_to(indices[:, None, None, None], (examples, 6, 5, 2)).astype(np.uint8)
    return InMemory(images, indices.astype(np.int32), **options)


def epoch_of(memory, epoch, replica=0, replicas=1):
    """All batches of an epoch as lists of NumPy arrays."""
    order = memory.order(epoch)
    batches = [memory.batch(order, epoch, index, replica, replicas) for index in range(memory.steps_per_epoch)]
    return [[tensor.numpy() for tensor in batch] for batch in batches]


def test_order_is_a_pure_function_of_seed_and_epoch():
    memory = numbered(50, batch_size=8, seed=3)
    order = memory.order(2)
    assert order.dtype == tf.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(50))
    memory.order(0)
    np.testing.assert_array_equal(order, memory.order(2))
    np.testing.assert_array_equal(order, numbered(50, batch_size=7, seed=3).order(2))
    np.testing.assert_array_equal(order, tf.function(memory.order)(tf.constant(2)))
    np.testing.assert_array_equal(order, tf.function(memory.order)(tf.constant(2, tf.int64)))
    assert np.any(order != memory.order(3))
    assert np.any(order != numbered(50, batch_size=8, seed=4).order(2))


def test_order_does_not_change_between_versions():
    """A resumed run must go on with the order it began with."""
    np.testing.assert_array_equal(numbered(8, batch_size=8, seed=1).order(5), [4, 3, 7, 2, 0, 5, 6, 1])


def test_every_place_is_equally_likely():
    memory = numbered(4, batch_size=4)
    orders = np.stack([memory.order(epoch) for epoch in range(400)])
    counts = np.stack([np.bincount(place, minlength=4) for place in orders.T])
    assert np.all(np.abs(counts - 100) < 45)  # More than five standard deviations.


def test_without_shuffling_the_order_is_that_of_the_arrays():
    memory = numbered(10, batch_size=4, shuffle=False)
    for epoch in (0, 1):
        np.testing.assert_array_equal(memory.order(epoch), np.arange(10))


@pytest.mark.parametrize(
    ("examples", "drop_remainder", "sizes"),
    [(12, False, [4, 4, 4]), (10, False, [4, 4, 2]), (10, True, [4, 4]), (3, False, [3])],
)
def test_an_epoch_has_each_example_once(examples, drop_remainder, sizes):
    memory = numbered(examples, batch_size=4, drop_remainder=drop_remainder)
    assert (memory.examples, memory.batch_size, memory.steps_per_epoch) == (examples, 4, len(sizes))
    batches = epoch_of(memory, 1)
    assert [len(y) for _, y, _ in batches] == sizes
    seen = np.concatenate([y for _, y, _ in batches])
    np.testing.assert_array_equal(seen, memory.order(1)[: sum(sizes)])
    for x, y, weights in batches:
        assert (x.dtype, y.dtype, weights.dtype) == (np.uint8, np.int32, np.float32)
        np.testing.assert_array_equal(x[:, 0, 0, 0], y)
        np.testing.assert_allclose(weights, 1 / len(y))


@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_together_see_what_one_sees(replicas):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(10, 9, 7, 3), dtype=np.uint8)
    memory = InMemory(images, np.arange(10), batch_size=4, seed=5, augmentation="flip_crop")
    parts = [epoch_of(memory, 2, replica, replicas) for replica in range(replicas)]
    for index, (x, y, weights) in enumerate(epoch_of(memory, 2)):
        for replica in range(replicas):
            part_x, part_y, part_weights = parts[replica][index]
            np.testing.assert_array_equal(part_x, x[replica::replicas])
            np.testing.assert_array_equal(part_y, y[replica::replicas])
            np.testing.assert_array_equal(part_weights, weights[replica::replicas])
        np.testing.assert_allclose(sum(part[index][2].sum() for part in parts), 1, rtol=1e-6)


def test_a_last_batch_may_leave_a_replica_nothing():
    x, y, weights = epoch_of(numbered(5, batch_size=4), 0, replica=1, replicas=2)[-1]
    assert x.shape == (0, 6, 5, 2)
    assert len(y) == len(weights) == 0


def test_batch_can_be_traced():
    memory = numbered(10, batch_size=4, augmentation="crop")

    @tf.function
    def batch(epoch, index, replica):
        return memory.batch(memory.order(epoch), epoch, index, replica, 2)

    for index in range(3):
        traced = batch(tf.constant(1), tf.constant(index), tf.constant(1))
        for one, other in zip(traced, memory.batch(memory.order(1), 1, index, 1, 2), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("examples", "drop_remainder", "replicas", "size"),
    [(10, True, 1, 4), (12, False, 1, 4), (12, False, 2, 2), (10, False, 1, None), (12, False, 3, None)],
)
def test_full_batches_have_a_static_shape(examples, drop_remainder, replicas, size):
    memory = numbered(examples, batch_size=4, drop_remainder=drop_remainder)
    shapes = []

    @tf.function
    def trace(index):
        shapes.extend(tensor.shape for tensor in memory.batch(memory.order(0), 0, index, 0, replicas))

    trace(tf.constant(1))
    assert [shape.as_list() for shape in shapes] == [[size, 6, 5, 2], [size], [size]]


@pytest.mark.parametrize("options", [{}, {"augmentation": "flip_crop"}, {"shuffle": False}, {"drop_remainder": True}])
def test_each_pass_over_the_dataset_is_the_next_epoch(options):
    memory = numbered(10, batch_size=4, seed=1, **options)
    dataset = memory.dataset()
    assert dataset.cardinality() == memory.steps_per_epoch
    for epoch in range(3):
        batches = list(dataset.as_numpy_iterator())
        assert len(batches) == memory.steps_per_epoch
        for (x, y), (expected_x, expected_y, _) in zip(batches, epoch_of(memory, epoch), strict=True):
            np.testing.assert_array_equal(x, expected_x)
            np.testing.assert_array_equal(y, expected_y)


def test_datasets_of_one_memory_count_their_own_passes():
    memory = numbered(10, batch_size=10)
    list(memory.dataset())
    np.testing.assert_array_equal(next(iter(memory.dataset()))[1], memory.order(0))


def test_memory_is_found_through_its_own_dataset_only():
    memory = numbered(10, batch_size=4)
    dataset = memory.dataset()
    assert memory_of(dataset) is memory
    assert memory_of(dataset.take(1)) is None
    assert memory_of(dataset.map(lambda x, y: (x, y))) is None
    assert memory_of(np.zeros(3)) is None


def test_from_arrays_takes_any_types_and_shapes():
    images = np.random.default_rng(0).normal(size=(7, 5))
    dataset = from_arrays(images, images, batch_size=3, seed=2)
    memory = memory_of(dataset)
    assert dataset.element_spec[0].dtype == dataset.element_spec[1].dtype == tf.float64
    inputs, targets = (np.concatenate(parts) for parts in zip(*dataset.as_numpy_iterator(), strict=True))
    np.testing.assert_array_equal(inputs, images[memory.order(0).numpy()])
    np.testing.assert_array_equal(inputs, targets)


def test_labels_that_are_true_or_false_are_classes():
    ((_, labels),) = from_arrays(np.zeros((3, 2)), [True, False, True], 3, shuffle=False)
    assert labels.dtype == tf.int32 and [*labels.numpy()] == [1, 0, 1]


def test_dataset_under_a_strategy():
    """The counter of passes must not become one of the strategy's variables."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        memory = numbered(10, batch_size=4)
        dataset = memory.dataset()
    distributed = strategy.experimental_distribute_dataset(dataset)
    for epoch in range(2):
        seen = np.concatenate([y.numpy() for _, y in distributed])
        np.testing.assert_array_equal(seen, memory.order(epoch))


def test_keras_fit_goes_through_the_epochs():
    memory = InMemory(np.arange(10, dtype=np.float32)[:, None], np.arange(10), batch_size=4, seed=1)
    seen = []

    class Recorder(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            tf.numpy_function(lambda values: seen.extend(values[:, 0].astype(int)), [x], [])
            return self.dense(x)

    model = Recorder()
    model.compile("sgd", "mse")
    model.fit(memory.dataset(), epochs=2, verbose=0)
    np.testing.assert_array_equal(seen, np.concatenate([memory.order(0), memory.order(1)]))


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (np.zeros((3, 2)), np.zeros(4), {}, "as many labels as images"),
        (np.zeros((0, 2)), np.zeros(0), {}, "at least one"),
        (np.float32(1), np.zeros(1), {}, "as many labels as images"),
        (np.zeros((2, 2)), ["cat", "dog"], {}, "`labels`: expected numbers, received str.*np.unique"),
        (np.zeros((2, 2)), np.array([b"1", b"2"]), {}, "`labels`: expected numbers, received bytes"),
        (np.zeros((2, 2)), np.array([1, None]), {}, "`labels`: expected numbers, received int in an array of object"),
        ([["a"], ["b"]], np.zeros(2), {}, "`images`: expected numbers, received str"),
        (np.zeros((3, 2)), np.zeros(3), {"batch_size": 0}, "`batch_size`: expected a positive"),
        (np.zeros((3, 2)), np.zeros(3), {"batch_size": 4, "drop_remainder": True}, "no batch would be left"),
        (np.zeros((3, 2)), np.zeros(3), {"augmentation": "flip"}, "not images"),
        (np.zeros((3, 2, 2, 1)), np.zeros(3), {"augmentation": "flop"}, "received 'flop'"),
    ],
)
def test_bad_input_is_refused(images, labels, options, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(images, labels, **{"batch_size": 2, **options})
