"""Keras's losses and functions against Keras's own training step; their errors against automatic differentiation."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from losses.keras_oracle import assert_same_gradients, dense, per_pixel

import tfbio
from tfbio import losses

K = keras.losses
RANDOM = np.random.default_rng(2)
X = RANDOM.normal(size=(6, 5))
IMAGES = RANDOM.normal(size=(6, 3, 4, 2))
CLASSES = np.array([0, 3, 1, 1, 2, 0])
ONE_HOT = np.eye(4)[CLASSES]
BITS = RANDOM.integers(0, 2, (6, 4)).astype(float)
REALS = RANDOM.normal(size=(6, 4))
MAP = RANDOM.integers(0, 3, (6, 3, 4))
VOID = np.where(RANDOM.random(MAP.shape) < 0.4, -1, MAP)
WEIGHTS = np.array([0.5, 2.0, 1.0, 0.0, 1.5, 1.0])  # their mean is 1, as Keras takes it for granted


@keras.saving.register_keras_serializable(package="tests")
def fourth_power(y_true, y_pred):
    return keras.ops.mean((y_true - y_pred) ** 4, axis=-1)


@keras.saving.register_keras_serializable(package="tests")
class Scaled(K.Loss):
    """A loss of the user's own."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, y_true, y_pred):
        return self.factor * keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


# Made in the test: Keras computes in the dtype of the time.
SPARSE = K.SparseCategoricalCrossentropy
CASES = {
    "sparse, logits": (lambda: SPARSE(from_logits=True), CLASSES, None),
    "sparse, a column": (lambda: SPARSE(from_logits=True), CLASSES[:, None], None),
    "sparse, probabilities": (lambda: "sparse_categorical_crossentropy", CLASSES, "softmax"),
    "categorical, smoothed": (lambda: K.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2), ONE_HOT, None),
    "categorical": (lambda: "categorical_crossentropy", ONE_HOT, "softmax"),
    "focal": (lambda: K.CategoricalFocalCrossentropy(gamma=1.5), ONE_HOT, "softmax"),
    "binary": (lambda: "binary_crossentropy", BITS, "sigmoid"),
    "binary focal": (lambda: K.BinaryFocalCrossentropy(from_logits=True), BITS, None),
    "mse": (lambda: "mse", REALS, None),
    "mae, a class": (lambda: K.MeanAbsoluteError, REALS, None),
    "huber": (lambda: K.Huber(delta=0.5), REALS, None),
    "log cosh": (lambda: K.log_cosh, REALS, None),
    "poisson": (lambda: "poisson", np.abs(REALS), "softplus"),
    "divergence": (lambda: K.KLDivergence(), ONE_HOT, "softmax"),
    "hinge": (lambda: "hinge", BITS, None),
    "cosine": (lambda: K.CosineSimilarity(), REALS, None),
    "no reduction": (lambda: K.MeanSquaredError(reduction="none"), REALS, None),
    "a function": (lambda: fourth_power, REALS, None),
    "a class of one's own": (lambda: Scaled(3.0), REALS, None),
}


@pytest.mark.parametrize("make, y, activation", CASES.values(), ids=CASES)
def test_backpropagation_has_keras_gradients(float64, make, y, activation):
    loss = make()
    averaged = "mse" if getattr(loss, "reduction", "") == "none" else loss  # Keras would sum the examples
    model = dense(4, activation)
    assert_same_gradients(model, averaged, X, y, given=loss)
    assert_same_gradients(model, averaged, X, y, WEIGHTS, given=loss)


PIXELS = {
    "sparse": (lambda: SPARSE(from_logits=True), MAP, 3, None),
    "sparse, void": (lambda: SPARSE(from_logits=True, ignore_class=-1), VOID, 3, None),
    "sparse, void, probabilities": (lambda: SPARSE(ignore_class=-1), VOID[..., None], 3, "softmax"),
    "binary, one unit": (lambda: "binary_crossentropy", (MAP > 0)[..., None].astype(float), 1, "sigmoid"),
    "mse": (lambda: "mse", RANDOM.normal(size=(6, 3, 4, 2)), 2, None),
    "dice": (lambda: K.Dice(axis=(1, 2, 3)), np.eye(3)[MAP], 3, "softmax"),
}


@pytest.mark.parametrize("make, y, units, activation", PIXELS.values(), ids=PIXELS)
def test_positions_are_averaged_as_keras_does(float64, make, y, units, activation):
    assert_same_gradients(per_pixel(units, activation), make(), IMAGES, y)


@pytest.mark.parametrize("labels", [(6,), (6, 1)])
@pytest.mark.parametrize("make", [lambda: "mse", lambda: fourth_power, lambda: K.BinaryCrossentropy(from_logits=True)])
def test_labels_of_one_unit_may_lack_its_axis(float64, make, labels):
    loss, y = make(), BITS[:, 0].reshape(labels)
    losses.get(loss).check_labels(y, (None, 1))
    assert_same_gradients(dense(1), loss, X, y)


def test_count():
    shape = (None, 3, 4, 3)
    assert losses.get(SPARSE(from_logits=True)).count(MAP, shape) == 12
    assert losses.get("mse").count(np.zeros((6, 3, 4, 3)), shape) == 12
    assert losses.get("mse").count(np.zeros((6, 784)), (None, 784)) == 1
    assert losses.get(K.Dice(axis=(1, 2, 3))).count(np.eye(3)[MAP], shape) == 1
    assert losses.get("mse").count(np.zeros((6, 3, 4, 3)), (None, None, None, 3)) == 12
    ignoring = losses.get(SPARSE(ignore_class=-1))
    np.testing.assert_array_equal(ignoring.count(VOID, shape), (VOID >= 0).sum((1, 2)))
    np.testing.assert_array_equal(ignoring.count(VOID[..., None], shape), (VOID >= 0).sum((1, 2)))
    assert losses.get(SPARSE(ignore_class=-1)).count(MAP.astype("uint8"), shape).numpy().tolist() == [12.0] * 6

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
    def of_unknown_length(y):
        return losses.get(SPARSE(from_logits=True)).count(y, (None, None, 8))

    np.testing.assert_array_equal(of_unknown_length(np.zeros((2, 7), "int32")), [7.0, 7.0])


@pytest.mark.parametrize("make, y, activation", CASES.values(), ids=CASES)
def test_error_is_the_derivative(make, y, activation):
    loss, outputs = losses.get(make()), tf.constant(RANDOM.uniform(0.1, 0.9, (6, 4)))
    error = loss.error(y, outputs)
    assert error.dtype == tf.float64 and error.shape == outputs.shape
    direction, step = RANDOM.normal(size=(6, 4)), 1e-6
    up, down = (loss.per_example(y, outputs + sign * step * direction) for sign in (1, -1))
    np.testing.assert_allclose((error.numpy() * direction).sum(1), (up - down) / (2 * step), rtol=1e-4, atol=1e-7)


def test_narrow_outputs_are_computed_in_float32():
    loss, outputs = losses.get(SPARSE(from_logits=True)), tf.cast(REALS, "float16")
    expected = loss.per_example(CLASSES, tf.cast(outputs, "float64"))
    assert loss.per_example(CLASSES, outputs).dtype == loss.error(CLASSES, outputs).dtype == tf.float32
    np.testing.assert_allclose(loss.per_example(CLASSES, outputs), expected, rtol=1e-5)


def test_no_reduction_of_keras_is_called(monkeypatch):
    """Within a replica it divides by the number of replicas."""
    monkeypatch.setattr(K.Loss, "__call__", None)
    for make, y, _ in CASES.values():
        losses.get(make()).per_example(y, tf.constant(REALS))


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa"])
def test_rules_that_need_the_derivative_alone_take_them(rule):
    model = dense(4, "softmax")
    built = tfbio.rules.get(rule)
    built.build(model, "sparse_categorical_crossentropy")
    update = built.compute(X.astype("float32"), CLASSES)
    expected = K.SparseCategoricalCrossentropy()(CLASSES, model(X))
    np.testing.assert_allclose(update.loss, expected, rtol=1e-5)


def test_the_error_of_probabilities_goes_back_through_the_softmax():
    """A model that ends in a softmax has the logits' gradient predict − target."""
    logits = tf.constant(REALS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        outputs = tf.nn.softmax(logits)
    error = losses.get("sparse_categorical_crossentropy").error(CLASSES, outputs)
    expected = losses.SoftmaxCrossEntropy().error(CLASSES, logits)
    np.testing.assert_allclose(tape.gradient(outputs, logits, error), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "loss, y, outputs, expected",
    [
        (SPARSE(from_logits=True), [0, 2, 1], [[2.0, 1, 0], [2, 1, 0], [0, 3, 1]], [0, 1, 0]),
        (SPARSE(from_logits=True), [[0], [2], [1]], [[2.0, 1, 0], [2, 1, 0], [0, 3, 1]], [0, 1, 0]),
        (SPARSE(ignore_class=-1), [[0, -1], [-1, -1]], [[[0.9, 0.1], [0.9, 0.1]]] * 2, [0, 0]),
        (SPARSE(ignore_class=-1), [[1, -1], [0, 1]], [[[0.9, 0.1], [0.9, 0.1]]] * 2, [1, 0.5]),
        ("categorical_crossentropy", [[1, 0], [1, 0]], [[0.6, 0.4], [0.4, 0.6]], [0, 1]),
        ("binary_crossentropy", [1, 0, 1], [[0.6], [0.6], [0.4]], [0, 1, 1]),
        (K.BinaryCrossentropy(from_logits=True), [[1, 0], [1, 0]], [[0.4, 0.1], [-0.1, -1]], [0.5, 0.5]),
        (SPARSE(from_logits=True), [7, -2], [[2.0, 1, 0], [2, 1, 0]], [1, 1]),
    ],
)
def test_figures_of_losses_that_classify(loss, y, outputs, expected):
    loss = losses.get(loss)
    figures = loss.figures(np.array(y), tf.constant(outputs))
    assert tuple(figures) == loss.figure_names == ("error",)
    np.testing.assert_array_equal(figures["error"], expected)


def test_other_losses_have_no_figures():
    assert losses.get("mse").figures(REALS, REALS) == {}
    with pytest.raises(NotImplementedError, match="does not classify"):
        losses.get("mse").mistakes(REALS, REALS)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "int8"])
def test_class_numbers_out_of_range_make_an_example_nan(dtype, jit_compile):
    loss, y = losses.get(SPARSE(from_logits=True)), np.array([0, 4, 1, -1, 2, 0]).astype(dtype)

    @tf.function(jit_compile=jit_compile)
    def step(y, outputs, weights):
        batch = tfbio.rules.base.Batch.of(None, y, weights)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            total = tfbio.rules.base.weighted_loss(loss, batch, outputs)
        return loss.per_example(y, outputs), total, tape.gradient(total, outputs)

    weights = np.array([1, 0, 1, 0, 1, 1], "float32")
    values, total, gradient = step(y, tf.constant(REALS), weights)
    np.testing.assert_array_equal(np.isnan(values), [0, 1, 0, 1, 0, 0])
    assert np.isfinite(total) and np.isfinite(gradient).all()
    assert np.isnan(step(y, tf.constant(REALS), np.ones(6, "float32"))[1])


@pytest.mark.parametrize(
    "loss, y, output_shape, sentence",
    [
        (SPARSE(), CLASSES, (None, 3), "class numbers from 0 to 2"),
        (SPARSE(), CLASSES - 1, (None, 4), "from -1 to 2"),
        (SPARSE(ignore_class=255), np.array([[0, 255, 3]]), (None, 3, 3), "from 0 to 3"),
        (SPARSE(), ONE_HOT, (None, 4), r"labels of shape \(batch, 1\), received shape \(6, 4\)"),
        ("mse", REALS, (None, 3), r"shape \(batch, 3\), received shape \(6, 4\)"),
        ("mse", np.zeros(4), (None, 4), r"shape \(batch, 4\), received shape \(4,\)"),
        (fourth_power, np.array(["a", "b"]), (None, 1), "numbers, received string"),
        ("mse", np.array([["a"], ["b"]]), (None, 1), "numbers, received string"),
        (K.Dice(), np.eye(3)[MAP], (None, 3, 4, 3), "Dice, which returns one for a whole batch"),
        (lambda y, p: tf.reduce_mean(y - p), REALS, (None, 4), "one for a whole batch"),
    ],
)
def test_labels_that_do_not_fit_are_refused(loss, y, output_shape, sentence):
    with pytest.raises(ValueError, match=f"Invalid value for `(y|loss)`.*{sentence}"):
        losses.get(loss).check_labels(y, output_shape)


@pytest.mark.parametrize(
    "loss, y, output_shape",
    [
        (SPARSE(), CLASSES, (None, 4)),
        (SPARSE(), CLASSES[:, None], (None, 4)),
        (SPARSE(), np.array([True, False]), (None, 2)),
        (SPARSE(ignore_class=255), np.array([[0, 255, 2]], "uint8"), (None, None, 3)),
        ("binary_crossentropy", np.array([True, False]), (None, 1)),
        ("mse", np.zeros((2, 5, 3)), (None, None, 3)),
    ],
)
def test_fitting_labels_pass(loss, y, output_shape):
    losses.get(loss).check_labels(y, output_shape)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", K.BinaryCrossentropy()])
def test_logits_where_probabilities_are_expected_are_warned_of(loss, caplog):
    tfbio.rules.Backpropagation().build(dense(4), loss)
    (record,) = caplog.records
    assert re.search("crossentropy takes probabilities, and 'dense.*' of .* has no activation", record.getMessage())
    caplog.clear()
    for model, fitting in ((dense(4, "softmax"), loss), (dense(4), SPARSE(from_logits=True)), (dense(4), "mse")):
        tfbio.rules.Backpropagation().build(model, fitting)
    assert not caplog.records


def test_a_sum_over_the_batch_is_refused():
    with pytest.raises(ValueError, match="averaged over the global batch, received reduction='sum'"):
        losses.get(K.MeanSquaredError(reduction="sum"))


def test_a_mask_that_labels_do_not_show_is_refused():
    model = keras.Sequential([keras.Input((4,)), L.Embedding(5, 3, mask_zero=True), L.Dense(5)])
    x = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    rule = tfbio.rules.Backpropagation()
    rule.build(model, SPARSE(from_logits=True))
    with pytest.raises(ValueError, match="mask of the model's output.*ignore_class"):
        rule.compute(x, x)


def test_padding_is_left_out_as_keras_leaves_out_masked_positions(float64):
    model = keras.Sequential([keras.Input((4,)), L.Embedding(5, 3, mask_zero=True), L.Dense(5)])
    x = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [4, 2, 1, 0]])
    loss = SPARSE(from_logits=True)
    assert_same_gradients(model, loss, x, x, given=SPARSE(from_logits=True, ignore_class=0))


@pytest.mark.parametrize("make, y, activation", CASES.values(), ids=CASES)
def test_configurations_make_the_same_loss(make, y, activation):
    loss = losses.get(make())
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    outputs = tf.constant(RANDOM.uniform(0.1, 0.9, (6, 4)))
    for copy in (losses.get(config), keras.saving.deserialize_keras_object(config)):
        assert copy.get_config() == loss.get_config()
        np.testing.assert_array_equal(copy.per_example(y, outputs), loss.per_example(y, outputs))


def test_configurations_do_not_depend_on_what_was_made_before():
    assert losses.get(Scaled(2.0)).get_config() == losses.get(Scaled(2.0)).get_config()
    assert losses.get(Scaled(2.0)).get_config() != losses.get(Scaled(3.0)).get_config()


def test_keras_own_configurations_mean_keras_losses():
    """Also where tfbio has a class of that name."""
    for loss in (K.MeanSquaredError(), Scaled(2.0), K.Huber(0.5)):
        found = losses.get(K.serialize(loss))
        assert isinstance(found, losses.KerasLoss) and type(found.loss) is type(loss)
    assert type(losses.get("mean_squared_error")) is losses.MeanSquaredError
    assert type(losses.get("MeanSquaredError")) is losses.MeanSquaredError
    assert losses.KerasLoss("mean_squared_error").loss is K.mean_squared_error


def test_what_is_no_loss_is_refused():
    with pytest.raises(ValueError, match="Invalid value for `loss`.*received 3"):
        losses.KerasLoss(3)
