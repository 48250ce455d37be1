"""Weight mirrors: what noise teaches is the kernel, on average and in size, and only in mirror steps."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio.rules import WeightMirror
from tfbio.rules.weight_mirror import noise


def build(model, **options):
    rule = WeightMirror(seed=1, **options)
    rule.build(model, "softmax_cross_entropy")
    return rule


def network():
    hidden = [L.Conv2D(3, 3, activation="tanh"), L.Flatten(), L.Dense(6, "tanh")]
    return keras.Sequential([keras.Input((6, 6, 2)), *hidden, L.Dense(3)])


def data(dtype="float32"):
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 6, 6, 2)).astype(dtype), rng.integers(0, 3, 12)


def angle(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return np.degrees(np.arccos(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)))


LAYERS = {
    "dense": ((7,), L.Dense(5, "tanh", bias_initializer="random_normal")),
    "dense on a sequence": ((4, 7), L.Dense(5)),
    "einsum": ((4, 6), L.EinsumDense("abc,cde->abde", (4, 2, 3))),
    "conv1d, causal and dilated": ((9, 3), L.Conv1D(4, 3, padding="causal", dilation_rate=2)),
    "conv2d, same and strided": ((7, 6, 3), L.Conv2D(4, 3, 2, padding="same", bias_initializer="ones")),
    "conv2d, groups": ((5, 5, 4), L.Conv2D(6, 2, groups=2, activation="relu")),
    "conv2d, larger than its input": ((2, 2, 2), L.Conv2D(3, 5, padding="same")),
    "conv3d": ((4, 4, 4, 2), L.Conv3D(2, 3)),
    "depthwise": ((6, 6, 3), L.DepthwiseConv2D(3, padding="same", depth_multiplier=2)),
    "separable 1d": ((9, 3), L.SeparableConv1D(4, 3, padding="same", bias_initializer="ones")),
    "separable": ((7, 6, 3), L.SeparableConv2D(5, 3, 2, padding="same", activation="tanh")),
    "separable, several a channel": ((6, 6, 2), L.SeparableConv2D(4, 3, depth_multiplier=3)),
    "transposed": ((4, 4, 3), L.Conv2DTranspose(2, 3, 2, padding="same")),
}


@pytest.mark.parametrize(("shape", "layer"), LAYERS.values(), ids=LAYERS)
def test_the_mean_of_what_a_mirror_sees_is_the_kernel(shape, layer, float64):
    """Each weight within six standard errors of the mean of 60 mirrors; their sizes within the same of 1."""
    layer = type(layer).from_config(layer.get_config() | {"dtype": "float64"})  # the float64 of this test
    model = keras.Sequential([keras.Input(shape), layer, L.Flatten(), L.Dense(3)])
    (mirror, _) = build(model).feedback_layers
    assert mirror.input_shape == (None, *shape)
    kernels = [np.asarray(kernel) for kernel, _ in mirror.pairs]

    @tf.function
    def draw(step):
        shapes = [(32, *shape), *(kernel.shape for kernel in kernels)]
        x, *others = [tf.cast(noise(each, tf.stack([n, step])), tf.float64) for n, each in enumerate(shapes)]
        return mirror.mirrored(x, others)

    estimates = [draw(tf.constant(step, tf.int64)) for step in range(60)]
    for kernel, seen in zip(kernels, map(np.stack, zip(*estimates, strict=True)), strict=True):
        used = np.any(seen != 0, 0)
        assert used.any() and (used.all() or shape == (2, 2, 2))  # a kernel may reach beyond its input everywhere
        error = (seen.mean(0) - kernel)[used]
        assert np.all(np.abs(error) <= 6 * seen.std(0)[used] / np.sqrt(59) + 1e-12)
        sizes = [np.vdot(each[used], kernel[used]) / np.vdot(kernel[used], kernel[used]) for each in seen]
        assert abs(np.mean(sizes) - 1) < 6 * np.std(sizes) / np.sqrt(59)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_mirror_computes_in_the_dtype_of_the_weights(policy):
    """64 examples of 56 × 56 places overflow float16, and bfloat16 can't count them."""

    def estimates(policy):
        keras.utils.set_random_seed(0)
        conv = L.Conv2D(4, 3, padding="same", kernel_initializer="he_normal", dtype=policy)
        rule = build(keras.Sequential([keras.Input((56, 56, 3)), conv, L.Flatten(), L.Dense(2, dtype=policy)]))
        result = rule._mirrored(rule.feedback_layers[0])
        assert conv.dtype_policy.name == policy
        return result

    for seen, expected in zip(estimates(policy), estimates("float32"), strict=True):
        np.testing.assert_array_equal(seen, expected)


def test_an_update_of_dense_layers_against_numpy(float64):
    model = keras.Sequential([keras.Input((5,)), L.Dense(4, "tanh", bias_initializer="ones"), L.Dense(3)])
    rule = build(model, examples=9)
    rule.step.assign(7)
    x, y, weights = np.ones((4, 5)), np.zeros(4, int), np.array([0.1, 0.2, 0.3, 0.15])
    update = rule.compute(x, y, weights)
    assert len(update.feedback) == 2
    for index, (gradient, b, layer) in enumerate(
        zip(update.feedback, rule.feedback_variables, model.layers, strict=True)
    ):
        w = np.asarray(layer.kernel)
        signs = np.asarray(noise((9, w.shape[0]), tf.constant([(1 << 32) + index, 7], tf.int64)), "float64")
        assert set(np.unique(signs)) == {-1, 1}
        expected = 0.75 * (np.asarray(b) - signs.T @ (signs @ w) / 9)  # 0.75: the share of the batch
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)


def test_feedback_comes_to_the_kernels_angle_and_size():
    """At the angle that the noise leaves, and no further; from a hundred times too large to the kernel's size."""
    rate, examples, inputs = 0.1, 32, 64
    model = keras.Sequential([keras.Input((inputs,)), L.Dense(128, "tanh"), L.Dense(3)])
    rule = build(model, examples=examples, scale=100.0)
    kernel, feedback = rule.feedback_layers[0].pairs[0]

    @tf.function
    def steps(count):
        for _ in tf.range(count):
            update = rule.compute(tf.zeros((1, inputs)), tf.zeros((1,), tf.int32))
            for gradient, b in zip(update.feedback, rule.feedback_variables, strict=True):
                b.value.assign_sub(rate * gradient)
            rule.step.assign_add(1)

    assert 85 < angle(kernel, feedback) < 95
    angles, ratios = [], []
    for _ in range(20):
        steps(20)
        angles.append(angle(kernel, feedback))
        ratios.append(np.linalg.norm(feedback) / np.linalg.norm(kernel))
    expected = np.degrees(np.arctan(np.sqrt((inputs - 1) / examples * rate / (2 - rate))))
    assert angles[0] > 60 and ratios[0] > 5
    np.testing.assert_allclose(np.mean(angles[10:]), expected, rtol=0.05)  # 17.9 degrees
    np.testing.assert_allclose(np.mean(ratios[10:]), 1 / np.cos(np.radians(expected)), rtol=0.02)


def test_feedback_of_a_separable_convolution_comes_to_both_kernels():
    model = keras.Sequential([keras.Input((8, 8, 3)), L.SeparableConv2D(6, 3), L.Flatten(), L.Dense(3)])
    rule = build(model, examples=32)
    pairs = rule.feedback_layers[0].pairs
    assert len(rule.feedback_variables) == 3 and all(angle(w, b) > 45 for w, b in pairs)

    @tf.function
    def steps(count):
        for _ in tf.range(count):
            update = rule.compute(tf.zeros((1, 8, 8, 3)), tf.zeros((1,), tf.int32))
            for gradient, b in zip(update.feedback, rule.feedback_variables, strict=True):
                b.value.assign_sub(0.05 * gradient)
            rule.step.assign_add(1)

    steps(200)
    for w, b in pairs:
        assert angle(w, b) < 10 and np.linalg.norm(b) == pytest.approx(np.linalg.norm(w), rel=0.1)


def test_noise_is_a_function_of_its_key_with_xla_and_without():
    def draw(*key, jit_compile=False):
        return np.asarray(
            tf.function(lambda k: noise((50, 40), k), jit_compile=jit_compile)(tf.constant(key, tf.int64))
        )

    first = draw(1, 2)
    np.testing.assert_array_equal(first, draw(1, 2, jit_compile=True))
    for other in (draw(1, 3), draw(2, 2)):
        assert abs(np.mean(first * other)) < 5 / np.sqrt(2000)
    assert abs(first.mean()) < 5 / np.sqrt(2000)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_between_mirror_steps_feedback_rests(jit_compile):
    """Momentum and weight decay would move it; steps 0 and 3 mirror."""
    keras.utils.set_random_seed(2)
    model, optimizer = network(), keras.optimizers.AdamW(0.01, weight_decay=0.1)
    x, y = data()
    trainer = tfbio.Trainer(model, WeightMirror(interval=3), optimizer, jit_compile=jit_compile, steps_per_loop=1)
    rule, batch = trainer.rule, tf.data.Dataset.from_tensor_slices((x, y)).batch(12)
    moved = []
    for _ in range(5):
        before = [b.numpy() for b in rule.feedback_variables]
        trainer.fit(batch, epochs=len(moved) + 1, verbose=False)
        changes = [np.any(b.numpy() != old) for b, old in zip(rule.feedback_variables, before, strict=True)]
        assert len(changes) == 3 and len(set(changes)) == 1
        moved.append(changes[0])
    assert moved == [True, False, False, True, False]


def test_an_exact_last_layer_has_no_mirror():
    rule = build(network(), last_layer="symmetric")
    assert len(rule.feedback_variables) == len(rule.compute(*data()).feedback) == 2


def test_what_it_can_not_mirror_is_refused():
    inputs = keras.Input((None, None, 2))
    pooled = L.GlobalAveragePooling2D()(L.Conv2D(3, 3, name="conv")(inputs))
    with pytest.raises(ValueError, match="fixed size.*'conv'"):
        build(keras.Model(inputs, L.Dense(3)(pooled)))
    for option in ({"interval": 0}, {"examples": 0}, {"interval": 2.5}):
        with pytest.raises(ValueError, match=next(iter(option))):
            WeightMirror(**option)
