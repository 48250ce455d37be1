"""Keras callbacks in a loop of ours: the model they see, and those that runs have.

Epoch hooks are called every epoch; batch hooks once a loop, that is once each `steps_per_loop` steps, with the averages
so far, just as Keras calls them once each `steps_per_execution`.
"""

import math
import sys
import tempfile
import time
from typing import Any

import keras
import tensorflow as tf
from etils.epath import Path

from tfbio.files import append_line, keep_lines

__all__ = ["BestWeights", "CallbackModel", "JsonLines", "Progress", "Replayed", "TensorBoardScalars", "as_list"]


def as_list(callbacks: Any) -> list:
    """What users pass as `callbacks`, as a list: several, one, or None."""
    if callbacks is None:
        return []
    return [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks)


class CallbackModel:
    """The user's model with what callbacks expect of a compiled one: `optimizer`, `metrics` and `stop_training`.

    Everything else is the model itself, so that a `ModelCheckpoint` saves the plain model.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, metrics: list[keras.metrics.Metric]):
        self._model = model
        self.optimizer = optimizer
        self.metrics = metrics
        self.stop_training = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class JsonLines(keras.callbacks.Callback):
    """Appends one JSON object an epoch to a file: `epoch` (from 1), `step`, `seconds`, and all figures.

    Args:
        path: the file. Lines of epochs that are trained again after a restart are dropped first.
    """

    def __init__(self, path: str):
        super().__init__()
        self._path = Path(path)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        keep_lines(self._path, lambda line: line["epoch"] <= epoch)
        append_line(self._path, {"epoch": epoch + 1, **_figures(logs)})


class BestWeights(keras.callbacks.Callback):
    """Keeps the weights of the epoch whose figure is the smallest, the first of them among equals.

    Args:
        path: a `.weights.h5` file, as the plain model's `load_weights` takes; whole at any moment.
        monitor: the figure's name.
        history: the figures of the epochs of before a restart; those that lack this one are passed over.
    """

    def __init__(self, path: str, monitor: str, history: list[dict]):
        super().__init__()
        self._path, self._monitor = Path(path), monitor
        self._smallest = min((line[monitor] for line in history if monitor in line), default=math.inf)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs[self._monitor] < self._smallest:
            self._smallest = logs[self._monitor]
            part = self._path.with_name(f"{self._path.name}.part")
            with tempfile.TemporaryDirectory() as local:  # Keras writes local files
                self.model.save_weights(f"{local}/best.weights.h5")
                Path(f"{local}/best.weights.h5").copy(part, overwrite=True)
            part.replace(self._path)


class TensorBoardScalars(keras.callbacks.Callback):
    """Writes every figure of an epoch as a TensorBoard scalar, at the step where it was read.

    Args:
        directory: where the event files go.
    """

    def __init__(self, directory: str):
        super().__init__()
        self._directory = directory
        self._writer = None

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._writer = self._writer or tf.summary.create_file_writer(self._directory)
        with self._writer.as_default():
            figures = _figures(logs)
            step = figures.pop("step", epoch + 1)
            for name, value in figures.items():
                tf.summary.scalar(name, value, step=step)
        self._writer.flush()

    def on_train_end(self, logs: dict | None = None) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None


class Progress(keras.callbacks.Callback):
    """A bar within the epoch on a terminal, and one plain line an epoch everywhere."""

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._bar = None
        self._started = time.monotonic()
        if sys.stdout.isatty():
            print(f"epoch {epoch + 1}/{self.params['epochs']}")
            self._bar = keras.utils.Progbar(self.params["steps"])

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self._bar:
            self._bar.stateful_metrics = set(logs or {})  # all are averages already
            self._bar.update(batch + 1, list((logs or {}).items()))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        # Angles of single layers go to the files; a line holds what fits.
        shown = {name: value for name, value in _figures(logs).items() if name == "angle/total" or "/" not in name}
        figures = "  ".join(f"{name} {_readable(name, value)}" for name, value in shown.items())
        end = "\n" if self._bar else ""
        print(f"{end}epoch {epoch + 1}/{self.params['epochs']}  {figures}", flush=True)


class Replayed(keras.callbacks.Callback):
    """A callback that is first shown the epochs of before a restart, so that it stands where it stood."""

    def __init__(self, callback: keras.callbacks.Callback, history: list[dict]):
        super().__init__()
        self._callback, self._history = callback, history

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self._callback.set_model(model)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._callback.on_train_begin(logs)
        for line in self._history:
            self._callback.on_epoch_end(line["epoch"] - 1, line)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._callback.on_epoch_end(epoch, logs)


def _figures(logs: dict | None) -> dict[str, Any]:
    """An epoch's figures; the step as the int that it was before Keras made all of them floats."""
    return {name: int(value) if name == "step" else value for name, value in (logs or {}).items()}


def _readable(name: str, value: float) -> str:
    if name == "step":
        return str(value)
    if name.endswith("error"):
        return f"{100 * value:.2f} %"
    if name.startswith("angle"):
        return f"{value:.1f}°"
    return f"{value:.1f} s" if name == "seconds" else f"{value:.4g}"
