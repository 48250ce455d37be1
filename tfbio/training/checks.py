"""Checks of models, data and results; errors of one sentence."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbio.keras_internals import all_layers
from tfbio.losses import Loss
from tfbio.rules.base import output_shape

__all__ = [
    "NonFiniteLoss",
    "check_batch",
    "check_count",
    "check_finite",
    "check_no_collectives",
    "check_scope",
    "check_seeds",
    "data_in_one",
    "translate_data_errors",
]


class NonFiniteLoss(ArithmeticError):
    """The loss, or a weight, became infinite or NaN.

    Args:
        what: became what, for the message, which also names the step, the layers' norms and the last good checkpoint.
        step: number of steps taken.
        model: the network.
        checkpoints: the run's `Checkpoints`; None without any.
    """

    def __init__(self, what: str, step: int, model: keras.Model, checkpoints: Any):
        norms = ", ".join(f"{v.path} {np.linalg.norm(v.numpy()):.3g}" for v in model.trainable_variables)
        if checkpoints is not None and checkpoints.last:
            kept = f"The last good checkpoint is {checkpoints.last}."
        else:
            kept = "No checkpoint had been saved."
        super().__init__(
            f"{what} at step {step}. {kept} Lower the learning rate, clip gradients "
            f"(clipnorm=… of the optimizer), or use bfloat16 or float32 instead of float16. Norms of the weights after "
            f"that step: {norms}."
        )


def check_finite(variables: list[keras.Variable], step: int, model: keras.Model, checkpoints: Any) -> None:
    """Refuses weights that the last update has made infinite or NaN: its loss was of the weights before.

    Args:
        variables: what learns.
        step, model, checkpoints: as for `NonFiniteLoss`.

    Raises:
        NonFiniteLoss: as the loss of the next step would.
    """
    finite = [tf.reduce_all(tf.math.is_finite(variable.value)) for variable in variables]
    if not tf.reduce_all(finite):
        raise NonFiniteLoss("Weights became infinite or NaN", step, model, checkpoints)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuses what is not a whole number of at least `least`.

    Raises:
        ValueError: names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"Invalid value for `{name}`: expected an int of at least {least}, received {value!r}.")


def data_in_one(method: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a method whose data are one argument an error that says so to who calls it as Keras's `method(x, y)`."""

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        apart = any(not (each is None or isinstance(each, (int, np.integer))) for each in args[1:])
        if apart or kwargs.keys() & {"x", "y", "sample_weight"}:
            name = method.__name__
            raise TypeError(
                f"Invalid arguments for `{name}`: expected the data in one, received them apart, as in {name}(x, y). "
                f"Call {name}((x, y)), or {name}((x, y, sample_weight))."
            )
        return method(self, *args, **kwargs)

    return checked


def check_scope(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Refuses a model whose variables do not live under `strategy`.

    Raises:
        ValueError: says to build the model in the scope.
    """
    if not isinstance(model, keras.Model) or not model.built:
        return  # the rule says what is wrong with it
    for variable in model.variables:
        if not strategy.extended.variable_created_in_scope(variable.value):
            raise ValueError(
                f"Invalid value for `model`: {variable.path!r} was made outside the strategy's scope. Build the model "
                "within `with strategy.scope():`, or make its Trainer within the scope in which the model was made."
            )


def check_no_collectives(model: keras.Model, argument: str, value: Any) -> None:
    """Refuses layers that reduce over replicas, for replicas can't meet within compiled code or a part of a step.

    Args:
        model: the network.
        argument: what asks for that, for the error.
        value: its value.

    Raises:
        ValueError: names the layer.
    """
    for layer in all_layers(model):
        if getattr(layer, "synchronized", False):
            raise ValueError(
                f"Invalid value for `{argument}`: {layer.name!r} is synchronized over replicas, which can't meet "
                f"within compiled code or a part of a step; leave `{argument}` out, or make the layer with "
                f"synchronized=False, received {value}."
            )


def check_seeds(preprocessing: keras.layers.Layer, strategy: tf.distribute.Strategy) -> None:
    """Refuses preprocessing whose random state several replicas would move from outside the strategy's scope.

    Raises:
        ValueError: says to make it in the scope.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    for variable in preprocessing.variables:
        if "seed" in variable.path and not strategy.extended.variable_created_in_scope(variable.value):
            raise ValueError(
                f"Invalid value for `preprocessing`: {variable.path!r} was made outside the strategy's scope. Make "
                "layers that draw random numbers within `with strategy.scope():`."
            )


def check_batch(model: keras.Model, loss: Loss, x: Any, y: Any) -> None:
    """Refuses data that do not fit the model, on the evidence of one batch.

    Args:
        model: the network.
        loss: says what labels it takes.
        x: inputs of one batch, eager, preprocessed.
        y: labels of one batch, eager.

    Raises:
        ValueError: wrong shape of images, wrong shape or range of labels.
    """
    expected = getattr(model, "input_shape", None)
    received = tuple(x.shape) if isinstance(x, tf.Tensor) else None
    if isinstance(expected, tuple) and received is not None:
        if not tf.TensorShape([None, *expected[1:]]).is_compatible_with(received):
            raise ValueError(
                f"Invalid value for the data: {model.name!r} expected inputs of shape {expected}, received a batch of "
                f"shape {received}."
            )
    loss.check_labels(y, output_shape(model, x))


#: Errors that data, and the file systems where they are, can cause.
_DATA_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.FailedPreconditionError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnknownError,
    tf.errors.OutOfRangeError,
    tf.errors.DataLossError,
    tf.errors.NotFoundError,
)


@contextlib.contextmanager
def translate_data_errors(phase: str, faults: Callable[[], list[str]]) -> Iterator[None]:
    """Turns TensorFlow's errors into a sentence if data that can't be read are why.

    Args:
        phase: what goes on.
        faults: finds out which examples can't be read.
    """
    try:
        yield
    except tf.errors.OutOfRangeError as error:
        raise ValueError(
            f"Invalid value for the data: it ended in the middle of {phase}. Pass fewer `steps_per_epoch`, or a data "
            "set whose cardinality is right."
        ) from error
    except _DATA_ERRORS as error:
        try:
            places = faults()
        except _DATA_ERRORS:  # not one example, but a whole file of them
            places = []
        if not places:
            raise
        raise ValueError(
            "Invalid value for the data: expected pictures that can be read and decoded, received "
            f"{places[0]}. Replace it, or leave such pictures out with `corrupt='skip'` of tfbio.data.load."
        ) from error
