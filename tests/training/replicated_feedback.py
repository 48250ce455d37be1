"""Run by test_replicas.py in a process of its own: feedback within composite and subclassed models on two replicas."""

import keras
import numpy as np
import tensorflow as tf
from network_models import Block, Residual

import tfbio

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(22, 6, 16)).astype("float32"), RANDOM.integers(0, 5, 22)


class Normalized(keras.Model):
    """Replicas meet within its call, in the middle of what is instrumented."""

    def __init__(self):
        super().__init__()
        layers = keras.layers
        self.block = Block(layers.MultiHeadAttention(2, 8), 16)
        self.norm = layers.BatchNormalization(synchronized=True)
        self.pool, self.head = layers.GlobalAveragePooling1D(), layers.Dense(5)

    def call(self, x, training=None):
        x = self.block(x)
        return self.head(self.pool(self.norm(x, training=training)))


class Plain(Residual):
    """The first of the six vectors alone, without dropout."""

    def call(self, x, training=None):
        return super().call(x[:, 0], training=False)


def train(strategy, make, rule):
    keras.utils.set_random_seed(7)
    with strategy.scope():
        model = make()
        model(X[:2])
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-2)
    trainer = tfbio.Trainer(model, rule, optimizer, strategy=strategy, jit_compile=False)
    history = trainer.fit(tfbio.data.from_arrays(X, Y, 8), epochs=2, verbose=False).history
    return trainer, history["loss"]


two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for make in (Normalized, Plain):
    direct = tfbio.rules.DirectFeedbackAlignment(seed=1, blocks=["Block" if make is Normalized else "Dense"])
    feedback = (tfbio.rules.FeedbackAlignment(seed=1), tfbio.rules.KolenPollack(seed=1), tfbio.rules.SignSymmetry())
    for rule in (*feedback, direct):
        one, expected = train(tf.distribute.get_strategy(), make, type(rule).from_config(rule.get_config()))
        both, losses = train(two, make, rule)
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
        for a, b in zip(both.model.variables, one.model.variables, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5, err_msg=a.path)
        assert not any("call" in vars(layer) for layer in both.model._flatten_layers())
print("replicas agree")
