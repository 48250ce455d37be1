"""A stage's inverse goes from its output's shape to its input's, layer by layer in reverse."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfbio
from tfbio.network import inverses


def stage(*layers, shape):
    return keras.Sequential([keras.Input(shape), *layers])


def kinds(model):
    return [type(layer).__name__ for layer in model.layers if not isinstance(layer, L.InputLayer)]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_convolutions_come_back_to_the_exact_shape(size, stride, padding):
    for length in (7, 8, 9):
        model = stage(L.Conv2D(2, size, stride, padding), shape=(length, length, 3))
        mirror = tfbio.inverse(model, "tanh")
        assert kinds(mirror) == ["Conv2DTranspose"] and mirror.output_shape == model.input_shape
        assert mirror.input_shape == model.output_shape
        assert mirror.layers[-1].kernel.shape == model.layers[0].kernel.shape  # (…, below, above): its own adjoint's


def test_the_mirror_of_a_convolution_with_its_kernel_is_the_adjoint(float64):
    for size, stride, padding, shape in [(3, 2, "same", (7, 6)), (4, 2, "same", (8, 8)), (3, 2, "valid", (8, 7))]:
        convolution = L.Conv2D(4, size, stride, padding, use_bias=False)
        model = stage(convolution, shape=(*shape, 3))
        mirror = tfbio.inverse(model)
        mirror.layers[-1].kernel.assign(convolution.kernel)
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(1, *shape, 3)), rng.normal(size=(1, *model.output_shape[1:]))
        np.testing.assert_allclose(np.sum(model(x) * y), np.sum(x * np.asarray(mirror(y))), rtol=1e-10)


def test_the_mirror_of_a_locally_connected_layer_with_its_kernel_is_the_adjoint(float64):
    for size, stride, padding, shape in [(3, 2, "same", (7, 6)), (4, 3, "same", (8, 8)), (3, 2, "valid", (8, 7))]:
        local = tfbio.layers.LocallyConnected2D(4, size, stride, padding=padding, use_bias=False)
        model = stage(local, shape=(*shape, 3))
        mirror = tfbio.inverse(model, "tanh")
        assert kinds(mirror) == ["LocallyConnected2DTranspose"] and mirror.output_shape == model.input_shape
        mirror.layers[-1].kernel.assign(local.kernel)
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(1, *shape, 3)), rng.normal(size=(1, *model.output_shape[1:]))
        np.testing.assert_allclose(np.sum(model(x) * y), np.sum(x * np.arctanh(mirror(0.1 * y))) / 0.1, rtol=1e-10)


def test_a_locally_connected_layer_of_one_position_is_mirrored_as_the_dense_layer_that_it_is(float64):
    """Then target propagation is the dense network's, gradient by gradient."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape) / 3 for shape in ((6, 5), (5,), (5, 4), (4,), (4, 3), (3,))]
    inverses_ = [rng.normal(size=shape) / 3 for shape in ((4, 5), (5,), (3, 4), (4,))]
    local = [tfbio.layers.LocallyConnected2D(units, 1, activation="tanh") for units in (5, 4)]
    models = [
        stage(L.Dense(5, "tanh"), L.Dense(4, "tanh"), L.Dense(3), shape=(6,)),
        stage(L.Reshape((1, 1, 6)), *local, L.Flatten(), L.Dense(3), shape=(6,)),
    ]
    x, y, gradients = rng.normal(size=(7, 6)), rng.integers(0, 3, 7), []
    for model in models:
        rule = tfbio.rules.SimplifiedDifferenceTargetPropagation(noise=0.0)
        rule.build(model, "softmax_cross_entropy")
        for variables, values in ((model.trainable_variables, weights), (rule.feedback_variables, inverses_)):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(np.reshape(value, variable.shape))
        update = rule.compute(x, y)
        gradients.append([np.squeeze(gradient) for gradient in (*update.forward, *update.feedback)])
        inverses_[0] = inverses_[0].T  # a transposed layer's kernel has the mirrored layer's shape
    gradients[1][6] = gradients[1][6].T
    for a, b in zip(*gradients, strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_other_ranks():
    for rank, layer in ((1, L.Conv1D), (3, L.Conv3D)):
        shape = (7, 6, 5)[:rank] + (2,)
        model = stage(layer(3, 3, 2, "same"), shape=shape)
        assert tfbio.inverse(model).output_shape[1:] == shape
        assert tfbio.inverse(stage(layer(3, 2), shape=shape), kernel_size=4).output_shape[1:] == shape


def test_a_stage_is_mirrored_in_reverse():
    model = stage(
        L.Conv2D(3, 3, 2, "same"),
        L.BatchNormalization(),
        L.Activation("relu"),
        L.Dropout(0.5),
        L.Flatten(),
        L.Dense(5, "sigmoid"),
        L.Reshape((5, 1)),
        shape=(7, 9, 2),
    )
    mirror = tfbio.inverse(model, "tanh")
    assert kinds(mirror) == ["Reshape", "Dense", "Reshape", "Conv2DTranspose"]
    assert [layer.activation.__name__ for layer in mirror.layers if layer.weights] == ["relu", "tanh"]
    assert mirror.output_shape == (None, 7, 9, 2) and mirror.input_shape == (None, 5, 1)
    assert not {id(v) for v in mirror.variables} & {id(v) for v in model.variables}


def test_output_activation():
    assert inverses.output_activation(stage(L.Dense(3, "tanh"), L.Reshape((3, 1)), shape=(2,))).__name__ == "tanh"
    assert inverses.output_activation(stage(L.Dense(3, "tanh"), L.BatchNormalization(), shape=(2,))) is None
    relu = L.ReLU(max_value=6.0)
    assert inverses.output_activation(stage(L.Dense(3), relu, L.Dropout(0.1), shape=(2,))) is relu
    assert inverses.output_activation(stage(L.Dense(3), L.PReLU(), shape=(2,))) is None
    assert (
        inverses.output_activation(stage(L.Conv2D(3, 2, activation="elu"), L.MaxPool2D(), shape=(6, 6, 1))).__name__
        == "elu"
    )


def test_an_inverse_may_end_in_a_layer_s_activation():
    mirror = tfbio.inverse(stage(L.Dense(3), shape=(4,)), L.ReLU(max_value=1.0))
    values = np.asarray(mirror(100 * np.random.default_rng(0).normal(size=(50, 3))))
    assert values.min() == 0.0 and values.max() == 1.0


@pytest.mark.parametrize("pool", [(2, 2), (3, 2), (3, 3), (2, 1)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_pooling_is_refused_or_repeated(pool, padding):
    model = stage(L.Conv2D(4, 3, padding="same"), L.MaxPooling2D(*pool, padding), shape=(7, 8, 2))
    with pytest.raises(ValueError, match="`pooling`.*'upsample'"):
        tfbio.inverse(model)
    mirror = tfbio.inverse(model, pooling="upsample")
    assert mirror.output_shape == model.input_shape
    assert "UpSampling2D" in kinds(mirror)


@pytest.mark.parametrize("size", [3, 5, 6])
@pytest.mark.parametrize("shape", [(7, 8, 2), (14, 13, 2)])
def test_a_transposed_convolution_strides_over_pooling(size, shape):
    model = stage(L.Conv2D(4, 3, padding="same", activation="relu"), L.MaxPooling2D(3, 2, "same"), shape=shape)
    mirror = tfbio.inverse(model, pooling="strided", kernel_size=size)
    assert mirror.output_shape == (None, *shape)
    (layer,) = (layer for layer in mirror.layers if layer.weights)
    assert layer.strides == (2, 2) and layer.kernel.shape == (size, size, 2, 4)


def test_pooling_without_a_convolution_can_t_be_strided():
    with pytest.raises(ValueError, match="'strided' needs a convolution"):
        tfbio.inverse(stage(L.AveragePooling2D(2), shape=(4, 4, 1)), pooling="strided")


def test_repeating_undoes_pooling_of_a_constant():
    mirror = tfbio.inverse(stage(L.AveragePooling2D(2), shape=(4, 4, 1)), pooling="upsample")
    y = np.arange(4.0).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(mirror(y)[0, ..., 0], np.kron(y[0, ..., 0], np.ones((2, 2))))


def test_wider_kernels_and_one_dense_layer():
    for padding in ("same", "valid"):
        model = stage(L.Conv2D(4, 3, 2, padding), shape=(7, 8, 2))
        wide = tfbio.inverse(model, kernel_size=7)
        assert wide.output_shape == model.input_shape
        assert next(layer for layer in wide.layers if layer.weights).kernel.shape == (7, 7, 2, 4)
        full = tfbio.inverse(model, "tanh", fully_connected=True)
        assert full.output_shape == model.input_shape and kinds(full) == ["Flatten", "Dense", "Reshape"]
        assert full.count_params() == (np.prod(model.output_shape[1:]) + 1) * 7 * 8 * 2
        assert full.layers[2].activation.__name__ == "tanh"


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kind", ["convolution", "locally connected"])
def test_a_wider_kernel_is_centred_where_the_layer_s_own_is(kind, padding, float64):
    """With zeros around the narrow kernel it is the narrow inverse, at even and odd sizes."""
    rng = np.random.default_rng(0)
    for shape, k, stride, extra in [((7, 8), 3, 2, 1), ((8, 9), 2, 3, 2), ((9, 7), 1, 2, 1), ((8, 8), 4, 1, 2)]:
        layer = L.Conv2D if kind == "convolution" else tfbio.layers.LocallyConnected2D
        model = stage(layer(2, k, stride, padding=padding), shape=(*shape, 3))
        narrow, wide = tfbio.inverse(model), tfbio.inverse(model, "tanh", kernel_size=k + 2 * extra)
        assert wide.output_shape == model.input_shape
        own, other = (next(layer for layer in g.layers if layer.weights).kernel for g in (narrow, wide))
        if kind == "convolution":
            other.assign(np.pad(own, [(extra, extra)] * 2 + [(0, 0)] * 2))
        else:
            windows = np.reshape(own, (*own.shape[:2], k, k, 3, -1))
            around = [(0, 0)] * 2 + [(extra, extra)] * 2 + [(0, 0)] * 2
            other.assign(np.reshape(np.pad(windows, around), other.shape))
        y = rng.normal(size=(2, *model.output_shape[1:]))
        np.testing.assert_allclose(wide(y), np.tanh(narrow(y)), rtol=1e-10, atol=1e-12)


def test_a_wider_kernel_of_other_ranks_and_layouts():
    for rank, layer in ((1, L.Conv1D), (3, L.Conv3D)):
        for length in (7, 8):
            model = stage(layer(2, 3, 2, "same"), shape=(length,) * rank + (2,))
            assert tfbio.inverse(model, kernel_size=5).output_shape == model.input_shape
    local = tfbio.layers.LocallyConnected2D(4, 3, 2, padding="valid", data_format="channels_first", dilation_rate=2)
    model = stage(local, shape=(2, 9, 8))
    assert tfbio.inverse(model, kernel_size=(5, 4)).output_shape == model.input_shape
    with pytest.raises(ValueError, match="at least \\(3, 3\\)"):
        tfbio.inverse(model, kernel_size=2)


def test_extra_units_and_the_initializer():
    mirror = tfbio.inverse(stage(L.Dense(3), shape=(4,)), extra_units=5, kernel_initializer="ones")
    assert mirror.input_shape == (None, 8)
    np.testing.assert_array_equal(mirror.get_weights()[0], np.ones((8, 4)))


def test_a_layer_class_is_added_in_two_lines():
    class Doubled(L.Dense):
        pass

    class Odd(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(shape[-1], 3))

        def call(self, x):
            return x @ self.kernel

    assert kinds(tfbio.inverse(stage(Doubled(3), shape=(4,)))) == ["Dense"]  # a subclass is inverted as its base is
    with pytest.raises(ValueError, match="Odd.*fully_connected=True.*inverts"):
        tfbio.inverse(stage(Odd(), shape=(4,)))
    inverses.inverts(Odd)(lambda layer, inputs, shape, activation, options: L.Dense(shape[-1], name="own")(inputs))
    assert tfbio.inverse(stage(Odd(), shape=(4,))).layers[-1].name == "own"


def test_branches_and_free_shapes_are_refused():
    inputs = keras.Input((4,))
    hidden = L.Dense(4)(inputs)
    model = keras.Model(inputs, L.Add()([hidden, L.Dense(4)(hidden)]))
    with pytest.raises(ValueError, match="branches.*inverse of your own"):
        tfbio.inverse(model)
    assert tfbio.inverse(model, fully_connected=True).output_shape == (None, 4)
    with pytest.raises(ValueError, match="fixed shapes"):
        tfbio.inverse(stage(L.Conv2D(3, 3), shape=(None, None, 1)))


@pytest.mark.parametrize("option", [{"groups": 2}, {"dilation_rate": 2}])
def test_what_convolutions_can_t(option):
    with pytest.raises(ValueError, match="one group, no dilation"):
        tfbio.inverse(stage(L.Conv2D(4, 3, **option), shape=(8, 8, 2)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_an_inverse_computes_in_the_weights_dtype(policy):
    keras.config.set_dtype_policy(policy)
    mirror = tfbio.inverse(stage(L.Conv2D(4, 3), L.Flatten(), shape=(8, 8, 2)))
    assert mirror(np.zeros((1, 144))).dtype == ("float64" if policy == "float64" else "float32")
