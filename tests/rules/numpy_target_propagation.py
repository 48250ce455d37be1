"""Target propagation in NumPy, float64, written from the equations: what tests compare the rules with.

A layer is a list of triplets (input unit, output unit, entry of the kernel), so that dense layers, convolutions,
locally connected layers and their transposes are one and the same thing: `y[o] = Σ x[i] kernel[k] + bias`. The networks
that the tests share, and how they compare, are here too.
"""

import itertools

import keras
import numpy as np
from keras import layers as L


def dense(*units, activation="tanh"):
    hidden = [L.Dense(n, activation, bias_initializer="normal") for n in units[1:-1]]
    return keras.Sequential([keras.Input((units[0],)), *hidden, L.Dense(units[-1], bias_initializer="normal")])


def convolutional():
    layers = [L.Conv2D(3, 3, 2, "same", activation="tanh"), L.Conv2D(4, 2, 1, "valid", activation="tanh"), L.Flatten()]
    return keras.Sequential([keras.Input((5, 6, 2)), *layers, L.Dense(5, "tanh"), L.Dense(3)])


def assert_close(actual, expected, rtol=1e-9):
    for a, e in zip(actual, expected, strict=True):
        a, e = np.asarray(a), np.asarray(e)
        np.testing.assert_allclose(a.reshape(e.shape), e, rtol=rtol, atol=rtol * max(np.abs(e).max(), 1e-12))


def dense_triplets(inputs, outputs):
    i, o = map(np.ravel, np.mgrid[:inputs, :outputs])
    return i, o, i * outputs + o


def convolution_triplets(shape, size, stride, padding, filters, shared=True):
    """Of a convolution `(height, width, channels)` → `(height', width', filters)`, by loops.

    Without sharing every position has a kernel of its own, one after the other.
    """
    height, width, channels = shape
    if padding == "same":
        out = [-(-length // stride) for length in shape[:2]]
        before = [max((o - 1) * stride + size - length, 0) // 2 for o, length in zip(out, shape[:2], strict=True)]
    else:
        out, before = [(length - size) // stride + 1 for length in shape[:2]], [0, 0]
    triplets = []
    for row, column, a, b in itertools.product(range(out[0]), range(out[1]), range(size), range(size)):
        y, x = row * stride + a - before[0], column * stride + b - before[1]
        if not (0 <= y < height and 0 <= x < width):
            continue
        position = 0 if shared else row * out[1] + column
        for c, f in itertools.product(range(channels), range(filters)):
            triplets.append(
                (
                    (y * width + x) * channels + c,
                    (row * out[1] + column) * filters + f,
                    (((position * size + a) * size + b) * channels + c) * filters + f,
                )
            )
    return (*np.array(triplets).T, (*out, filters))


class Layer:
    """`s(x ∗ kernel + bias)` on flat vectors; `channels` output units in a row have biases of their own."""

    def __init__(self, triplets, inputs, outputs, channels, activation):
        self.i, self.o, self.k = triplets
        self.inputs, self.outputs, self.activation = inputs, outputs, activation
        self.biases = np.arange(outputs) % channels
        self.kernel = self.bias = None

    def __call__(self, x):
        matrix = np.zeros((self.inputs, self.outputs))
        np.add.at(matrix, (self.i, self.o), self.kernel.ravel()[self.k])
        self.matrix = matrix
        a = x @ matrix + self.bias[self.biases]
        return np.tanh(a) if self.activation == "tanh" else a

    def gradients(self, x, y, signal):
        """For the error `signal` at the output `y = self(x)`."""
        delta = signal * (1 - y**2) if self.activation == "tanh" else signal
        outer, kernel, bias = x.T @ delta, np.zeros(self.kernel.size), np.zeros(self.bias.size)
        np.add.at(kernel, self.k, outer[self.i, self.o])
        np.add.at(bias, self.biases, delta.sum(0))
        return [kernel.reshape(self.kernel.shape), bias]


def softmax(a):
    exponentials = np.exp(a - a.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


class Network:
    """Layers, inverses (None where there is none) and the projection of AO-SDTP.

    `kind` is "tp", "dtp", "sdtp", "ao_sdtp" or "ldrl"; further options are those of the rules.
    """

    def __init__(self, kind, layers, inverses, projection=None, **options):
        self.kind, self.layers, self.inverses, self.projection = kind, layers, inverses, projection
        self.options = options
        self.predict = softmax if options.get("loss") != "mean_squared_error" else lambda a: a
        self.output = self.predict if kind != "ldrl" else lambda a: a

    def forward(self, x):
        h = [x]
        for layer in self.layers:
            h.append(layer(h[-1]))
        return [*h[:-1], self.output(h[-1])]

    def seen(self, number, h):
        """What inverse `number` gets when its stage's input is `h`."""
        y = self.layers[number](h)
        if number < len(self.layers) - 1:
            return y
        y = self.output(y)
        return np.hstack([y, np.tanh(h @ self.projection)]) if self.kind == "ao_sdtp" else y

    def targets(self, x, target):
        h, last = self.forward(x), len(self.layers)
        if self.kind == "ldrl":
            target = h[last] - self.options["target_step"] * (self.predict(h[last]) - target)
        aim = h[last] + self.options.get("target_step", 1.0) * (target - h[last])  # of sdtp, ao_sdtp

        def g(number, u):
            """Inverts stage `number`, from 1."""
            return self.inverses[number - 1](u)

        t = {last: target}
        if self.kind == "dtp":
            step = self.options["target_step"] / (len(x) if self.options["target_reduction"] == "batch" else 1)
            self.layers[-1](h[-2])
            t[last - 1] = h[last - 1] - step * (h[last] - target) @ self.layers[-1].matrix.T
        elif self.kind == "ao_sdtp":
            z = np.tanh(h[last - 1] @ self.projection)
            t[last - 1] = h[last - 1] - g(last, np.hstack([h[last], z])) + g(last, np.hstack([aim, z]))
        elif self.kind in ("sdtp", "ldrl"):
            t[last - 1] = h[last - 1] - g(last, h[last]) + g(last, aim if self.kind == "sdtp" else target)
        else:
            t[last - 1] = g(last, target)
        for k in range(last - 2, 0, -1):
            t[k] = g(k + 1, t[k + 1])
            if self.kind != "tp":
                t[k] = h[k] + t[k] - g(k + 1, h[k + 1])
        return [(h[k], t[k]) for k in range(1, last + 1)]

    def gradients(self, x, target, weights, noise):
        """Of all layers, then of all inverses; `noise[number]` is standard normal, the shape of the stage's input."""
        h, w = self.forward(x), weights[:, None]

        def units(a):
            return 1 if self.options["reduction"] == "sum" else a.shape[1]

        forward, feedback = [], []
        for number, ((y, t), layer) in enumerate(zip(self.targets(x, target), self.layers, strict=True)):
            if self.kind == "ldrl":
                signal = w * (y - t) / units(y)
            else:
                signal = w * (y - t) if layer is self.layers[-1] else 2 * w * (y - t) / units(y)
            forward += layer.gradients(h[number], y, signal)
        for number, g in enumerate(self.inverses):
            if g is None:
                continue
            delta = self.options["noise"] * noise[number]
            noisy = h[number] + delta
            if self.options["reconstruction"] == "ldrl":
                scale = w / units(noisy)
                u = self.seen(number, h[number])
                epsilon = self.options["noise"] * noise[number + len(self.layers)]
                images = (self.seen(number, noisy), u, u + epsilon)
                r = [g(image) for image in images]
                pull = 2 * scale * (r[2] - r[1])
                signals = (-2 * scale * delta, 2 * scale * delta - pull, pull)
                parts = []
                for image, signal in zip(images, signals, strict=True):
                    parts.append(g.gradients(image, g(image), signal))
                feedback += [sum(each) for each in zip(*parts, strict=True)]
                continue
            u = self.seen(number, noisy)
            wanted = noisy if self.options["reconstruction"] == "preserve" else h[number]
            r = g(u)
            feedback += g.gradients(u, r, 2 * w * (r - wanted) / units(r))
        return forward, feedback

    def diagnostics(self, x, target):
        """Loss of inverses, distance of targets, and how far they are met, from above the stages concerned."""
        pairs, figures = self.targets(x, target), {}

        def norm(a):
            return np.linalg.norm(a, axis=1)

        for number, ((h, t), layer, g) in enumerate(zip(pairs, self.layers, self.inverses, strict=True)):
            figures["target_distance", number] = np.linalg.norm(t - h) / np.linalg.norm(h)
            if g is not None:
                below = pairs[number - 1][0]
                figures["reconstruction", number] = np.mean(norm(g(self.seen(number, below)) - below) ** 2)
            if number > 0:
                now = layer(pairs[number - 1][1])
                now = self.output(now) if layer is self.layers[-1] else now
                figures["target_approach", number] = np.linalg.norm(now - t) / np.linalg.norm(h - t)
                figures["closer", number] = np.mean(norm(now - t) < norm(h - t))
        return figures
