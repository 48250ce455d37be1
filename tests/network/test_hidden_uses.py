"""Uses of weights that feedback has no hold of are refused, and what a treated layer's call does besides is kept."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio import with_feedback

ops = keras.ops
X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
Y = np.arange(6) % 3


def net(layer):
    x = inputs = keras.Input((4,))
    x = L.Dense(6, "tanh", name="a")(x)
    return keras.Model(inputs, L.Dense(3, name="head")(layer(x)))


class Holder(L.Layer):
    """A layer with a dense one inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = L.Dense(6, "tanh", name="inner")

    def build(self, shape):
        self.inner.build(shape)


class ByKernel(Holder):
    def call(self, x):
        return ops.tanh(ops.matmul(x, self.inner.kernel) + self.inner.bias)


class InLoop(Holder):
    def call(self, x):
        return ops.while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, self.inner(h)), (0, x))[1]


class InMap(Holder):
    def call(self, x):
        return ops.vectorized_map(lambda row: self.inner(row[None])[0], x)


class InBranch(Holder):
    def call(self, x):
        return ops.cond(ops.sum(x) > 0, lambda: self.inner(x), lambda: x)


class InFunction(Holder):
    @tf.function
    def run(self, x):
        return self.inner(x)

    def call(self, x):
        return self.run(x)


@pytest.mark.parametrize("cls", [ByKernel, InLoop, InMap, InBranch, InFunction])
def test_layers_that_are_called_out_of_sight_are_refused(cls):
    model = net(cls(name="own"))
    with pytest.raises(ValueError, match="own/inner|tf.function within it"):
        with_feedback(model, "random")
    if cls is not InFunction:
        network = with_feedback(model, "random", allow_backpropagation=["own"])
        assert [each.layer.name for each in network.feedback_layers] == ["a", "head"]


class Tied(keras.Model):
    """The last product is of the first layer's kernel."""

    def __init__(self):
        super().__init__()
        self.first, self.middle = L.Dense(6, "tanh", name="first"), L.Dense(6, "tanh", name="middle")

    def call(self, x):
        return ops.matmul(self.middle(self.first(x)), ops.transpose(self.first.kernel))


class Own(keras.Model):
    """A model that holds a kernel itself, and an offset, which mixes nothing."""

    def __init__(self, kernel):
        super().__init__()
        self.first, self.head = L.Dense(6, "tanh", name="first"), L.Dense(3, name="head")
        self.offset = self.add_weight(name="offset", shape=(1, 6))
        self.kernel = self.add_weight(name="kernel", shape=(6, 6)) if kernel else None

    def call(self, x):
        x = self.first(x) + self.offset
        return self.head(x if self.kernel is None else ops.tanh(ops.matmul(x, self.kernel)))


@pytest.mark.parametrize(("make", "name"), [(Tied, "'first'"), (lambda: Own(True), "itself")])
def test_weights_that_meet_activations_outside_of_a_call_are_refused(make, name):
    model = make()
    model(X)
    with pytest.raises(ValueError, match=f"{name}.*used otherwise than by calling"):
        with_feedback(model, "random")


def test_an_offset_of_the_model_itself_is_no_kernel():
    model = Own(False)
    model(X)
    assert len(with_feedback(model, "random").feedback_layers) == 2


class Busy(L.Dense):
    """A dense layer that drops inputs, counts its calls and adds a loss."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drop = L.Dropout(0.5, seed=3)

    def build(self, shape):
        super().build(shape)
        self.count = self.add_weight(name="count", shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        self.count.assign_add(1.0)
        self.add_loss(0.1 * ops.sum(ops.square(self.kernel)))
        return super().call(self.drop(x, training=training))


def test_what_a_call_does_besides_is_done_and_dropout_is_the_same_on_the_way_back():
    keras.utils.set_random_seed(1)
    plain = net(Busy(6, name="busy"))
    treated = keras.models.clone_model(plain)
    treated.set_weights(plain.get_weights())
    for model, rule in ((plain, "bp"), (treated, tfbio.rules.FeedbackRule("random", "random"))):
        if rule != "bp":
            rule = tfbio.rules.FeedbackRule(Copied(), "same")
        trainer = tfbio.Trainer(model, rule, keras.optimizers.SGD(0.1), jit_compile=False)
        trainer.fit(tfbio.data.from_arrays(X, Y, 3, shuffle=False), epochs=3, verbose=False)
    assert float(plain.get_layer("busy").count.numpy()) == float(treated.get_layer("busy").count.numpy()) == 6
    for a, b in zip(plain.get_weights(), treated.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


class Copied(tfbio.feedback.FeedbackWeights):
    """The kernel, but by another tensor."""

    def __call__(self, kernel, variable, key, fans):
        return tf.identity(kernel)


def test_a_layer_of_several_outputs_is_refused():
    class Two(L.Layer):
        feedback_kernels = "kernel"

        def build(self, shape):
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 3))

        def call(self, x):
            return x @ self.kernel, x @ self.kernel

    x = keras.Input((4,))
    with pytest.raises(ValueError, match="'two' .* returns several tensors"):
        with_feedback(keras.Model(x, L.Add()(Two(name="two")(L.Dense(4)(x)))), "random")


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa"])
def test_layers_within_layers_that_are_not_built_yet(rule):
    model = net(L.Dense(6, activation=L.PReLU()))
    tfbio.Trainer(model, rule, "sgd", jit_compile=False).fit(tfbio.data.from_arrays(X, Y, 3), verbose=False)
    assert len(model.trainable_variables) == 7
