"""Models of every form that Keras has: what rules of the feedback family must train as they are."""

import keras
from keras import layers as L


class Residual(keras.Model):
    """A subclassed net with a residual path around its middle layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = L.Dense(16, "tanh"), L.Dense(16, "tanh"), L.Dense(5)
        self.drop = L.Dropout(0.5)

    def call(self, x, training=None):
        h = self.first(x)
        return self.head(self.drop(self.second(h), training=training) + h)


class Scale(L.Layer):
    """A learned factor for each channel (ConvNeXt's LayerScale)."""

    def build(self, shape):
        self.gamma = self.add_weight(name="gamma", shape=(shape[-1],), initializer="zeros")

    def call(self, x):
        return x * (1 + self.gamma)


class RootMeanSquare(L.Layer):
    """A normalisation of the user's own."""

    def build(self, shape):
        self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return self.scale * x * keras.ops.rsqrt(keras.ops.mean(x * x, -1, keepdims=True) + 1e-6)


class Token(L.Layer):
    """A learned token before the others, and learned positions."""

    def build(self, shape):
        self.token = self.add_weight(name="token", shape=(1, 1, shape[-1]), initializer="normal")
        self.position = self.add_weight(name="position", shape=(shape[1] + 1, shape[-1]), initializer="normal")

    def call(self, x):
        token = keras.ops.repeat(self.token, keras.ops.shape(x)[0], 0)
        return keras.ops.concatenate([keras.ops.cast(token, x.dtype), x], 1) + self.position


class Block(L.Layer):
    """A composite layer: attention and two dense layers, with residual paths."""

    def __init__(self, attention, units, **kwargs):
        super().__init__(**kwargs)
        self.attention, self.units = attention, units
        self.norms = [L.LayerNormalization(), L.LayerNormalization()]
        self.hidden, self.out = L.Dense(2 * units, "gelu"), L.Dense(units)
        self.supports_masking = True

    def call(self, x):
        h = self.norms[0](x)
        x = x + self.attention(h, h)
        return x + self.out(self.hidden(self.norms[1](x)))


def encoder(kind="multi_head"):
    """Tokens, padded with 0, through masked attention."""
    attention = {
        "multi_head": lambda: L.MultiHeadAttention(2, 8),
        "grouped": lambda: L.GroupQueryAttention(8, 4, 2),
    }[kind]
    tokens = keras.Input((6,), dtype="int32")
    x = L.Embedding(11, 16, mask_zero=True, name="table")(tokens)
    for number in range(2):
        x = Block(attention(), 16, name=f"block_{number}")(x)
    return keras.Model(tokens, L.Dense(5, name="head")(L.GlobalAveragePooling1D()(x)), name="encoder")


def vision():
    """Patches with a class token, positions and scales of the user's own."""
    x = images = keras.Input((8, 8, 3))
    x = L.Reshape((4, 16))(L.Conv2D(16, 4, 4, name="patches")(x))
    x = Scale(name="scale")(Block(L.MultiHeadAttention(2, 8), 16, name="block")(Token(name="token")(x)))
    return keras.Model(images, L.Dense(5, name="head")(RootMeanSquare(name="norm")(x)[:, 0]), name="vision")


def u_net():
    """Two outputs: a map of classes, and a number for the whole image."""
    x = images = keras.Input((8, 8, 3))
    skip = x = L.Conv2D(8, 3, padding="same", activation="relu", name="down")(x)
    x = bottom = L.Conv2D(8, 3, padding="same", activation="relu", name="bottom")(L.MaxPooling2D()(x))
    x = L.Concatenate()([L.Conv2DTranspose(8, 2, 2, name="up")(x), skip])
    pixels = L.Conv2D(4, 1, name="pixels")(L.Conv2D(8, 3, padding="same", activation="relu", name="join")(x))
    return keras.Model(images, {"pixels": pixels, "size": L.Dense(1, name="size")(L.GlobalMaxPooling2D()(bottom))})


def nested():
    """A subclassed model and a Sequential one within a functional one; one layer called twice."""
    x = inputs = keras.Input((7,))
    inner = keras.Sequential([keras.Input((7,)), L.Dense(7, "tanh", name="inner")])
    tied = L.Dense(7, "tanh", activity_regularizer="l2", name="tied")
    return keras.Model(inputs, Residual()(tied(tied(inner(x)))))
