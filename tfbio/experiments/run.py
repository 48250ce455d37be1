"""One run in its directory: training, evaluation, export.

A `Run` holds the settings (`tfbio.experiments.settings`). `train` trains it in a work directory and can be called again
after any interruption; `evaluate` and `export` use what the directory holds. This module works without gin.

A run directory holds `run.json` (what the run is), `metrics.jsonl` (a line an epoch), `tensorboard/`, `checkpoints/`,
`best.weights.h5` (where a split selects), `result.json` (once finished) and `export/` (once exported).
"""

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from etils.epath import Path

from tfbio import export as exporting
from tfbio.analysis.alignment import Alignment
from tfbio.experiments.build import BuiltRun, made
from tfbio.experiments.initial_weights import load_weights
from tfbio.experiments.settings import Run
from tfbio.experiments.workdir import WorkdirError, check_same_run, read_json
from tfbio.files import check_no_pattern, read_lines, write_json
from tfbio.training import BestWeights, Checkpoints, JsonLines, Replayed, TensorBoardScalars
from tfbio.training.preprocessing import Preprocessing

__all__ = ["Run", "WorkdirError", "evaluate", "export", "train"]

_BEST = "best.weights.h5"


def _prefix(split: str) -> str:
    """Returns the prefix of a split's figures; Keras's is "val" for validation."""
    return "val" if split == "validation" else split


def train(workdir: str, run: Run, quiet: bool = False, on_built: Callable[[], None] | None = None) -> dict[str, Any]:
    """Trains a run, or continues it from the directory's last checkpoint, and writes `result.json`.

    Args:
        workdir: the run directory; made if it is missing.
        run: the settings. A directory that holds another run is refused. More `epochs` than before continue a finished
            run.
        quiet: print nothing.
        on_built: called before training, once the directory is known to be this run's, if there is something to train.

    Returns:
        The content of `result.json`. If there are several workers, each calls this with a directory that all of them
        see, and gets the same result; only the first one writes.

    Raises:
        WorkdirError: the directory holds a run with other settings.
        TrainingInterrupted: Ctrl-C or SIGTERM, after the state was saved.
        NonFiniteLoss, ValueError, OSError: as `Trainer.fit` and `tfbio.data.load`.
    """
    started = time.monotonic()
    check_no_pattern("workdir", workdir)
    folder = Path(workdir)
    checkpoints = Checkpoints(str(folder / "checkpoints"), run.checkpoint_steps, run.checkpoint_seconds)
    built = BuiltRun(run, starts=not checkpoints.paths())
    trainer = built.trainer
    chief = trainer.workers.chief
    quiet = quiet or not chief
    check_same_run(folder, built.describe(), write=chief)
    step = trainer.restore(checkpoints)
    result = read_json(folder / "result.json")
    trainer.workers.agree(0)  # all have read what the chief changes from here on
    if result is not None and result["epochs"] >= run.epochs:
        return result
    # All splits are loaded now, so that a missing one is an error now and not after hours of training.
    splits = {name: built.split(name) for name in ("train", "validation", "test")}
    splits = {name: split for name, split in splits.items() if split is not None}
    held_out = {_prefix(name): splits[name] for name in run.evaluate_on if name in splits}
    measures = _alignment(built, str(folder / "alignment.jsonl") if chief else os.devnull)
    lines = folder / "metrics.jsonl"
    before = [line for line in read_lines(lines) if line["step"] <= step]  # later epochs are trained again
    writers = [JsonLines(str(lines)), TensorBoardScalars(str(folder / "tensorboard"))]
    figure = f"{_prefix(run.select_on)}_{'error' if trainer.loss.classifies else 'loss'}"
    if _prefix(run.select_on) in held_out:
        writers.insert(0, BestWeights(str(folder / _BEST), figure, before))
    own = [made(callback, keras.callbacks.Callback) for callback in run.callbacks]
    callbacks = [measures, *own, *(writers if chief else [])]
    if run.patience is not None:
        callbacks.append(_early_stopping(run, held_out, before))
    if on_built is not None and chief:
        on_built()
    if step and not quiet:
        print(f"going on from step {step} ({checkpoints.last})", flush=True)
    if chief:
        (folder / "result.json").unlink(missing_ok=True)
    trainer.fit(
        built.train_data,
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
        "labels": built.labels(),
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
    """Evaluates a directory's last checkpoint on a split.

    Args:
        workdir: the run directory.
        run: its settings.
        split: "train", "validation" or "test".
        best: take the best epoch's weights instead.

    Returns:
        `loss`, and for classifiers `error` and `accuracy`.

    Raises:
        WorkdirError: the directory holds no checkpoint of this run, or nothing selected a best epoch.
        ValueError: unknown split, or no validation split was set aside.
    """
    built = _restored(workdir, run, best)
    examples = built.split(split)
    if examples is None:
        raise ValueError("Invalid value for `split`: this run set no validation examples aside, received 'validation'.")
    return built.trainer.evaluate(examples)


def export(workdir: str, run: Run, preprocessing: bool = False, best: bool = False) -> tuple[str, str]:
    """Writes the directory's last checkpoint as `export/model.keras` and `export/saved_model`; both are plain Keras.

    Args:
        workdir: the run directory.
        run: its settings.
        preprocessing: put preprocessing and output activation inside: uint8 in, probabilities out.
        best: take the best epoch's weights instead.

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


def _restored(workdir: str, run: Run, best: bool = False) -> BuiltRun:
    check_no_pattern("workdir", workdir)
    folder = Path(workdir)
    if not (folder / "run.json").exists():
        raise WorkdirError(f"{folder} is no run directory: it has no run.json. Train there first: tfbio train.")
    built = BuiltRun(run, starts=False)
    check_same_run(folder, built.describe())
    if not built.trainer.restore(Checkpoints(str(folder / "checkpoints"))):
        raise WorkdirError(f"{folder} holds no checkpoint yet. Go on training there first: tfbio train.")
    if best:
        if not (folder / _BEST).exists():
            raise WorkdirError(
                f"{folder} holds no best weights: nothing selected an epoch. Set validation examples aside and name "
                "them in `evaluate_on`, or name 'test' there and in `select_on`."
            )
        load_weights(built.trainer.model, folder / _BEST)
    else:
        built.trainer.finish()
    return built


def _early_stopping(run: Run, held_out: dict, history: list[dict]) -> keras.callbacks.EarlyStopping:
    name = _prefix(run.select_on)
    if name not in held_out:
        raise ValueError(
            f"Invalid value for `patience`: it needs the {run.select_on} split's loss after every epoch; set some of "
            f"the training data aside (validation=… of the data set) and name it in `evaluate_on`, received "
            f"{run.evaluate_on}."
        )
    callback = keras.callbacks.EarlyStopping(f"{name}_loss", run.min_delta, run.patience, mode="min")
    return Replayed(callback, history)


def _alignment(built: BuiltRun, path: str) -> Alignment | None:
    if not (built.run.alignment or built.run.alignment_steps):
        return None
    x, y = built.sample()
    trainer, every = built.trainer, built.run.alignment_steps
    x = Preprocessing(trainer.preprocessing)(x, training=False)
    return Alignment(trainer.rule, x, y, trainer.strategy, every, path if every else None)


def _best(run: Run, history: list[dict], figure: str) -> dict[str, Any] | None:
    """Returns the epoch with the smallest `figure` on `select_on`, or None if that was not evaluated."""
    history = [line for line in history if figure in line]
    if not history:
        return None
    line = min(history, key=lambda line: line[figure])
    figures = {kind: line[kind] for kind in ("test_error", "test_loss") if kind in line}
    return {"selected_on": run.select_on, "epoch": line["epoch"], figure.partition("_")[2]: line[figure], **figures}
