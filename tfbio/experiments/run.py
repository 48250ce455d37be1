"""One run in its directory: training, evaluation, export.

A `Run` is its settings (`tfbio.experiments.assembly`). `train` carries it out in a work directory and can be called
again after any interruption; `evaluate` and `export` use what the directory holds. Nothing here knows of gin.

A run directory holds `run.json` (what the run is), `metrics.jsonl` (a line an epoch), `tensorboard/`, `checkpoints/`,
`best.weights.h5` (where a split selects), `result.json` (once finished) and `export/` (once exported).
"""

import os
import platform
import tempfile
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from etils.epath import Path

from tfbio import export as exporting
from tfbio.analysis.alignment import Alignment
from tfbio.experiments.assembly import Assembly, Run
from tfbio.experiments.workdir import WorkdirError, claim, read_json
from tfbio.files import check_no_pattern, read_lines, write_json
from tfbio.training import BestWeights, Checkpoints, JsonLines, Replayed, TensorBoardScalars
from tfbio.training.feeds import first_batch

__all__ = ["Run", "WorkdirError", "evaluate", "export", "train"]

_BEST = "best.weights.h5"


def _prefix(split: str) -> str:
    """How the figures of a split begin, as Keras has it."""
    return "val" if split == "validation" else split


def train(workdir: str, run: Run, quiet: bool = False, on_built: Callable[[], None] | None = None) -> dict[str, Any]:
    """Trains, or goes on where the directory's last checkpoint stands, and writes `result.json`.

    Args:
        workdir: the run directory; made if need be.
        run: the settings. A directory that holds another run is refused; more `epochs` go on from its end.
        quiet: print nothing.
        on_built: called once everything is built, the directory is this run's and there is something left to train.

    Returns:
        The content of `result.json`. Every one of several workers calls this, on a directory that all of them see, and
        gets the same; the first alone writes.

    Raises:
        WorkdirError: the directory holds a run with other settings.
        TrainingInterrupted: Ctrl-C or SIGTERM; the state is saved.
        NonFiniteLoss, ValueError, OSError: as `Trainer.fit` and `tfbio.data.load`.
    """
    started = time.monotonic()
    check_no_pattern("workdir", workdir)
    folder = Path(workdir)
    parts = Assembly(run)
    trainer = parts.trainer
    chief = trainer.workers.chief
    quiet = quiet or not chief
    claim(folder, parts.describe(), write=chief)
    checkpoints = Checkpoints(str(folder / "checkpoints"), run.checkpoint_steps, run.checkpoint_seconds)
    step = trainer.restore(checkpoints)
    result = read_json(folder / "result.json")
    trainer.workers.agree(0)  # all have read what the chief changes from here on
    if result is not None and result["epochs"] >= run.epochs:
        return result
    # All of them now, those of the end too: what can't be loaded is then no news after hours of training.
    splits = {name: parts.split(name) for name in ("train", "validation", "test")}
    splits = {name: split for name, split in splits.items() if split is not None}
    held_out = {_prefix(name): splits[name] for name in run.evaluate_on if name in splits}
    measures = _alignment(parts, splits["train"], str(folder / "alignment.jsonl") if chief else os.devnull)
    lines = folder / "metrics.jsonl"
    before = [line for line in read_lines(lines) if line["step"] <= step]  # later epochs are trained again
    writers = [JsonLines(str(lines)), TensorBoardScalars(str(folder / "tensorboard"))]
    figure = f"{_prefix(run.select_on)}_{'error' if trainer.loss.classifies else 'loss'}"
    if _prefix(run.select_on) in held_out:
        writers.insert(0, BestWeights(str(folder / _BEST), figure, before))
    callbacks = [measures, *(writers if chief else [])]
    if run.patience is not None:
        callbacks.append(_early_stopping(run, held_out, before))
    if on_built is not None and chief:
        on_built()
    if step and not quiet:
        print(f"going on from step {step} ({checkpoints.last})", flush=True)
    if chief:
        (folder / "result.json").unlink(missing_ok=True)
    trainer.fit(
        parts.train_data,
        validation_data=held_out,
        epochs=run.epochs,
        callbacks=[callback for callback in callbacks if callback is not None],
        checkpoints=checkpoints,
        verbose=not quiet,
    )

    history = read_lines(lines)
    final = {}
    for name, split in splits.items():
        final.update({f"{_prefix(name)}_{key}": value for key, value in trainer.evaluate(split).items()})
    measured = measures.measure() if measures else None
    result = {
        "format": 1,
        "labels": parts.labels(),
        "seed": run.seed,
        "epochs": history[-1]["epoch"],
        "steps": int(trainer.step.numpy()),
        "parameters": int(sum(np.prod(v.shape) for v in trainer.model.trainable_variables)),
        "final": final,
        "best": _best(run, history, figure),
        "alignment": measured,
        "published": run.published,
        "train_seconds": sum(line["seconds"] for line in history),
        "wall_seconds": time.monotonic() - started,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__, "python": platform.python_version()},
    }
    if chief:
        write_json(folder / "result.json", result)
    return result


def evaluate(workdir: str, run: Run, split: str = "test", best: bool = False) -> dict[str, float]:
    """The figures of a directory's last checkpoint on a split: `loss`, and `error` and `accuracy` of classifiers.

    Args:
        workdir: the run directory.
        run: its settings.
        split: "train", "validation" or "test".
        best: of the best epoch's weights instead.

    Raises:
        WorkdirError: the directory holds no checkpoint of this run, or nothing selected a best epoch.
        ValueError: unknown split, or no validation split was set aside.
    """
    parts = _restored(workdir, run, best)
    examples = parts.split(split)
    if examples is None:
        raise ValueError("Invalid value for `split`: this run set no validation examples aside, received 'validation'.")
    return parts.trainer.evaluate(examples)


def export(workdir: str, run: Run, preprocessing: bool = False, best: bool = False) -> tuple[str, str]:
    """Writes the directory's last checkpoint as `export/model.keras` and `export/saved_model`; both are plain Keras.

    Args:
        workdir: the run directory.
        run: its settings.
        preprocessing: put preprocessing and output activation inside: uint8 in, probabilities out.
        best: write the best epoch's weights instead.

    Returns:
        The two paths.

    Raises:
        WorkdirError: the directory holds no checkpoint of this run, or nothing selected a best epoch.
    """
    trainer = _restored(workdir, run, best).trainer
    model = trainer.model
    if preprocessing:
        model = exporting.with_preprocessing(model, trainer.preprocessing, trainer.loss)
    return exporting.export(model, str(Path(workdir) / "export"))


def _restored(workdir: str, run: Run, best: bool = False) -> Assembly:
    check_no_pattern("workdir", workdir)
    folder = Path(workdir)
    if not (folder / "run.json").exists():
        raise WorkdirError(f"{folder} is no run directory: it has no run.json. Train there first: tfbio train.")
    parts = Assembly(run)
    claim(folder, parts.describe())
    if not parts.trainer.restore(Checkpoints(str(folder / "checkpoints"))):
        raise WorkdirError(f"{folder} holds no checkpoint yet. Go on training there first: tfbio train.")
    if best:
        if not (folder / _BEST).exists():
            raise WorkdirError(
                f"{folder} holds no best weights: nothing selected an epoch. Set validation examples aside and name "
                "them in `evaluate_on`, or name 'test' there and in `select_on`."
            )
        with tempfile.TemporaryDirectory() as local:
            weights = (folder / _BEST).copy(Path(local) / _BEST)  # Keras reads local files
            parts.trainer.model.load_weights(str(weights))
    else:
        parts.trainer.finish()
    return parts


def _early_stopping(run: Run, held_out: dict, history: list[dict]) -> keras.callbacks.EarlyStopping:
    name = _prefix(run.select_on)
    if name not in held_out:
        raise ValueError(
            f"Invalid value for `patience`: it needs the {run.select_on} split's loss after every epoch; set some of "
            f"the training data aside (validation=… of the data set) and name it in `evaluate_on`, received "
            f"{run.evaluate_on}."
        )
    callback = keras.callbacks.EarlyStopping(f"{name}_loss", patience=run.patience, mode="min")
    return Replayed(callback, history)


def _alignment(parts: Assembly, examples: Any, path: str) -> Alignment | None:
    if not (parts.run.alignment or parts.run.alignment_steps):
        return None
    x, y = first_batch(examples)
    trainer, every = parts.trainer, parts.run.alignment_steps
    return Alignment(trainer.rule, trainer.preprocessing(x), y, trainer.strategy, every, path if every else None)


def _best(run: Run, history: list[dict], figure: str) -> dict[str, Any] | None:
    """The epoch with the smallest `figure`, an error (loss, of regressions) on `select_on`, if that was evaluated."""
    history = [line for line in history if figure in line]
    if not history:
        return None
    line = min(history, key=lambda line: line[figure])
    figures = {kind: line[kind] for kind in ("test_error", "test_loss") if kind in line}
    return {"selected_on": run.select_on, "epoch": line["epoch"], figure.partition("_")[2]: line[figure], **figures}
