"""Reads gin files, and runs the commands that they configure. `configurables` says what gin files can name.

A gin file sets three things: the settings of a run (`train.<attribute of tfbio.experiments.run.Run>`), those of a study
(`study.<argument>`), and the arguments of what these refer to (`@Adam`, `@FeedbackAlignment`, `@fully_connected`,
`@load`, …). All values are resolved before a run is built; training never reads gin.

Files are found by path, or by their name in the `gin/` folder that is installed with the package.
"""

import difflib
import functools
import io
import logging
import re
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin
import tensorflow as tf
from etils import epath

from tfbio.experiments import configurables
from tfbio.experiments import run as runs
from tfbio.experiments.gin_internals import own_message, read_files_by
from tfbio.files import is_remote
from tfbio.training.strategies import is_there

__all__ = ["ConfigError", "load_run", "run_export", "run_evaluate", "run_study", "run_train", "train_cell"]


class ConfigError(ValueError):
    """A gin file or binding that can't be used."""


configurables.register()


def _is_file(path: str) -> bool:
    return tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path)


def _opened(path: str) -> io.StringIO:
    """A gin file of a folder or a bucket; some editors put a byte-order mark before its text."""
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    try:
        text = io.StringIO(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"Invalid value for `gin_file`: {path} is no text in UTF-8. Save it as such.") from error
    text.name = path  # for gin's messages
    return text


read_files_by(_opened, _is_file)


def gin_folders() -> list[Path]:
    """Returns the folders that gin files are searched in: the current one, then the installed tree."""
    package = Path(__file__).parents[1]
    return [Path.cwd(), *(folder for folder in (package / "gin", package.parent / "gin") if folder.is_dir())]


def parse(files: Sequence[str], params: Sequence[str], imports: Sequence[str] = ()) -> str:
    """Replaces the configuration by that of some gin files and bindings. Later ones win.

    Args:
        files: paths, or names in the gin tree (`quickstart.gin`).
        params: bindings, such as `train.epochs=5`.
        imports: statements such as `import mine`, which come before all files.

    Returns:
        The whole configuration as gin text, which can be parsed again.

    Raises:
        ConfigError: a file can't be found, or gin does not know a name or value.
    """
    gin.clear_config()
    for folder in gin_folders():
        gin.add_config_file_search_path(str(folder))
    for file in files:
        _check_exists(file)
    given = " ".join([*files, *params])
    logging.disable(logging.ERROR)  # gin logs an error for each folder of the search path that lacks the file
    try:
        gin.parse_config(list(imports))
        gin.parse_config_files_and_bindings(list(files), list(params), finalize_config=True, skip_unknown=False)
    except tokenize.TokenError as error:
        raise ConfigError(f"A bracket or a quotation mark is opened and never closed (reading {given}).") from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{_sentence(error)} (reading {given}). Modules are searched in the current folder and among what is "
            "installed: run tfbio in the folder that holds yours."
        ) from error
    except (ValueError, TypeError, OSError, SyntaxError, RuntimeError, AttributeError, ImportError) as error:
        hint = " Include a file that sets it, or pass it as --gin_param." if "REQUIRED" in str(error) else ""
        raise ConfigError(f"{_sentence(error)} (reading {given}){hint}") from error
    finally:
        logging.disable(logging.NOTSET)
    return gin.config_str()


def _check_exists(file: str) -> None:
    if _is_file(file) or any(_is_file(str(folder / file)) for folder in gin_folders()):
        return
    known = [str(path.relative_to(folder)) for folder in gin_folders()[1:] for path in folder.rglob("*.gin")]
    near = difflib.get_close_matches(file, known, n=4, cutoff=0.3)
    raise ConfigError(
        f"Invalid value for `gin_file`: no file {file!r} here or in the installed gin tree. "
        f"{'Near it: ' + ', '.join(near) if near else 'There are: ' + ', '.join(sorted(known))}."
    )


def _sentence(error: Exception) -> str:
    """Returns gin's message on one line."""
    text = own_message(error)
    if macro := re.match(r"No bindings specified for '(.+)/gin\.macro'", text):  # the whole configuration follows
        return f"The macro %{macro[1]} has no value: set it, {macro[1]} = …, in a gin file or by --gin_param."
    return " ".join(text.split())


def load_run() -> runs.Run:
    """Returns the settings of the run that the parsed configuration describes.

    Raises:
        ConfigError: a required value is missing, or a value does not fit.
    """
    try:
        return gin.get_configurable("train")()
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(_sentence(error)) from error


def run_train(
    gin_files: Sequence[str], bindings: Sequence[str], workdir: str, quiet: bool = False, imports: Sequence[str] = ()
) -> dict[str, Any]:
    """Trains a run, and writes `config.gin` (asked) and `operative_config.gin` (used) into its work directory.

    Args:
        gin_files: as for `parse`.
        bindings: as for `parse`.
        workdir: the run directory.
        quiet: print nothing.
        imports: as for `parse`.

    Returns:
        The content of `result.json`.

    Raises:
        ConfigError: as `parse` and `load_run`. Other errors are those of `tfbio.experiments.run.train`.
    """
    asked = parse(gin_files, bindings, imports)
    run = load_run()
    folder = epath.Path(workdir)

    def save() -> None:
        (folder / "config.gin").write_text(asked)
        (folder / "operative_config.gin").write_text(gin.operative_config_str())

    return runs.train(workdir, run, quiet=quiet, on_built=save)


def train_cell(gin_files: Sequence[str], bindings: Sequence[str], workdir: str, imports: Sequence[str] = ()) -> None:
    """Trains a cell of a study. It is called in a child process."""
    run_train(gin_files, bindings, workdir, quiet=True, imports=imports)


def run_evaluate(workdir: str, params: Sequence[str], split: str, best: bool) -> dict[str, float]:
    """Evaluates a run directory on a split. `params` are bindings that win over the recorded ones (`load.data_dir`).

    A run that was trained by several workers, or on a TPU, is evaluated on one device where these are missing.
    """
    return runs.evaluate(workdir, _recorded_run(workdir, params), split, best)


def run_export(workdir: str, params: Sequence[str], preprocessing: bool, best: bool) -> tuple[str, str]:
    """Exports a run directory. Returns the paths of the `.keras` file and the SavedModel."""
    return runs.export(workdir, _recorded_run(workdir, params), preprocessing, best)


def _recorded_run(workdir: str, params: Sequence[str]) -> runs.Run:
    folder = epath.Path(workdir)
    file = (folder if is_remote(workdir) else folder.resolve()) / "config.gin"  # not one of the gin tree
    if not file.exists():
        raise runs.WorkdirError(f"{workdir} is no run directory: it has no config.gin. Train there first: tfbio train.")
    parse([str(file)], params)
    run = load_run()
    asked = any(param.partition("=")[0].strip().endswith("train.strategy") for param in params)
    if not asked and not is_there(run.strategy, run.tpu):
        run.strategy = "one_device"
    return run


def run_study(gin_files: Sequence[str], params: Sequence[str], workdir: str, processes: int | None) -> str:
    """Runs a study. What its files import, every cell imports first.

    Args:
        gin_files: as for `parse`.
        params: bindings. Those that don't begin with `study.` go to every cell.
        workdir: the study's folder.
        processes: as for `tfbio.experiments.study.study`; None takes `study.processes`.

    Returns:
        The report, in Markdown.

    Raises:
        ConfigError: as `parse`, or the files configure no study. Other errors are those of
            `tfbio.experiments.study.study`.
    """
    own = [param for param in params if param.startswith("study.")]
    text = parse(gin_files, own)
    cells = [param for param in params if param not in own]
    asked = gin.get_bindings("study")
    if "axes" not in asked:
        raise ConfigError(
            f"Invalid value for `gin_file`: expected one that binds `study.axes`, received {', '.join(gin_files)}. "
            "The gin tree has some in studies/. tfbio train trains a single run."
        )
    if stray := re.findall(r"^(?!study\.)[\w./]+\.\w+(?= =)", text, re.MULTILINE):
        raise ConfigError(
            f"Invalid value for `gin_file`: expected a study's files to bind `study.…` alone, received {stray[0]}, "
            "which no run would get. Put it into study.params, or into a file of study.base or study.axes."
        )
    imports = re.findall(r"^(?:import|from) .+", text, re.MULTILINE)
    run_cell = functools.partial(train_cell, imports=imports)
    arguments = {"run_cell": run_cell, "params": [*_as_list(asked.get("params", ())), *cells]}
    if processes is not None:
        arguments["processes"] = processes
    try:
        configured = gin.get_configurable("study")
    except ValueError as error:
        raise ConfigError(_sentence(error)) from error
    return configured(workdir, **arguments)


def _as_list(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
