"""Runs scripts in processes of their own, forked from one that has imported TensorFlow and tfbio, and used neither.

To import them takes longer than most of these scripts. Devices, threads and connections are each process's own.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tensorflow", "keras", "tfbio"])


class Script:
    """A script that runs as `python path *arguments` would.

    Args:
        path: a Python file.
        *arguments: strings.
        **environment: variables to set, or with None to leave out.
    """

    def __init__(self, path: Path | str, *arguments: str, **environment: str | None):
        self._folder = tempfile.TemporaryDirectory()
        command = (str(path), *map(str, arguments))
        variables = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
        self.process = _FORKS.Process(target=_run, args=(command, variables, self._folder.name), daemon=True)
        self.process.start()

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Ends it, unless it has ended."""
        self.process.kill()

    def finish(self, timeout: float = 280) -> tuple[int, str, str]:
        """Waits for its end: the exit code (negative: a signal's number), standard output and standard error."""
        self.process.join(timeout)
        late = self.process.exitcode is None
        if late:
            self.process.kill()
            self.process.join()
        output, error = ((Path(self._folder.name) / name).read_text() for name in ("stdout", "stderr"))
        self._folder.cleanup()
        assert not late, f"still running after {timeout} s: {error[-3000:]}"
        return self.process.exitcode, output, error


def output_of(path: Path | str, *arguments: str, **environment: str | None) -> str:
    """What a script prints, which must end well."""
    code, output, error = Script(path, *arguments, **environment).finish()
    assert code == 0, error[-3000:]
    return output


def _run(command: tuple[str, ...], variables: dict[str, str], folder: str) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = list(command)
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
