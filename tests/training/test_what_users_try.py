"""What a new user tries first: it works as in Keras, or an error says what to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(16, 5)).astype("float32"), RANDOM.integers(0, 3, 16)


def network():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)])


def learner(rule="bp", optimizer="sgd", model=None, **options):
    made = tfbio.Learner(model or network(), rule)
    made.compile(optimizer, jit_compile=False, **options)
    return made


def data():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)


def sgd(**options):
    return keras.optimizers.SGD(0.1, gradient_accumulation_steps=2, **options)


@pytest.mark.parametrize("kind", ["trainer", "learner"])
def test_accumulated_gradients_are_keras_s(kind):
    theirs = network()
    theirs.compile(sgd(momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    theirs.fit(data(), epochs=2, verbose=0)
    optimizer = sgd(momentum=0.9)
    ours = (
        tfbio.Trainer(network(), "bp", optimizer, jit_compile=False) if kind == "trainer" else learner("bp", optimizer)
    )
    ours.fit(data(), epochs=2, verbose=0)
    for a, b in zip(ours.model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_gaps_shrink_in_real_steps_only(scaled):
    optimizer = sgd(weight_decay=0.5)
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
    trainer = tfbio.Trainer(network(), "kp", optimizer, jit_compile=False)
    gaps = [[b.numpy() - w.numpy() for b, w in trainer.rule.followers]]
    for steps in (1, 1, 1, 1):
        trainer.fit(data().take(1), epochs=trainer.epoch + steps, verbose=False)
        gaps.append([b.numpy() - w.numpy() for b, w in trainer.rule.followers])
    for before, after, factor in zip(gaps[:-1], gaps[1:], (1, 0.95, 1, 0.95), strict=True):
        for a, b in zip(after, before, strict=True):
            np.testing.assert_allclose(a, factor * b, rtol=1e-4, atol=1e-6)


def two_outputs():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    h = keras.layers.Dense(4, "tanh")(inputs)
    return keras.Model(inputs, [keras.layers.Dense(3, name="kind")(h), keras.layers.Dense(1, name="size")(h)])


@pytest.mark.parametrize("weights", [[0.5, 20.0], {"size": 20.0, "kind": 0.5}])
@pytest.mark.parametrize("by_name", [False, True])
def test_loss_weights_are_keras_s(weights, by_name):
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = {"kind": cross_entropy, "size": "mse"} if by_name else [cross_entropy, "mse"]
    labels = {"kind": Y, "size": X[:, :1]} if by_name else [Y, X[:, :1]]
    named = {"kind": 0.5, "size": 20.0} if by_name else [0.5, 20.0]
    theirs, ours = two_outputs(), learner(model=two_outputs(), loss=losses, loss_weights=weights)
    theirs.compile("sgd", losses, loss_weights=named, jit_compile=False)
    expected = theirs.fit(X, labels, batch_size=4, shuffle=False, verbose=0).history["loss"]
    received = ours.fit(X, labels, batch_size=4, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(received, expected, rtol=1e-5)
    for a, b in zip(ours.model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_loss_weights_of_one_output_are_refused():
    with pytest.raises(ValueError, match="Invalid value for `loss_weights`"):
        learner(loss_weights=[0.5])


@keras.saving.register_keras_serializable("tests")
class OnHost(keras.layers.Layer):
    """Has a call that XLA can't compile, and says so."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_jit = False

    def call(self, x):
        return tf.ensure_shape(tf.numpy_function(lambda a: a + 1, [x], x.dtype), x.shape)

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("place", ["model", "preprocessing"])
def test_auto_compiles_only_what_xla_can(place):
    layers = [OnHost()] if place == "model" else []
    model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(3)])
    trainer = tfbio.Trainer(model, preprocessing=OnHost() if place == "preprocessing" else None)
    history = trainer.fit(data(), validation_data=data(), epochs=2, verbose=False).history
    assert history["loss"][1] < history["loss"][0]
    assert trainer.predict(X).shape == (16, 3)


def test_auto_compiles_no_text():
    vectorize = keras.layers.TextVectorization(10, output_mode="multi_hot", vocabulary=["a", "b", "c"])
    model = keras.Sequential([keras.Input((), dtype="string"), vectorize, keras.layers.Dense(3)])
    trainer = tfbio.Trainer(model)
    text = tf.data.Dataset.from_tensor_slices((["a b", "b c", "c", "a"], [0, 1, 2, 0])).batch(2)
    assert np.isfinite(trainer.fit(text, verbose=False).history["loss"][0])


def test_strings_are_not_compiled():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    text = tf.data.Dataset.from_tensor_slices(([["1"], ["2"]], [0, 1])).batch(2)
    with pytest.raises(ValueError, match="Pass jit_compile=False"):
        tfbio.Trainer(model, preprocessing=tf.strings.to_number).fit(text, verbose=False)
    tfbio.Trainer(model, preprocessing=tf.strings.to_number, jit_compile=False).fit(text, verbose=False)


@pytest.mark.parametrize(
    ("name", "grows"),
    [("accuracy", True), ("top_2", True), ("error", False), ("loss", False)],
)
@pytest.mark.parametrize("kind", ["trainer", "learner", "test"])
def test_callbacks_know_what_is_better(kind, name, grows, tmp_path):
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top_2")]
    split = "test" if kind == "test" else "val"
    stopping = keras.callbacks.EarlyStopping(f"{split}_{name}")
    reducing = keras.callbacks.ReduceLROnPlateau(f"{split}_{name}")
    saving = keras.callbacks.ModelCheckpoint(str(tmp_path / "m.keras"), f"{split}_{name}", save_best_only=True)
    callbacks = [stopping, reducing, saving]
    if kind == "learner":
        learner(metrics=metrics).fit(data(), validation_data=data(), callbacks=callbacks, verbose=0)
    else:
        trainer = tfbio.Trainer(network(), metrics=metrics, jit_compile=False)
        trainer.fit(data(), validation_data={split: data()}, callbacks=callbacks, verbose=False)
    assert [callback.monitor_op(2.0, 1.0) for callback in callbacks] == [grows] * 3


def test_callbacks_know_the_figures_of_outputs():
    stopping = keras.callbacks.EarlyStopping("val_kind_error")
    losses = {"kind": "softmax_cross_entropy", "size": "mse"}
    labels = {"kind": Y, "size": X[:, :1]}
    trainer = tfbio.Trainer(two_outputs(), loss=losses, jit_compile=False)
    trainer.fit((X, labels), validation_data=(X, labels), callbacks=[stopping], verbose=False)
    assert not stopping.monitor_op(2.0, 1.0)


def test_batch_size_is_of_the_arrays_among_the_data():
    trainer = tfbio.Trainer(network(), jit_compile=False)
    trainer.fit((X, Y), batch_size=5, validation_data=data(), verbose=False)
    assert int(trainer.step.numpy()) == 4
    trainer.fit(data(), batch_size=5, validation_data=(X, Y), epochs=2, verbose=False)
    assert int(trainer.step.numpy()) == 8


def test_data_apart_are_refused():
    trainer = tfbio.Trainer(network(), jit_compile=False)
    for call in (trainer.fit, trainer.evaluate):
        with pytest.raises(TypeError, match=rf"{call.__name__}\(\(x, y\)\)"):
            call(X, Y)
        with pytest.raises(TypeError, match=rf"{call.__name__}\(\(x, y\)\)"):
            call(x=X, y=Y)
        with pytest.raises(ValueError, match=r"fit\(\(x, y\)\)"):
            call(X)


def test_lists_are_arrays_and_no_weights_are_none():
    losses = [
        tfbio.Trainer(network(), jit_compile=False).fit(data, verbose=False).history["loss"]
        for data in ((X, Y), [X, Y, None], (X.tolist(), Y.tolist()))
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("kind", ["trainer", "learner"])
def test_metrics_by_name(kind):
    def make(metrics):
        if kind == "learner":
            return learner(metrics=metrics)
        return tfbio.Trainer(network(), metrics=metrics, jit_compile=False)

    assert "accuracy" in make("accuracy").fit(data(), verbose=0).history
    for unknown in ("acuracy", ["acuracy"]):
        with pytest.raises(ValueError, match="Invalid value for `metrics`.*'acuracy'"):
            make(unknown)


def test_a_learner_is_compiled_first():
    with pytest.raises(ValueError, match="`compile` before `fit`"):
        tfbio.Learner(network()).fit(X, Y)


def test_one_callback_needs_no_list():
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    trainer = tfbio.Trainer(network(), jit_compile=False)
    trainer.fit(data(), callbacks=callback, verbose=False)
    trainer.evaluate(data(), callbacks=callback)
    assert seen == [0]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2.5}, {"epochs": 1.5}, {"steps_per_epoch": 0}])
def test_numbers_that_are_none(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"Invalid value for `{name[:5]}"):
        tfbio.Trainer(network(), jit_compile=False).fit((X, Y), verbose=False, **options)
