"""A loss for each output, against Keras's own `compile(loss=…, loss_weights=…)`."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from losses.keras_oracle import assert_same_gradients, factors

import tfbio
from tfbio import losses
from tfbio.rules.base import Batch, output_shape, weighted_loss

K = keras.losses
RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(6, 3, 4, 2))
MAP = RANDOM.integers(0, 3, (6, 3, 4))
VOID = np.where(RANDOM.random(MAP.shape) < [[[0.1]], [[0.9]], [[0.5]], [[0.0]], [[1.0]], [[0.4]]], -1, MAP)
CLASSES = RANDOM.integers(0, 5, 6)
REALS = RANDOM.normal(size=(6, 2))
WEIGHTS = np.array([0.5, 2.0, 1.0, 0.0, 1.5, 1.0])


def two_outputs(structure):
    """Images to a label map and to classes; `structure` says how the two are returned."""
    x = keras.Input((None, None, 2))
    hidden = L.Conv2D(4, 3, padding="same", activation="tanh")(x)
    pixels = L.Conv2D(3, 1, name="pixels")(hidden)
    classes = L.Dense(5, name="classes")(L.GlobalAveragePooling2D()(hidden))
    return keras.Model(x, structure(pixels, classes))


def a_list(pixels, classes):
    return [pixels, classes]


def a_tuple(pixels, classes):
    return (pixels, classes)


def a_dict(pixels, classes):
    return {"pixels": pixels, "classes": classes}


def sparse(**options):
    return K.SparseCategoricalCrossentropy(from_logits=True, **options)


NAMED = {"pixels": MAP, "classes": CLASSES}


@pytest.mark.parametrize("loss_weights", [None, {"pixels": 0.25, "classes": 3.0}], ids=["equal", "weighted"])
@pytest.mark.parametrize(
    "structure, y", [(a_dict, NAMED), (a_list, NAMED), (a_list, [MAP, CLASSES]), (a_tuple, (MAP, CLASSES))]
)
def test_a_dict_has_keras_gradients(float64, structure, y, loss_weights):
    loss = {"pixels": sparse(), "classes": sparse()}
    given = losses.PerOutput(loss, loss_weights)
    assert_same_gradients(two_outputs(structure), loss, X, y, loss_weights=loss_weights, given=given)


def test_a_plain_dict_or_list_means_each_once(float64):
    assert_same_gradients(two_outputs(a_dict), {"pixels": sparse(), "classes": sparse()}, X, NAMED)
    assert_same_gradients(two_outputs(a_list), [sparse(), sparse()], X, [MAP, CLASSES])


@pytest.mark.parametrize("structure", [a_dict, a_list])
def test_sample_weights_and_terms_that_differ(float64, structure):
    """Keras takes the mean over a batch's positions to be over those that count, as we do."""
    loss = {"pixels": sparse(ignore_class=-1), "classes": sparse()}
    y = {"pixels": VOID, "classes": CLASSES}
    assert_same_gradients(two_outputs(structure), loss, X, y)
    # Keras wants a weight for each position, and takes their mean for 1.
    pixels = np.broadcast_to(WEIGHTS[:, None, None], MAP.shape)
    repeated = {"pixels": pixels, "classes": WEIGHTS} if structure is a_dict else [pixels, WEIGHTS]
    model, loss = two_outputs(structure), {**loss, "pixels": sparse()}
    assert_same_gradients(model, loss, X, NAMED, WEIGHTS, keras_weight=repeated)


def test_one_loss_is_for_each_output(float64):
    model = two_outputs(a_list)
    assert_same_gradients(model, sparse(), X, [MAP, CLASSES])
    assert losses.get(sparse(), model).columns == ("pixels_loss", "classes_loss")
    canonical = losses.get("softmax_cross_entropy", two_outputs(a_dict))
    assert canonical.columns == ("pixels_loss", "classes_loss") and canonical.figure_names[0] == "pixels_error"


@pytest.mark.parametrize("structure", [a_dict, a_list])
def test_outputs_without_a_loss_learn_nothing(float64, structure):
    model = two_outputs(structure)
    rule = tfbio.rules.Backpropagation()
    rule.build(model, {"classes": sparse(), "pixels": None})
    update = rule.compute(X, {"classes": CLASSES}, factors(rule, X, {"classes": CLASSES}, np.ones(6)))
    found = {
        v.path.split("/")[0]: np.abs(g).max() for v, g in zip(model.trainable_variables, update.forward, strict=True)
    }
    assert found["pixels"] == 0 and found["classes"] > 0
    error = rule.loss.error({"classes": CLASSES}, model(X))
    pixels = error["pixels"] if structure is a_dict else error[0]
    np.testing.assert_array_equal(pixels, np.zeros((6, 3, 4, 3)))


def test_names_reach_a_model_with_one_output(float64):
    x = keras.Input((3, 4, 2))
    model = keras.Model(x, L.Conv2D(3, 1, name="pixels")(x))
    assert_same_gradients(model, {"pixels": sparse()}, X, MAP)
    loss, outputs = losses.get({"pixels": sparse()}, model), model(X)
    np.testing.assert_array_equal(loss.per_example({"pixels": MAP}, outputs), loss.per_example(MAP, outputs))
    model = keras.Model(x, [L.Conv2D(3, 1, name="pixels")(x)])
    assert_same_gradients(model, [sparse()], X, [MAP])


class Subclassed(keras.Model):
    """Shows neither its outputs nor their shapes."""

    def __init__(self, structure):
        super().__init__()
        self.pixels, self.classes, self.structure = L.Conv2D(3, 1), L.Dense(5), structure

    def call(self, x):
        pixels = self.pixels(x)
        return self.structure(pixels, self.classes(tf.reduce_mean(pixels, (1, 2))))


@pytest.mark.parametrize(
    "structure, loss, y",
    [
        (a_dict, lambda: {"pixels": sparse(), "classes": sparse()}, NAMED),
        (a_list, lambda: [sparse(), sparse()], [MAP, CLASSES]),
    ],
)
def test_a_subclassed_model(float64, structure, loss, y):
    model = Subclassed(structure)
    model(X)
    shapes = output_shape(model, X)
    assert keras.tree.flatten(losses.get(loss()).count(y, shapes)) == [12, 1]
    assert_same_gradients(model, loss(), X, y)


def test_nested_outputs(float64):
    nested = two_outputs(lambda pixels, classes: {"heads": {"pixels": pixels}, "classes": classes})
    loss = losses.get({"heads": {"pixels": sparse()}, "classes": sparse()}, nested)
    flat = losses.get({"pixels": sparse(), "classes": sparse()})
    y, outputs = {"heads": {"pixels": MAP}, "classes": CLASSES}, nested(X)
    assert loss.columns == ("heads/pixels_loss", "classes_loss")
    expected = flat.per_example(NAMED, {"pixels": outputs["heads"]["pixels"], "classes": outputs["classes"]})
    np.testing.assert_array_equal(loss.per_example(y, outputs), expected)
    keras.tree.assert_same_structure(loss.error(y, outputs), outputs)


# Terms that differ from example to example: exact under shards, microbatches and sample weights


def rule_of(model, loss_weights=(0.5, 2.0)):
    rule = tfbio.rules.Backpropagation()
    names = dict(zip(("pixels", "classes"), loss_weights, strict=True))
    rule.build(model, losses.PerOutput({"pixels": sparse(ignore_class=-1), "classes": sparse()}, names))
    return rule


def rows(nested, part):
    return keras.tree.map_structure(lambda value: value[part], nested)


def test_factors_and_totals_in_numpy(float64):
    rule, y = rule_of(two_outputs(a_dict)), {"pixels": VOID, "classes": CLASSES}
    shape = output_shape(rule.model, X)
    terms = np.stack([(VOID >= 0).sum((1, 2)), np.ones(6)], 1)
    np.testing.assert_array_equal(rule.loss.count(y, shape), terms)
    totals = rule.loss.totals(y, shape, WEIGHTS)
    np.testing.assert_allclose(totals, (WEIGHTS[:, None] * terms).sum(0), rtol=1e-14)
    expected = WEIGHTS[:, None] * [0.5, 2.0] / (WEIGHTS[:, None] * terms).sum(0)
    np.testing.assert_allclose(rule.loss.factors(WEIGHTS, totals), expected, rtol=1e-14)
    np.testing.assert_array_equal(rule.loss.factors(WEIGHTS, totals * 0), np.zeros((6, 2)))


@pytest.mark.parametrize("parts", [[slice(0, 3), slice(3, 6)], [slice(0, 1), slice(1, 5), slice(5, 6)]])
def test_parts_of_a_batch_sum_to_the_whole(float64, parts):
    rule, y = rule_of(two_outputs(a_dict)), {"pixels": VOID, "classes": CLASSES}
    shape = output_shape(rule.model, X)
    totals = sum(rule.loss.totals(rows(y, part), shape, WEIGHTS[part]) for part in parts)
    np.testing.assert_allclose(totals, rule.loss.totals(y, shape, WEIGHTS), rtol=1e-14)
    whole = rule.compute(X, y, factors(rule, X, y, WEIGHTS))
    updates = [rule.compute(X[part], rows(y, part), rule.loss.factors(WEIGHTS[part], totals)) for part in parts]
    np.testing.assert_allclose(sum(update.loss for update in updates), whole.loss, rtol=1e-12)
    for gradients in zip(whole.forward, *(update.forward for update in updates), strict=True):
        np.testing.assert_allclose(sum(gradients[1:]), gradients[0], rtol=1e-10, atol=1e-14)


def test_the_loss_is_the_sum_of_the_columns_means(float64):
    model = two_outputs(a_dict)
    rule, y, outputs = rule_of(model), {"pixels": VOID, "classes": CLASSES}, model(X)
    columns = rule.loss.per_example(y, outputs)
    totals = rule.loss.totals(y, output_shape(model, X), WEIGHTS)
    means = (WEIGHTS[:, None] * columns.numpy()).sum(0) / totals
    batch = Batch(X, y, rule.loss.factors(WEIGHTS, totals), 1.0)
    assert rule.loss.columns == ("pixels_loss", "classes_loss")
    np.testing.assert_allclose(
        weighted_loss(rule.loss, batch, outputs), means.numpy() @ rule.loss.loss_weights, rtol=1e-12
    )
    expected = K.sparse_categorical_crossentropy(CLASSES, outputs["classes"], from_logits=True)
    np.testing.assert_allclose(columns[:, 1], expected, rtol=1e-12)


def test_weighted_errors_are_the_gradient_at_the_outputs(float64):
    """What direct feedback projects."""
    model = two_outputs(a_list)
    rule, y, outputs = rule_of(model), {"pixels": VOID, "classes": CLASSES}, model(X)
    batch = Batch(X, y, factors(rule, X, y, WEIGHTS), 1.0)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss = weighted_loss(rule.loss, batch, outputs)
    expected = tape.gradient(loss, outputs)
    actual = rule.loss.weighted(rule.loss.error(y, outputs), batch.weights)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rule", ["fa", "bp"])
def test_the_feedback_family_takes_them(rule):
    model, y = two_outputs(a_list), [MAP, CLASSES]
    built = tfbio.rules.get(rule)
    built.build(model, [sparse(), "softmax_cross_entropy"])
    update = built.compute(X.astype("float32"), y)
    expected = sum(float(sparse()(label, output)) for label, output in zip(y, model(X), strict=True))
    np.testing.assert_allclose(update.loss, expected, rtol=1e-5)


def test_figures(float64):
    model = two_outputs(a_list)
    loss = losses.get([sparse(), "softmax_cross_entropy"], model)
    outputs = model(X)
    figures = loss.figures([MAP, CLASSES], outputs)
    assert tuple(figures) == loss.figure_names == ("pixels_error", "classes_error")
    np.testing.assert_allclose(figures["pixels_error"], (outputs[0].numpy().argmax(-1) != MAP).mean((1, 2)))
    np.testing.assert_allclose(figures["classes_error"], outputs[1].numpy().argmax(-1) != CLASSES)
    assert losses.get([sparse(), "mse"], model).figure_names == ("pixels_error",)
    predicted = loss.predict(outputs)
    np.testing.assert_array_equal(predicted[0], outputs[0])
    np.testing.assert_allclose(predicted[1], keras.ops.softmax(outputs[1]), rtol=1e-12)


def test_losses_that_take_all_outputs_whole(float64):
    """Nested labels, outputs of another structure, and terms that only some examples have: positive anchors."""

    class Detection(losses.Loss):
        def per_example(self, y, outputs):
            positive = tf.cast(y["labels"] >= 0, tf.float64)
            missed = tf.reduce_sum(tf.square(outputs[0] - y["boxes"]), -1)
            return tf.reduce_sum(positive * (missed + tf.square(outputs[1][..., 0])), 1)

        def count(self, y, output_shape):
            return tf.reduce_sum(tf.cast(y["labels"] >= 0, tf.float32), 1)

    x = keras.Input((3, 4))
    model = keras.Model(x, [L.Dense(4, name="boxes")(x), L.Dense(1, name="scores")(x)])
    inputs = RANDOM.normal(size=(4, 3, 4))
    y = {"boxes": RANDOM.normal(size=(4, 3, 4)), "labels": np.array([[1, -1, -1], [-1, -1, -1], [0, 2, 1], [1, 0, -1]])}
    rule = tfbio.rules.Backpropagation()
    rule.build(model, Detection())
    assert rule.loss.columns == ("loss",)
    weights = factors(rule, inputs, y, np.ones(4))
    np.testing.assert_allclose(weights, np.full(4, 1 / 6))
    boxes, scores = (output.numpy() for output in model(inputs))
    positive = y["labels"] >= 0
    expected = (((boxes - y["boxes"]) ** 2).sum(-1) + scores[..., 0] ** 2)[positive].mean()
    np.testing.assert_allclose(rule.compute(inputs, y, weights).loss, expected, rtol=1e-12)
    error = rule.loss.error(y, model(inputs))
    np.testing.assert_allclose(error[0], 2 * (boxes - y["boxes"]) * positive[..., None], rtol=1e-12)


def test_labels_and_activations_are_checked_for_each_output():
    model = two_outputs(a_dict)
    loss, shape = losses.get({"pixels": "softmax_cross_entropy", "classes": sparse()}, model), output_shape(model, X)
    assert shape == {"pixels": (None, None, None, 3), "classes": (None, 5)}
    loss.check_labels(NAMED, shape)
    with pytest.raises(ValueError, match="class numbers from 0 to 4, .*received labels from 1 to"):
        loss.check_labels({**NAMED, "classes": CLASSES + 1}, shape)
    with pytest.raises(ValueError, match="labels for each output with a loss, pixels, classes.*'pixels': '\\*'"):
        loss.check_labels({"pixels": MAP}, shape)
    x = keras.Input((4,))
    model = keras.Model(x, [L.Dense(3)(x), L.Dense(2, "softmax", name="ends")(x)])
    with pytest.raises(ValueError, match="layer 'ends'.*ends in softmax"):
        tfbio.rules.Backpropagation().build(model, ["mse", "softmax_cross_entropy"])
    tfbio.rules.Backpropagation().build(model, ["softmax_cross_entropy", "categorical_crossentropy"])


@pytest.mark.parametrize(
    "structure, loss, sentence",
    [
        (a_dict, {"pixel": "mse"}, "outputs of 'functional.*', which are pixels, classes, received one for pixel"),
        (a_list, {"pixel": "mse"}, "outputs of 'functional.*', which are pixels, classes, received one for pixel"),
        (a_list, ["mse", "mse", "mse"], "received one for output_2"),
        (a_dict, ["mse", "mse"], "received one for output_0"),
    ],
)
def test_losses_of_outputs_that_are_not_there_are_refused(structure, loss, sentence):
    with pytest.raises(ValueError, match=f"Invalid value for `loss`.*{sentence}"):
        tfbio.rules.Backpropagation().build(two_outputs(structure), loss)


@pytest.mark.parametrize("loss_weights", [{"pixels": 1.0}, [1.0, 2.0], {"pixels": 1.0, "class": 1.0}])
def test_factors_that_do_not_fit_are_refused(loss_weights):
    with pytest.raises(ValueError, match="Invalid value for `loss_weights`.*each loss, for pixels, classes"):
        losses.PerOutput({"pixels": "mse", "classes": "mse"}, loss_weights)


@pytest.mark.parametrize("given", ["mse", {}, [], [None]])
def test_no_losses_are_refused(given):
    with pytest.raises(ValueError, match="Invalid value for `losses`"):
        losses.PerOutput(given)


@pytest.mark.parametrize("name", ["tp", "dtp", "sdtp", "ddtp", "ldrl", "drtp"])
def test_rules_that_need_targets_say_so(name):
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(3)(L.Dense(5, "tanh")(x)))
    for loss in ("mse", ["softmax_cross_entropy"], K.Huber()):
        with pytest.raises(ValueError, match="Invalid value for `loss`.*needs a canonical loss.*received"):
            tfbio.rules.get(name).build(model, loss)


def test_round_trip():
    loss = losses.PerOutput(
        {"a": K.Huber(0.5), "b": [losses.SoftmaxCrossEntropy(0.1), None]}, {"a": 1.0, "b": [0.5, None]}
    )
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    copies = (
        losses.get(config),
        keras.saving.deserialize_keras_object(config),
        losses.PerOutput.from_config(loss.get_config()),
    )
    for copy in copies:
        assert json.dumps(copy.get_config()) == json.dumps(loss.get_config())
        assert copy.columns == loss.columns == ("a_loss", "b/output_0_loss")
        assert copy.loss_weights == (1.0, 0.5)
