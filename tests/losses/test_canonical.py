"""Losses against float64 NumPy; their errors against automatic differentiation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio
from tfbio import losses
from tfbio.rules.base import Batch, weighted_loss

RANDOM = np.random.default_rng(1)
LOGITS = RANDOM.normal(0, 3, (6, 4))
CLASSES = np.array([0, 3, 1, 1, 2, 0])
ONE_HOT = np.eye(4)[CLASSES]
SOFT = RANDOM.dirichlet(np.ones(4), 6)
BITS = RANDOM.integers(0, 2, (6, 4)).astype(float)


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def numpy_softmax(y, a):
    return -(y * np.log(softmax(a))).sum(-1), softmax(a) - y


def numpy_sigmoid(y, a):
    return -(y * np.log(sigmoid(a)) + (1 - y) * np.log(1 - sigmoid(a))).sum(-1), sigmoid(a) - y


def numpy_squared(y, a):
    return 0.5 * ((a - y) ** 2).sum(-1), a - y


def smoothed(cls):
    return lambda: cls(label_smoothing=0.2)


CASES = {
    "softmax, class numbers": (losses.SoftmaxCrossEntropy, CLASSES, ONE_HOT, numpy_softmax),
    "softmax, one-hot": (losses.SoftmaxCrossEntropy, ONE_HOT, ONE_HOT, numpy_softmax),
    "softmax, distributions": (losses.SoftmaxCrossEntropy, SOFT, SOFT, numpy_softmax),
    "sigmoid, bits": (losses.SigmoidCrossEntropy, BITS, BITS, numpy_sigmoid),
    "sigmoid, integers": (losses.SigmoidCrossEntropy, BITS.astype("int32"), BITS, numpy_sigmoid),
    "sigmoid, probabilities": (losses.SigmoidCrossEntropy, SOFT, SOFT, numpy_sigmoid),
    "squared error": (losses.MeanSquaredError, SOFT, SOFT, numpy_squared),
    "softmax, smoothed": (smoothed(losses.SoftmaxCrossEntropy), CLASSES, 0.8 * ONE_HOT + 0.2 / 4, numpy_softmax),
    "softmax, smoothed rows": (smoothed(losses.SoftmaxCrossEntropy), SOFT, 0.8 * SOFT + 0.2 / 4, numpy_softmax),
    "sigmoid, smoothed": (smoothed(losses.SigmoidCrossEntropy), BITS, 0.8 * BITS + 0.2 / 2, numpy_sigmoid),
    "sigmoid, booleans": (losses.SigmoidCrossEntropy, BITS > 0, BITS, numpy_sigmoid),
    "squared error, booleans": (losses.MeanSquaredError, BITS > 0, BITS, numpy_squared),
}


@pytest.mark.parametrize("make, y, target, oracle", CASES.values(), ids=CASES)
def test_value_and_error_equal_numpy_and_the_error_is_the_gradient(make, y, target, oracle):
    loss, outputs = make(), tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        values = loss.per_example(tf.constant(y), outputs)
    expected, error = oracle(target, LOGITS)
    assert values.dtype == tf.float64
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    np.testing.assert_allclose(loss.error(tf.constant(y), outputs), error, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(tape.gradient(values, outputs), error, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(loss.target(tf.constant(y), outputs), target, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("make, y, target, oracle", CASES.values(), ids=CASES)
def test_narrow_outputs_are_computed_in_float32(make, y, target, oracle, dtype):
    loss, outputs = make(), tf.cast(LOGITS, dtype)
    values, error = oracle(target, np.asarray(tf.cast(outputs, tf.float64)))
    assert loss.per_example(tf.constant(y), outputs).dtype == tf.float32
    np.testing.assert_allclose(loss.per_example(tf.constant(y), outputs), values, rtol=1e-5)
    np.testing.assert_allclose(loss.error(tf.constant(y), outputs), error, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make, y, target, oracle", CASES.values(), ids=CASES)
def test_all_axes_but_the_first_are_summed(make, y, target, oracle):
    shape = (2, 3, 4) if y.ndim == 2 else (2, 3)
    values = make().per_example(tf.constant(y.reshape(shape)), tf.constant(LOGITS.reshape(2, 3, 4)))
    np.testing.assert_allclose(values, oracle(target, LOGITS)[0].reshape(2, 3).sum(1), rtol=1e-12)


def test_losses_stay_finite_at_extreme_logits():
    outputs = tf.constant([[1e4, -1e4], [-1e4, 1e4]], tf.float32)
    np.testing.assert_allclose(losses.SoftmaxCrossEntropy().per_example(tf.constant([0, 0]), outputs), [0, 2e4])
    bits = tf.constant([[1, 0], [1, 0]])
    np.testing.assert_allclose(losses.SigmoidCrossEntropy().per_example(bits, outputs), [0, 2e4])


@pytest.mark.parametrize("dtype", ["int32", "bool", "float32"])
@pytest.mark.parametrize(
    "loss, oracle", [("sigmoid_cross_entropy", numpy_sigmoid), ("mean_squared_error", numpy_squared)]
)
def test_one_output_takes_flat_labels(loss, oracle, dtype):
    loss, y, outputs = losses.get(loss), np.array([0, 1, 1]).astype(dtype), np.array([[-1.0], [2.0], [-0.5]])
    loss.check_labels(y, (None, 1))
    loss.check_labels(y[:, None], (None, 1))
    for labels in (y, y[:, None]):
        values, error = oracle(y[:, None].astype(float), outputs)
        np.testing.assert_allclose(loss.per_example(labels, outputs), values, rtol=1e-12)
        np.testing.assert_allclose(loss.error(labels, outputs), error, rtol=1e-12)


def test_one_yes_or_no_output_has_mistakes():
    outputs = np.array([[-1.0], [2.0], [-0.5]])
    np.testing.assert_array_equal(losses.SigmoidCrossEntropy().mistakes(np.array([0, 1, 1]), outputs), [0, 0, 1])


OUT_OF_RANGE = {
    "classes": ("softmax_cross_entropy", np.array([0, 4, 1, -1, 2, 3]), [0, 1, 0, 1, 0, 0]),
    "bytes": ("softmax_cross_entropy", np.array([0, 4, 1, 255, 2, 3], "uint8"), [0, 1, 0, 1, 0, 0]),
    "long": ("softmax_cross_entropy", np.array([0, 2**32 + 1, 1, -(2**32), 2, 3]), [0, 1, 0, 1, 0, 0]),
    "floats": ("softmax_cross_entropy", np.array([0, 4, 1, np.nan, 2, 3]), [0, 1, 0, 1, 0, 0]),
    "rows": (
        "softmax_cross_entropy",
        np.concatenate([np.eye(4), [[0, 0, 0, 0], [2, -1, 0, 0]]]),
        [0, 0, 0, 0, 1, 1],
    ),
    "bits": ("sigmoid_cross_entropy", np.array([[0, 1, 1, 0]] * 5 + [[0, 1, 2, 0]]), [0, 0, 0, 0, 0, 1]),
    "probabilities": (
        "sigmoid_cross_entropy",
        np.array([[0, 1, 0.5, -0.1]] + [[0.0, 1, 1, 0]] * 5),
        [1, 0, 0, 0, 0, 0],
    ),
}


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "XLA"])
@pytest.mark.parametrize("name, y, faulty", OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_a_label_out_of_range_makes_its_example_nan_unless_its_weight_is_0(name, y, faulty, jit_compile):
    loss, faulty = losses.get(name), np.array(faulty, bool)

    @tf.function(jit_compile=jit_compile)
    def step(y, outputs, weights):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            total = weighted_loss(loss, Batch.of(None, y, weights), outputs)
        return loss.per_example(y, outputs), total, tape.gradient(total, outputs), loss.error(y, outputs)

    values, total, gradient, error = step(y, tf.constant(LOGITS), tf.constant(~faulty, tf.float64))
    np.testing.assert_array_equal(np.isnan(values), faulty)
    np.testing.assert_allclose(total, values.numpy()[~faulty].sum(), rtol=1e-12)
    np.testing.assert_array_equal(np.isfinite(error), True)
    np.testing.assert_allclose(gradient.numpy()[~faulty], error.numpy()[~faulty], rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(gradient.numpy()[faulty], 0)
    assert np.isnan(step(y, tf.constant(LOGITS), np.ones(6))[1])


def test_a_class_number_out_of_range_is_a_mistake():
    outputs = tf.constant([[2.0, 1, 0]] * 4)
    np.testing.assert_array_equal(losses.SoftmaxCrossEntropy().mistakes(np.array([0, -1, 3, 1]), outputs), [0, 1, 1, 1])


def test_terms_are_positions():
    softmax, squared = losses.SoftmaxCrossEntropy(), losses.MeanSquaredError()
    assert softmax.count(np.zeros(6), (None, 4)) == squared.count(np.zeros((6, 784)), (None, 784)) == 1
    assert softmax.count(np.zeros((6, 16, 16)), (None, 16, 16, 3)) == 256
    assert softmax.count(np.zeros((6, 16, 16)), (None, None, None, 3)) == 256  # the labels know it
    assert squared.count(np.zeros((6, 7, 2)), (None, 7, 2)) == 7
    assert squared.count(np.zeros(6), (None,)) == 1

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
    def of_unknown_length(y):
        return softmax.count(y, (None, None, 8))

    np.testing.assert_array_equal(of_unknown_length(np.zeros((2, 7), "int32")), [7.0, 7.0])
    assert of_unknown_length(np.zeros((2, 7), "int32")).dtype == tf.float32


def test_a_rule_averages_over_all_positions():
    """A label map's loss is a mean over its pixels, not their sum."""
    model = keras.Sequential([keras.Input((3, 4, 2)), keras.layers.Conv2D(5, 1)])
    x, y = RANDOM.normal(size=(6, 3, 4, 2)).astype("float32"), RANDOM.integers(0, 5, (6, 3, 4))
    rule = tfbio.rules.Backpropagation()
    rule.build(model, "softmax_cross_entropy")
    expected = numpy_softmax(np.eye(5)[y], model(x).numpy().astype(float))[0]
    np.testing.assert_allclose(rule.compute(x, y).loss, expected.mean(), rtol=1e-5)


def test_penalties_on_weights_count_once():
    """Whatever the number of terms is."""
    model = keras.Sequential(
        [keras.Input((3, 4, 2)), keras.layers.Conv2D(5, 1, kernel_regularizer=keras.regularizers.L2(3.0))]
    )
    rule = tfbio.rules.Backpropagation()
    rule.build(model, "softmax_cross_entropy")
    x, y = np.zeros((6, 3, 4, 2), "float32"), np.zeros((6, 3, 4), int)
    penalty = 3 * np.square(model.trainable_variables[0]).sum()
    np.testing.assert_allclose(rule.compute(x, y).loss, np.log(5) + penalty, rtol=1e-5)


def test_mistakes():
    outputs = tf.constant([[2.0, 1, 0], [0, 1, 2], [0, 3, 1], [0, 3, 1]])
    loss = losses.SoftmaxCrossEntropy()
    np.testing.assert_array_equal(loss.mistakes(tf.constant([0, 0, 1, 2]), outputs), [0, 1, 0, 1])
    np.testing.assert_array_equal(loss.mistakes(tf.one_hot([0, 0, 1, 2], 3), outputs), [0, 1, 0, 1])
    np.testing.assert_array_equal(loss.mistakes(np.array([[0, 0], [1, 2]]), tf.reshape(outputs, (2, 2, 3))), [0.5, 0.5])
    bits = [[1, 0], [1, 1]]
    np.testing.assert_array_equal(losses.SigmoidCrossEntropy().mistakes(bits, [[1.0, -1], [-1, 1]]), [0, 0.5])
    with pytest.raises(NotImplementedError, match="does not classify"):
        losses.MeanSquaredError().mistakes(outputs, outputs)


@pytest.mark.parametrize(
    "name, y, output_shape",
    [
        ("softmax_cross_entropy", CLASSES, (None, 4)),
        ("softmax_cross_entropy", CLASSES.astype("float32"), (None, 4)),
        ("softmax_cross_entropy", ONE_HOT, (None, 4)),
        ("softmax_cross_entropy", CLASSES.reshape(2, 3), (None, 3, 4)),
        ("sigmoid_cross_entropy", BITS, (None, 4)),
        ("mean_squared_error", SOFT, (None, 4)),
        ("mean_squared_error", np.zeros((2, 8, 8, 1)), (None, 8, 8, 1)),
        ("mean_squared_error", np.zeros((2, 8, 8, 1)), (None, None, None, 1)),
        ("softmax_cross_entropy", np.array([True, False]), (None, 2)),
        ("softmax_cross_entropy", SOFT.astype("float16"), (None, 4)),
    ],
)
def test_fitting_labels_pass(name, y, output_shape):
    losses.get(name).check_labels(y, output_shape)


@pytest.mark.parametrize(
    "name, y, output_shape, sentence",
    [
        ("softmax_cross_entropy", CLASSES, (None, 3), r"from 0 to 2.*received labels from 0 to 3"),
        ("softmax_cross_entropy", CLASSES - 1, (None, 4), r"from 0 to 3.*received labels from -1 to 2"),
        ("softmax_cross_entropy", ONE_HOT, (None, 5), r"one-hot rows of shape \(batch, 5\).*received shape \(6, 4\)"),
        ("softmax_cross_entropy", np.zeros((6, 1, 4)), (None, 4), r"one-hot rows of shape \(batch, 4\).*\(6, 1, 4\)"),
        (
            "softmax_cross_entropy",
            CLASSES[:, None],
            (None, 4),
            r"one-hot rows of shape \(batch, 4\).*received shape \(6, 1\)",
        ),
        ("sigmoid_cross_entropy", BITS, (None, 3), r"labels of shape \(batch, 3\).*received shape \(6, 4\)"),
        ("sigmoid_cross_entropy", CLASSES, (None, 4), r"labels of shape \(batch, 4\).*received shape \(6,\)"),
        ("sigmoid_cross_entropy", BITS * 2, (None, 4), r"from 0 to 1, received values from 0.0 to 2.0"),
        ("mean_squared_error", SOFT, (None, 5), r"MeanSquaredError expected labels of shape \(batch, 5\)"),
        ("mean_squared_error", np.zeros(6), (None, 5), r"MeanSquaredError expected labels of shape \(batch, 5\)"),
        ("softmax_cross_entropy", np.array(["cat", "dog"]), (None, 2), "labels that are numbers, received string"),
        ("sigmoid_cross_entropy", np.array([["a"], ["b"]]), (None, 1), "labels that are numbers, received string"),
        ("mean_squared_error", np.array([["a"], ["b"]]), (None, 1), "labels that are numbers, received string"),
        ("softmax_cross_entropy", np.array([True, False]), (None, 1), "from 0 to 0.*received labels from 0 to 1"),
        ("softmax_cross_entropy", ONE_HOT + ONE_HOT[::-1], (None, 4), "sum to 1.*sums from 2.0.*SigmoidCrossEntropy"),
        ("softmax_cross_entropy", 2 * ONE_HOT - 0.25, (None, 4), "sum to 1, received values from -0.25"),
    ],
)
def test_labels_that_do_not_fit_are_refused(name, y, output_shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        losses.get(name).check_labels(y, output_shape)


def test_get_takes_names_classes_objects_and_configs():
    loss = losses.MeanSquaredError()
    assert losses.get(loss) is loss
    for identifier in (
        "mean_squared_error",
        "MeanSquaredError",
        losses.MeanSquaredError,
        {"class_name": "MeanSquaredError"},
    ):
        assert type(losses.get(identifier)) is losses.MeanSquaredError


@pytest.mark.parametrize("identifier", ["nothing", 3, None, {"class_name": "hinge"}, {}, []])
def test_unknown_losses_are_refused_with_the_known_names(identifier):
    with pytest.raises(ValueError, match="Invalid value for `loss`.*softmax_cross_entropy"):
        losses.get(identifier)


@pytest.mark.parametrize("make", [losses.SoftmaxCrossEntropy, losses.SigmoidCrossEntropy])
@pytest.mark.parametrize("label_smoothing", [-0.1, 1.1])
def test_smoothing_out_of_range_is_refused(make, label_smoothing):
    with pytest.raises(
        ValueError, match=f"`label_smoothing`: expected a number from 0 to 1, received {label_smoothing}"
    ):
        make(label_smoothing)


def test_the_error_of_a_loss_of_ones_own_is_its_derivative():
    class Quartic(losses.Loss):
        def per_example(self, y, outputs):
            return tf.reduce_sum((outputs - y) ** 4, 1)

    error = Quartic().error(tf.constant(SOFT), tf.constant(LOGITS))
    np.testing.assert_allclose(error, 4 * (LOGITS - SOFT) ** 3, rtol=1e-12)
    assert not Quartic().canonical and losses.MeanSquaredError().canonical
