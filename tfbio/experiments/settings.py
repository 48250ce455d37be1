"""The settings of a run. They can be made without gin."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tfbio import data, models

__all__ = ["Run"]


@dataclass
class Run:
    """The settings of a run.

    Attributes:
        load: the data set, as `tfbio.data.load`: called with `split`, `batch_size` and `seed`, and to evaluate with
            `shuffle=False` too, and with `augmentation=None` and `drop_remainder=False` if it takes these.
        model: the network: called with `input_shape` and `classes`, returns a plain Keras model with logits out.
        rule: a `tfbio.rules` rule, name or config, or a function that makes one.
        initial_weights: a `.keras` or `.weights.h5` file of a model with the same layers, whose weights this one starts
            with; None for those that it is made with.
        optimizer: for the model's variables: a name or config, or a function that makes one.
        feedback_optimizer: for feedback variables that learn; None as for `Trainer`.
        loss: whatever `tfbio.losses.get` takes.
        metrics: Keras metrics to evaluate beside loss and error, as `Trainer` takes them, or classes of such.
        epochs: passes over the training data, in all.
        batch_size: examples in a global batch.
        accumulation_steps: take every batch in so many parts, one after the other, where memory asks for it.
        seed: of weights, feedback, the order of examples and augmentation.
        strategy: `"one_device"`, `"mirrored"`, `"multi_worker"` or `"tpu"`: see `tfbio.training.strategies`.
        tpu: which TPU the strategy "tpu" takes: a name, an address, "local", or "" for the environment's.
        jit_compile: compile with XLA: True, False or "auto".
        precision: Keras's dtype policy: "float32", "mixed_bfloat16" (TPUs, recent GPUs), "mixed_float16", "float64".
        evaluate_on: splits to evaluate after every epoch, of "validation" and "test".
        select_on: the split whose error chooses the best epoch, the weights of which are kept apart: "validation"
            (used when there is one), or "test", which `evaluate_on` must name then and which makes the figure
            optimistic; it is named so wherever it is shown.
        patience: stop after so many epochs without a better loss on `select_on`; None trains all epochs.
        min_delta: by how much a loss must be smaller than the best one so far to count as better, for `patience`.
        callbacks: Keras callbacks for training, or functions that make them. They see the figures of the alignment, and
            theirs are written with these. Of several workers, each calls its own.
        alignment: measure after every epoch how far the rule is from backpropagation (`tfbio.analysis.alignment`).
        alignment_steps: measure it after every so many steps too, into `alignment.jsonl`.
        checkpoint_steps: save every so many steps; None saves by time alone, and at the end.
        checkpoint_seconds: save whenever so many seconds have passed.
        published: figures from a paper to show beside, `{"test_error": 0.0148, "source": "…"}`.
        labels: what to call the parts of this run in tables; by default data set, network and rule.
    """

    load: Callable = data.load
    model: Callable = models.fully_connected
    rule: Any = "bp"
    initial_weights: str | os.PathLike | None = None
    optimizer: Any = "adam"
    feedback_optimizer: Any = None
    loss: Any = "softmax_cross_entropy"
    metrics: Any = ()
    epochs: int = 10
    batch_size: int = 64
    accumulation_steps: int = 1
    seed: int = 0
    strategy: str = "one_device"
    tpu: str = ""
    jit_compile: bool | str = "auto"
    precision: str = "float32"
    evaluate_on: Sequence[str] = ("validation",)
    select_on: str = "validation"
    patience: int | None = None
    min_delta: float = 0.0
    callbacks: Sequence[Any] = ()
    alignment: bool = False
    alignment_steps: int | None = None
    checkpoint_steps: int | None = None
    checkpoint_seconds: float = 300.0
    published: dict[str, Any] | None = None
    labels: dict[str, str] | None = None

    def __post_init__(self):
        for name in ("epochs", "batch_size", "alignment_steps", "checkpoint_steps"):
            value, optional = getattr(self, name), name.endswith("_steps")
            if not (isinstance(value, int) and value >= 1 or optional and value is None):
                expected = "a positive int or None" if optional else "a positive int"
                raise ValueError(f"Invalid value for `{name}`: expected {expected}, received {value!r}.")
        if self.min_delta < 0 or self.min_delta and self.patience is None:
            expected = "a number from 0" if self.min_delta < 0 else "0 without `patience`"
            raise ValueError(f"Invalid value for `min_delta`: expected {expected}, received {self.min_delta!r}.")
        if self.initial_weights is not None and not str(self.initial_weights).endswith((".keras", ".weights.h5")):
            raise ValueError(
                "Invalid value for `initial_weights`: expected a file whose name ends in .keras or .weights.h5, "
                f"received {self.initial_weights!r}."
            )
        for name, value in {"evaluate_on": self.evaluate_on, "select_on": (self.select_on,)}.items():
            if isinstance(value, str) or not set(value) <= {"validation", "test"}:
                raise ValueError(
                    f"Invalid value for `{name}`: expected splits of 'validation' and 'test', received {value!r}."
                )
        if self.select_on == "test" and "test" not in self.evaluate_on:
            raise ValueError(
                "Invalid value for `select_on`: expected a split that is evaluated after every epoch, received 'test' "
                f'with evaluate_on={tuple(self.evaluate_on)}. Add "test" to evaluate_on.'
            )
