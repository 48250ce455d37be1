"""The console command: `tfbio train|evaluate|export|study|report`, also `python -m tfbio`."""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfbio.files import is_remote

__all__ = ["main"]

_USAGE = """tfbio: trains Keras models with learning rules other than backpropagation.

  tfbio train    --gin_file=quickstart.gin [--gin_param="train.epochs=5"] [--workdir=runs/q]
  tfbio evaluate --workdir=runs/q [--split=test] [--best]
  tfbio export   --workdir=runs/q [--preprocessing] [--best]
  tfbio study    --gin_file=studies/digits.gin [--workdir=runs/digits] [--workers=2]
  tfbio report   runs/digits

A gin file is found by its path or by its name in the installed gin tree. train and study go on where they were stopped.
"""

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string("gin_file", [], "A gin file; may be repeated, later ones win.", flag_values=FLAGS)
flags.DEFINE_multi_string("gin_param", [], 'A binding, "train.epochs=5"; may be repeated.', flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "The run's (or study's) folder; by default runs/<gin file>.", flag_values=FLAGS)
flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets has its prepared sets.", flag_values=FLAGS)
flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "What to evaluate on.", flag_values=FLAGS)
flags.DEFINE_bool("preprocessing", False, "Export uint8 images in, probabilities out.", flag_values=FLAGS)
flags.DEFINE_bool("best", False, "Use the best epoch's weights, not the last ones.", flag_values=FLAGS)
flags.DEFINE_integer("workers", None, "Processes of a study.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.", flag_values=FLAGS)


def _workdir() -> str:
    if FLAGS.workdir:
        return FLAGS.workdir
    return str(Path("runs") / Path(FLAGS.gin_file[-1]).with_suffix("")) if FLAGS.gin_file else ""


def _params() -> list[str]:
    own = []
    if FLAGS.data_dir:
        data_dir = FLAGS.data_dir if is_remote(FLAGS.data_dir) else os.path.abspath(FLAGS.data_dir)
        own = [f"load.data_dir={data_dir!r}"]
    return [*own, *FLAGS.gin_param]


def _need(value: object, flag: str) -> None:
    if not value:
        raise flags.Error(f"this command needs {flag}")


def _train() -> None:
    from tfbio.experiments import config

    _need(FLAGS.gin_file, "--gin_file")
    workdir = _workdir()
    result = config.run_train(FLAGS.gin_file, _params(), workdir)
    errors = {name: value for name, value in result["final"].items() if name.endswith("error")}
    figures = {name: f"{100 * value:.2f} %" for name, value in errors.items()} or {
        name: f"{value:.4g}" for name, value in result["final"].items()
    }
    print(f"finished: {', '.join(f'{name} {value}' for name, value in figures.items())}; everything is in {workdir}")


def _evaluate() -> None:
    from tfbio.experiments import config

    _need(FLAGS.workdir, "--workdir")
    for name, value in config.run_evaluate(FLAGS.workdir, _params(), FLAGS.split, FLAGS.best).items():
        print(f"{FLAGS.split}_{name} {value:.6g}")


def _export() -> None:
    from tfbio.experiments import config

    _need(FLAGS.workdir, "--workdir")
    for path in config.run_export(FLAGS.workdir, _params(), FLAGS.preprocessing, FLAGS.best):
        print(path)


def _study() -> None:
    from tfbio.experiments import config

    _need(FLAGS.gin_file, "--gin_file")
    config.run_study(FLAGS.gin_file, _params(), _workdir(), FLAGS.workers)


def _report(directories: Sequence[str]) -> None:
    from tfbio.analysis import report

    directories = [*directories, *([FLAGS.workdir] if FLAGS.workdir else [])]
    _need(directories, "a folder")
    for directory in directories:
        print(report(directory))


_COMMANDS = {"train": _train, "evaluate": _evaluate, "export": _export, "study": _study, "report": _report}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the arguments after the program's name; None for the process's.

    Returns:
        The exit code: 0; 1 for what went wrong with a run; 2 for a wrong call; 128 + the signal that stopped it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_USAGE + "\nFlags:\n" + FLAGS.get_help())
        return 0
    logging.basicConfig(format="%(message)s")
    FLAGS.unparse_flags()
    try:
        positional = FLAGS(["tfbio", *argv])[1:]
        if not positional or positional[0] not in _COMMANDS:
            raise flags.Error(f"unknown command {argv[0]!r}; there are {', '.join(_COMMANDS)}")
        command, *rest = positional
        if rest and command != "report":
            raise flags.Error(f"unexpected argument {rest[0]!r}; flags begin with --")
    except flags.Error as error:
        print(f"tfbio: {error}\n\n{_USAGE}", file=sys.stderr)
        return 2
    try:
        _report(rest) if command == "report" else _COMMANDS[command]()
    except flags.Error as error:
        print(f"tfbio {command}: {error}\n\n{_USAGE}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"tfbio: {error or 'stopped.'} The same command goes on from there.", file=sys.stderr)
        return 128 + getattr(error, "signal_number", 2)
    except Exception as error:
        if FLAGS.debug or not isinstance(error, (ValueError, OSError, RuntimeError, ArithmeticError)):
            traceback.print_exc()
        sentence = str(error).partition("\n  In call to configurable")[0]  # gin names the call; no news to the user
        print(f"tfbio: {sentence}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
