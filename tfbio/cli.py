"""The console command: `tfbio train|evaluate|export|study|report`, also `python -m tfbio`.

Commands import what they need when they run, because TensorFlow takes seconds to import.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from tfbio import __version__
from tfbio.files import is_remote
from tfbio.startup import import_tensorflow

__all__ = ["main"]

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string("gin_file", [], "A gin file; may be repeated, later ones win.", flag_values=FLAGS)
flags.DEFINE_multi_string("gin_param", [], 'A binding, "train.epochs=5"; may be repeated.', flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "The folder of the run or study; by default runs/<gin file>.", flag_values=FLAGS)
flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets has its prepared sets.", flag_values=FLAGS)
flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "What to evaluate on.", flag_values=FLAGS)
flags.DEFINE_bool("preprocessing", False, "Export uint8 images in, probabilities out.", flag_values=FLAGS)
flags.DEFINE_bool("best", False, "Use the best epoch's weights, not the last ones.", flag_values=FLAGS)
flags.DEFINE_integer("processes", None, "How many runs train at the same time.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.", flag_values=FLAGS)
flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=FLAGS)
flags.DEFINE_bool("version", False, "Show the version.", flag_values=FLAGS)

_COMMON_FLAGS = ("debug", "help", "version")


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


def _find_modules_here() -> None:
    """Puts the current folder on Python's path, as `python -m tfbio` does: gin files import users' modules from it."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())


def _need(value: object, flag: str) -> None:
    if not value:
        raise flags.Error(f"this command needs {flag}.")


def _train(_: Sequence[str]) -> None:
    _need(FLAGS.gin_file, "--gin_file")
    import_tensorflow()
    from tfbio.experiments import config

    workdir = _workdir()
    result = config.run_train(FLAGS.gin_file, _params(), workdir)
    errors = {name: value for name, value in result["final"].items() if name.endswith("error")}
    figures = {name: f"{100 * value:.2f} %" for name, value in errors.items()} or {
        name: f"{value:.4g}" for name, value in result["final"].items()
    }
    print(f"finished: {', '.join(f'{name} {value}' for name, value in figures.items())}; everything is in {workdir}")


def _evaluate(_: Sequence[str]) -> None:
    _need(FLAGS.workdir, "--workdir")
    import_tensorflow()
    from tfbio.experiments import config

    for name, value in config.run_evaluate(FLAGS.workdir, _params(), FLAGS.split, FLAGS.best).items():
        print(f"{FLAGS.split}_{name} {value:.6g}")


def _export(_: Sequence[str]) -> None:
    _need(FLAGS.workdir, "--workdir")
    import_tensorflow()
    from tfbio.experiments import config

    for path in config.run_export(FLAGS.workdir, _params(), FLAGS.preprocessing, FLAGS.best):
        print(path)


def _study(_: Sequence[str]) -> None:
    _need(FLAGS.gin_file, "--gin_file")
    import_tensorflow()
    from tfbio.experiments import config

    config.run_study(FLAGS.gin_file, _params(), _workdir(), FLAGS.processes)


def _report(directories: Sequence[str]) -> None:
    directories = [*directories, *([FLAGS.workdir] if FLAGS.workdir else [])]
    _need(directories, "a folder")
    from tfbio.analysis import report

    for directory in directories:
        print(report(directory))


class _Command(NamedTuple):
    run: Callable[[Sequence[str]], None]  # called with the arguments that are no flags
    summary: str
    usage: str
    flags: tuple[str, ...]  # besides _COMMON_FLAGS


_COMMANDS = {
    "train": _Command(
        _train,
        "trains a run, or continues it",
        '--gin_file=quickstart.gin [--gin_param="train.epochs=5"] [--workdir=runs/q]',
        ("gin_file", "gin_param", "workdir", "data_dir"),
    ),
    "evaluate": _Command(
        _evaluate,
        "evaluates a run on a split of its data set",
        "--workdir=runs/q [--split=test] [--best]",
        ("workdir", "split", "best", "gin_param", "data_dir"),
    ),
    "export": _Command(
        _export,
        "writes a run's model as a .keras file and a SavedModel",
        "--workdir=runs/q [--preprocessing] [--best]",
        ("workdir", "preprocessing", "best", "gin_param", "data_dir"),
    ),
    "study": _Command(
        _study,
        "trains a grid of runs, or continues it, and reports on them",
        "--gin_file=studies/digits.gin [--workdir=runs/digits] [--processes=2]",
        ("gin_file", "gin_param", "workdir", "processes", "data_dir"),
    ),
    "report": _Command(_report, "writes tables and pictures of the runs in a folder", "runs/digits", ("workdir",)),
}


def _usage(name: str | None) -> str:
    """Returns an example of a command, or of each."""
    return "".join(f"  tfbio {each:8} {_COMMANDS[each].usage}\n" for each in ([name] if name else _COMMANDS))


def _help(name: str | None) -> str:
    """Returns what a command does and its flags, or what there is."""
    if name is None:
        return (
            "tfbio: trains Keras models with learning rules other than backpropagation.\n\n"
            f"{_usage(None)}\n"
            "tfbio COMMAND --help shows a command's flags. A gin file is found by its path, or by its name in the\n"
            "installed gin tree. train and study continue where they were stopped."
        )
    own = flags.FlagValues()
    for flag in (*_COMMANDS[name].flags, *_COMMON_FLAGS):
        own[flag] = FLAGS[flag]
    return f"tfbio {name}: {_COMMANDS[name].summary}.\n\n{_usage(name)}\nFlags:\n{own.get_help()}"


def _check_flags(name: str) -> None:
    """Refuses a flag that only other commands take."""
    for flag in FLAGS:
        if FLAGS[flag].present and flag not in (*_COMMANDS[name].flags, *_COMMON_FLAGS):
            others = [other for other, command in _COMMANDS.items() if flag in command.flags]
            raise flags.Error(f"--{flag} is a flag of {' and '.join(others)}, not of {name}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the arguments after the program's name; None for the process's.

    Returns:
        The exit code: 0; 1 if a run fails; 2 for a wrong call; 128 + the signal that stopped it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s")
    FLAGS.unparse_flags()
    name = None
    try:
        words = FLAGS(["tfbio", *argv])[1:]
        if FLAGS.version:
            print(f"tfbio {__version__}")
            return 0
        wants_help = FLAGS.help or not argv or words[:1] == ["help"]
        words = words[1:] if words[:1] == ["help"] else words
        if words and words[0] not in _COMMANDS:
            raise flags.Error(f"unknown command {words[0]!r}; there are {', '.join(_COMMANDS)}.")
        name, *rest = words or [None]
        if wants_help:
            print(_help(name))
            return 0
        if name is None:
            raise flags.Error(f"a command is missing; there are {', '.join(_COMMANDS)}.")
        _check_flags(name)
        if rest and name != "report":
            raise flags.Error(f"unexpected argument {rest[0]!r}; flags begin with --.")
        _find_modules_here()
        _COMMANDS[name].run(rest)
    except flags.Error as error:
        print(f"tfbio{' ' + name if name else ''}: {error}\n\n{_usage(name)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"tfbio: {error or 'stopped.'} The same command continues from there.", file=sys.stderr)
        return 128 + getattr(error, "signal_number", 2)
    except Exception as error:
        if FLAGS.debug or not isinstance(error, (ValueError, OSError, RuntimeError, ArithmeticError)):
            traceback.print_exc()
        from tfbio.experiments.gin_internals import own_message

        print(f"tfbio: {own_message(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
