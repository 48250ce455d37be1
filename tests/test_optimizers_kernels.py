"""Which variables this literature's optimizers take for kernels, and what they leave free."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio.layers import LocallyConnected2D, is_weighted, kernels
from tfbio.optimizers import NormConstrainedSGD, NoSignChangeSGD


class Scale(L.Layer):
    """LayerScale's kind, over two axes; its weight has a name that is none of a kernel's."""

    def __init__(self, name_of_weight="gamma", **kwargs):
        super().__init__(**kwargs)
        self.name_of_weight = name_of_weight

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-2:], initializer="ones", name=self.name_of_weight)

    def call(self, x):
        return x * self.scale


class Mixing(L.Layer):
    """Affine in its input, by a weight of a name of its own."""

    feedback_kernels = ("mix",)

    def build(self, shape):
        self.mix = self.add_weight(shape=(shape[-1], 4), name="mix")

    def call(self, x):
        return x @ self.mix


def image(*layers):
    return keras.Sequential([keras.Input((5, 5, 2)), *layers, L.Flatten(), L.Dense(3)])


def tokens():
    return keras.Sequential([keras.Input((4,), dtype="int32"), L.Embedding(7, 3), L.Flatten(), L.Dense(3)])


MODELS = {
    "dense": lambda: image(L.Dense(4)),
    "convolution": lambda: image(L.Conv2D(3, 2)),
    "separable": lambda: image(L.SeparableConv2D(3, 2)),
    "depthwise": lambda: image(L.DepthwiseConv2D(2)),
    "locally connected": lambda: image(LocallyConnected2D(3, 2)),
    "einsum": lambda: image(L.EinsumDense("abcd,de->abce", (5, 5, 3), bias_axes="e")),
    "named": lambda: image(Mixing()),
    "prelu": lambda: image(L.PReLU("uniform")),
    "embedding": tokens,
    "layer normalization": lambda: image(L.LayerNormalization(axis=[1, 2])),
    "batch normalization": lambda: image(L.BatchNormalization()),
    "scale": lambda: image(Scale()),
    "scale called kernel": lambda: image(Scale("kernel")),
    "attention": lambda: _attention(),
}


def _attention():
    x = inputs = keras.Input((4, 5))
    x = L.Flatten()(x + L.MultiHeadAttention(2, 3)(x, x))
    return keras.Model(inputs, L.Dense(3)(x))


def stepped(model, optimizer):
    """The variables before and behind three steps."""
    rule = tfbio.rules.Backpropagation()
    rule.build(model, "softmax_cross_entropy")
    variables = model.trainable_variables
    before = [v.numpy() for v in variables]
    optimizer.build(variables)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        optimizer.apply([tf.constant(rng.normal(size=v.shape), v.dtype) for v in variables], variables)
    return before, [v.numpy() for v in variables]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_kernels_keep_their_norm_and_signs_and_all_else_is_free(make):
    for optimizer in (NormConstrainedSGD(3.0), NoSignChangeSGD(3.0)):
        model = make()
        held = {id(k) for layer in model._flatten_layers() if is_weighted(layer) for k in kernels(layer)}
        for variable, before, after in zip(model.trainable_variables, *stepped(model, optimizer), strict=True):
            assert np.any(before != after)
            if isinstance(optimizer, NormConstrainedSGD):
                kept = np.isclose(np.linalg.norm(before), np.linalg.norm(after), rtol=1e-4)
            else:
                kept = np.all(np.sign(before) * np.sign(after) >= 0) and np.all(after[before != 0] != 0)
            # What is free, and was zero, has no sign to lose.
            assert kept == (id(variable) in held) or (id(variable) not in held and not before.any()), variable.path


@pytest.mark.parametrize("optimizer", [NormConstrainedSGD, NoSignChangeSGD])
def test_a_kernel_that_was_zero_learns(optimizer):
    model = keras.Sequential([keras.Input((5,)), L.Dense(4, kernel_initializer="zeros"), L.Dense(3)])
    (first, _, second, _), (after, *_) = stepped(model, optimizer(0.3))
    assert not first.any() and second.any() and np.all(after != 0)


def test_a_variable_that_no_rule_has_seen_goes_by_its_name():
    for name, kept in {"kernel": True, "recurrent_kernel": True, "embeddings": False, "alpha": False}.items():
        variable = keras.Variable(np.random.default_rng(0).normal(size=(3, 4)), name=name)
        before, optimizer = np.linalg.norm(variable), NormConstrainedSGD(0.3)
        optimizer.apply([tf.ones((3, 4))], [variable])
        assert np.isclose(before, np.linalg.norm(variable), rtol=1e-5) == kept


def test_marks_are_no_part_of_what_is_saved(tmp_path):
    model = image(Mixing())
    config = model.get_config()
    stepped(model, NormConstrainedSGD(0.1))
    assert model.get_config() == config
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Mixing": Mixing})
    x = np.ones((1, 5, 5, 2), "float32")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-6)
