"""LeNet, AlexNet and the ResNets have the published sizes, and any rule trains them."""

import functools

import keras
import numpy as np
import pytest

import tfbio
from tfbio import models

RULES = ["fa", "brsf", "kp", "dfa", "dfa_regenerated", "dfa_broadcast"]


@functools.cache
def published(name):
    return getattr(models, name)()


def trainable(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


@pytest.mark.parametrize(
    ("name", "parameters", "stages"),
    [
        ("lenet", 61_706, 5),
        ("ernoult_lenet", 832 + 51_264 + 1_606_144 + 5_130, 4),
        ("alexnet", 61_100_840, 8),
        ("resnet18", 11_689_512, 10),
        ("resnet20", 269_722, 11),
        ("resnet50", 25_557_032, 18),
        ("resnet56", 853_018, 29),
    ],
)
def test_published_sizes(name, parameters, stages):
    """Parameters as torchvision's and BioTorch's implementations have them; a stage is a layer or a residual block."""
    model = published(name)
    assert model.name == name and model.built
    assert trainable(model) == parameters
    assert len(tfbio.stages(model)) == stages
    assert (model.layers[-1].name, model.layers[-1].activation) == ("logits", keras.activations.linear)
    assert model.output_shape == (None, 1000 if model.input_shape[1] == 224 else 10)
    assert "keras" == type(model).__module__.split(".")[0]


def test_sizes_within_alexnet():
    shapes = {layer.name: layer.output.shape[1:] for layer in published("alexnet").layers}
    assert [shapes[name] for name in ("conv_1", "conv_2", "pool_2", "conv_5", "flatten")] == [
        (55, 55, 64),
        (27, 27, 192),
        (13, 13, 192),
        (13, 13, 256),
        (9216,),
    ]
    normalized = models.alexnet((64, 64, 3), batch_normalization=True, synchronized=True)
    kinds = [type(layer).__name__ for layer in normalized.layers]
    assert kinds.count("BatchNormalization") == 7 and "Dropout" not in kinds
    assert normalized.get_layer("dense_2_norm").synchronized and normalized.get_layer("conv_1").bias is None


def test_lenet_pads_small_images():
    model = models.lenet((9, 28, 1), 3)
    assert model.get_layer("padding").output.shape[1:] == (32, 32, 1)
    assert model.get_layer("flatten").output.shape[1:] == (400,)
    assert trainable(models.lenet((32, 32, 3))) == 62_006
    assert "padding" not in [layer.name for layer in models.lenet((32, 32, 3)).layers]


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "resnet50"])
def test_shapes_within_the_resnets_and_synchronized_statistics(name):
    model = getattr(models, name)((32, 32, 3), 10, synchronized=True)
    shapes = [layer.output.shape[1:] for layer in model.layers if layer.name.endswith("_out")]
    factor = 4 if name == "resnet50" else 1
    if name == "resnet20":
        assert shapes == [(32, 32, 16)] * 3 + [(16, 16, 32)] * 3 + [(8, 8, 64)] * 3
    else:
        assert sorted(set(shapes)) == [(1, 1, 512 * factor), (2, 2, 256 * factor), (4, 4, 128 * factor)] + [
            (8, 8, 64 * factor)
        ]
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == {"resnet18": 20, "resnet20": 19, "resnet50": 53}[name]
    assert all(norm.synchronized for norm in norms)


def test_shortcut_a_against_numpy():
    """With branches that give nothing, a block of ResNet-20 passes every other position on, between zero channels."""
    model = models.resnet20((6, 6, 3), 10)
    block = keras.Model(model.get_layer("block_3_out").output, model.get_layer("block_4_out").output)
    model.get_layer("block_4_b_norm").gamma.assign(np.zeros(32))
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 16))
    expected = np.zeros((2, 3, 3, 32))
    expected[..., 8:24] = np.maximum(x[:, ::2, ::2], 0)
    np.testing.assert_allclose(block(x), expected, rtol=1e-6)


def test_a_resnet_loads_again(tmp_path):
    model = models.resnet20((8, 8, 3), 4)
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))


@functools.cache
def exact():
    """A network in float64, a batch, and backpropagation's gradients."""
    model, rng = models.resnet20((8, 8, 3), 4), np.random.default_rng(0)
    x, y = rng.normal(size=(6, 8, 8, 3)), rng.integers(0, 4, 6)
    rule = tfbio.rules.Backpropagation()
    rule.build(model, "softmax_cross_entropy")
    return model, x, y, [np.asarray(gradient) for gradient in rule.compute(x, y).forward]


@pytest.mark.parametrize("rule", ["symmetric", *RULES])
def test_rules_on_resnet20(rule, float64):
    """Each takes a step; with symmetric feedback it is backpropagation's."""
    model, x, y, expected = exact()
    rule_ = tfbio.rules.FeedbackRule("symmetric") if rule == "symmetric" else tfbio.rules.get(rule)
    rule_.build(model, "softmax_cross_entropy")
    pairs = [(np.asarray(a), e) for a, e in zip(rule_.compute(x, y).forward, expected, strict=True)]
    assert all(np.isfinite(ours).all() for ours, _ in pairs)
    if rule == "symmetric":
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-11)
    else:
        assert not np.allclose(*pairs[0], rtol=0.1)
        np.testing.assert_allclose(*pairs[-1], rtol=1e-6)  # the last layer's own gradient is exact


@pytest.mark.parametrize("name", ["MobileNet", "EfficientNetB0", "ResNet50", "ConvNeXtTiny"])
def test_keras_s_own_networks(name):
    """Feedback and direct feedback are given to each; the first two take a step."""
    application = getattr(keras.applications, name)
    model = application(weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None)
    for rule in (tfbio.rules.FeedbackAlignment(), tfbio.rules.DirectFeedbackAlignment(storage="regenerated")):
        rule.build(model, "softmax_cross_entropy")
        if name == "ConvNeXtTiny" and hasattr(rule, "feedback_layers"):  # its scales mix nothing
            assert len(rule.feedback_layers) == sum(map(tfbio.layers.is_weighted, model._flatten_layers()))
        if name in ("MobileNet", "EfficientNetB0"):
            update = rule.compute(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), np.array([1, 7]))
            assert all(np.isfinite(gradient).all() for gradient in update.forward)
