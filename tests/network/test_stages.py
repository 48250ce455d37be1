"""Rewiring and cutting: outputs and variables stay the model's own."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfbio
from tfbio.layers import Feedback


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            L.Conv2D(4, 3, name="conv"),
            L.BatchNormalization(name="norm"),
            L.ReLU(name="relu"),
            L.MaxPooling2D(name="pool"),
            L.Flatten(name="flat"),
            L.Dropout(0.5, name="drop"),
            L.Dense(6, "tanh", name="hidden"),
            L.Dense(3, name="logits"),
        ]
    )


def residual():
    x = inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same", name="stem")(x)
    for number in range(2):
        y = L.Conv2D(4, 3, padding="same", activation="relu", name=f"block_{number}_a")(x)
        y = L.Conv2D(4, 3, padding="same", name=f"block_{number}_b")(y)
        x = L.Add(name=f"block_{number}_add")([x, y])
        x = L.ReLU(name=f"block_{number}_relu")(x)
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, L.Dense(3, name="logits")(x))


def branches():
    x = inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 1, name="stem")(x)
    a = L.Conv2D(2, 1, name="a")(x)
    b = L.Conv2D(2, 3, padding="same", name="b2")(L.Conv2D(3, 1, name="b1")(x))
    c = L.Conv2D(2, 1, name="c")(L.MaxPooling2D(3, 1, padding="same")(x))
    x = L.Concatenate(name="join")([a, b, c])
    x = L.Flatten(name="flat")(x)
    return keras.Model(inputs, L.Dense(3, name="logits")(x))


def operators():
    """Bare operations, a constant, and a layer that is used twice."""
    x = inputs = keras.Input((8, 8, 3))
    x = keras.ops.mean(x, axis=(1, 2))
    shared = L.Dense(3, "tanh", name="shared")
    x = shared(shared(x)) + x * 2.0
    return keras.Model(inputs, L.Dense(3, name="logits")(keras.ops.relu(x)))


def nested():
    inner = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(4, 3, name="inner_conv"), L.Flatten()], name="inner")
    head = keras.Sequential(
        [keras.Input((144,)), L.Dense(5, "tanh", name="hidden"), L.Dense(3, name="top")], name="head"
    )
    return keras.Sequential([keras.Input((8, 8, 3)), inner, head])


def two_inputs():
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    x = L.Concatenate(name="join")([L.Conv2D(2, 1, name="a")(a), L.Conv2D(2, 1, name="b")(b)])
    return keras.Model([a, b], L.Dense(3, name="logits")(L.Flatten(name="flat")(x)))


MODELS = {f.__name__: f for f in (sequential, residual, branches, operators, nested, two_inputs)}
ALL = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def batch(model, size=4):
    random = np.random.default_rng(0)
    inputs = [random.normal(size=(size, *tensor.shape[1:])).astype("float32") for tensor in model.inputs]
    return inputs if len(inputs) > 1 else inputs[0]


def chain(stages, x):
    for stage in stages:
        x = stage(x)
    return x


def ids(variables):
    return {id(variable) for variable in variables}


def names(stages):
    return [[layer.name for layer in stage.layers if not isinstance(layer, L.InputLayer)] for stage in stages]


@pytest.fixture(scope="module")
def resnet():
    return keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None)


@ALL
def test_with_feedback_is_the_same_function_of_the_same_variables(make):
    model = make()
    config, variables = model.get_config(), list(model.variables)
    network = tfbio.with_feedback(model, "random")
    np.testing.assert_array_equal(network(batch(model)), model(batch(model)))
    assert ids(network.trainable_variables) == ids(model.trainable_variables)
    assert ids(model.variables) <= ids(network.variables)
    wrappers = [layer for layer in network._flatten_layers() if isinstance(layer, Feedback)]
    own = [b for layer in wrappers for b in layer.non_trainable_variables if id(b) not in ids(model.variables)]
    assert ids(network.variables) - ids(model.variables) == ids(own)
    assert not any(b.trainable for b in own)
    assert model.get_config() == config and ids(model.variables) == ids(variables)  # the model itself is as it was


@ALL
def test_stages_are_the_same_function_of_the_same_variables(make):
    model = make()
    config = model.get_config()
    stages = tfbio.stages(model)
    np.testing.assert_array_equal(chain(stages, batch(model)), model(batch(model)))
    assert ids(v for stage in stages for v in stage.trainable_variables) == ids(model.trainable_variables)
    assert ids(v for stage in stages for v in stage.variables) == ids(model.variables)
    assert all(stage.trainable_variables for stage in stages)
    assert model.get_config() == config


@ALL
def test_a_model_that_was_rewired_and_cut_is_saved_as_plain_keras(make, tmp_path):
    model = make()
    tfbio.with_feedback(model, "random")
    tfbio.stages(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(batch(model)), model(batch(model)))
    assert not any(type(layer).__module__.startswith("tfbio") for layer in loaded._flatten_layers())


def test_default_stages():
    assert names(tfbio.stages(sequential())) == [
        ["conv", "norm", "relu", "pool", "flat", "drop"],
        ["hidden"],
        ["logits"],
    ]
    assert [s[-1] for s in names(tfbio.stages(residual()))] == ["stem", "block_0_relu", "pool", "logits"]
    assert [stage[-1] for stage in names(tfbio.stages(branches()))] == ["stem", "flat", "logits"]
    assert [stage[0] for stage in names(tfbio.stages(nested()))] == ["inner_conv", "hidden", "top"]
    assert [len(stage) for stage in names(tfbio.stages(two_inputs()))] == [4, 1]


def test_stages_cut_by_name():
    model = sequential()
    stages = tfbio.stages(model, ["relu", "hidden"])
    assert names(stages) == [["conv", "norm", "relu"], ["pool", "flat", "drop", "hidden"], ["logits"]]
    np.testing.assert_array_equal(chain(stages, batch(model)), model(batch(model)))
    assert names(tfbio.stages(model, [])) == [[layer.name for layer in model.layers]]
    assert [stage[-1] for stage in names(tfbio.stages(residual(), ("block_0_add",)))] == ["block_0_add", "logits"]


@pytest.mark.parametrize(
    "make, cuts, sentence",
    [
        (residual, ["block_1_a"], "behind 'block_1_a'.*nearest.*'block_0_relu', 'block_1_add'"),
        (branches, ["b1"], "behind 'b1'.*nearest.*'stem', 'join'"),
        (branches, ["a"], "behind 'a'.*nearest.*'stem', 'join'"),
        (sequential, ["logits"], "behind 'logits'.*nearest.*'hidden'"),
        (sequential, ["hiden"], "no layer 'hiden'; near it: .*'hidden'"),
        (sequential, ["xyz"], "no layer 'xyz'; near it: .*'conv'.*'hidden'"),
        (sequential, ["hidden", "conv"], "expected layers in the model's order"),
        (sequential, ["conv", "conv"], "expected layers in the model's order"),
        (two_inputs, ["a"], "behind 'a'.*nearest.*'join'"),
    ],
)
def test_cuts_that_are_none_are_refused_with_the_nearest(make, cuts, sentence):
    with pytest.raises(ValueError, match=sentence):
        tfbio.stages(make(), cuts)


def test_resnet50_shares_all_variables(resnet):
    network = tfbio.with_feedback(resnet, "random")
    assert len(resnet.variables) == 320
    assert len(ids(network.variables) & ids(resnet.variables)) == 320
    wrapped = [layer for layer in network.layers if isinstance(layer, Feedback)]
    assert len(wrapped) == 54 and len(network.variables) == 320 + 53  # the output layer's is symmetric
    x = batch(resnet, 2)
    np.testing.assert_allclose(network(x), resnet(x), rtol=1e-6, atol=1e-7)


def test_resnet50_has_18_stages(resnet):
    stages = tfbio.stages(resnet)
    assert len(stages) == 18  # stem, 16 blocks, classifier
    x = batch(resnet, 2)
    np.testing.assert_allclose(chain(stages, x), resnet(x), rtol=1e-6, atol=1e-7)
    assert ids(v for stage in stages for v in stage.variables) == ids(resnet.variables)
    assert sum(len(stage.variables) for stage in stages) == 320
    for stage, name in zip(stages[1:-2], ("conv2_block1_out", "conv2_block2_out"), strict=False):
        assert stage.layers[-1].name == name
    with pytest.raises(ValueError, match="nearest.*'conv3_block1_out', 'conv3_block2_add'"):
        tfbio.stages(resnet, ["conv3_block2_1_conv"])


def test_the_last_layer_s_feedback():
    def kinds(model, **kwargs):
        network = tfbio.with_feedback(model, "random", **kwargs)
        wrappers = [layer for layer in network._flatten_layers() if isinstance(layer, Feedback)]
        return {layer.layer.name: type(layer.feedback).__name__ for layer in wrappers}

    assert kinds(sequential()) == {"conv": "Random", "hidden": "Random", "logits": "Symmetric"}
    assert kinds(sequential(), last_layer="same") == dict.fromkeys(("conv", "hidden", "logits"), "Random")
    assert kinds(nested())["top"] == "Symmetric" and kinds(nested())["hidden"] == "Random"
    x = inputs = keras.Input((4,))
    x = L.Dense(4, name="below")(x)
    a, b = L.Dense(3, name="a")(x), L.Dense(3, name="b")(x)
    out = keras.Sequential([keras.Input((3,)), L.LayerNormalization()])(a + b)
    found = kinds(keras.Model(inputs, L.Activation("linear")(out)))
    assert found == {"below": "Random", "a": "Symmetric", "b": "Symmetric"}


def test_last_layer_takes_any_feedback():
    network = tfbio.with_feedback(sequential(), "random", last_layer=tfbio.feedback.Random("ones"))
    np.testing.assert_array_equal(network.layers[-1].pairs[0][1], np.ones((6, 3)))


def test_masks_reach_the_layers_above():
    x = inputs = keras.Input((5,), dtype="int32")
    x = L.Dense(4)(L.Embedding(10, 3, mask_zero=True)(x))
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling1D()(x)))
    tokens = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]])
    changed = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 7]])
    assert not np.allclose(model(tokens), model(changed))
    for data in (tokens, changed):
        np.testing.assert_array_equal(tfbio.with_feedback(model, "random")(data), model(data))
        np.testing.assert_array_equal(chain(tfbio.stages(model), data), model(data))


def test_a_model_with_an_input_that_leads_nowhere_is_cut():
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], L.Dense(3)(L.Dense(5)(a)))
    assert len(tfbio.stages(model)) == 2


def test_a_layer_shared_with_a_nested_model_has_one_feedback():
    shared = L.Dense(5, name="shared")
    inner = keras.Sequential([keras.Input((5,)), shared, L.Activation("tanh")])
    x = keras.Input((5,))
    model = keras.Model(x, L.Dense(2, name="top")(inner(shared(x))))
    wrapped = [
        layer for layer in tfbio.with_feedback(model, "random").layers if isinstance(layer, tfbio.layers.Feedback)
    ]
    assert [layer.layer.name for layer in wrapped] == ["shared", "top"]
    inputs = np.ones((2, 5), "float32")
    np.testing.assert_array_equal(tfbio.with_feedback(model, "random")(inputs), model(inputs))
