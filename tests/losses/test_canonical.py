"""Losses against float64 NumPy; their errors against automatic differentiation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbio import losses

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


CASES = {
    "softmax, class numbers": (losses.SoftmaxCrossEntropy, CLASSES, ONE_HOT, numpy_softmax),
    "softmax, one-hot": (losses.SoftmaxCrossEntropy, ONE_HOT, ONE_HOT, numpy_softmax),
    "softmax, distributions": (losses.SoftmaxCrossEntropy, SOFT, SOFT, numpy_softmax),
    "sigmoid, bits": (losses.SigmoidCrossEntropy, BITS, BITS, numpy_sigmoid),
    "sigmoid, integers": (losses.SigmoidCrossEntropy, BITS.astype("int32"), BITS, numpy_sigmoid),
    "sigmoid, probabilities": (losses.SigmoidCrossEntropy, SOFT, SOFT, numpy_sigmoid),
    "squared error": (losses.MeanSquaredError, SOFT, SOFT, numpy_squared),
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


def test_one_yes_or_no_output_takes_flat_labels():
    loss, y, outputs = losses.SigmoidCrossEntropy(), np.array([0, 1, 1]), np.array([[-1.0], [2.0], [-0.5]])
    loss.check_labels(y, (None, 1))
    loss.check_labels(y[:, None], (None, 1))
    np.testing.assert_allclose(loss.per_example(y, outputs), numpy_sigmoid(y[:, None], outputs)[0], rtol=1e-12)
    np.testing.assert_array_equal(loss.mistakes(y, outputs), [0, 0, 1])


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


@pytest.mark.parametrize("identifier", ["hinge", 3, None, {"class_name": "hinge"}, {}])
def test_unknown_losses_are_refused_with_the_known_names(identifier):
    with pytest.raises(ValueError, match="Invalid value for `loss`.*softmax_cross_entropy"):
        losses.get(identifier)


def test_keras_losses_are_refused():
    with pytest.raises(ValueError, match="keras.losses.MeanSquaredError.*mean_squared_error"):
        losses.get(keras.losses.MeanSquaredError())
