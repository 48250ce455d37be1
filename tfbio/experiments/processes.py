"""Runs tasks in child processes. A child runs one task after another.

Runs that train at the same time can't share TensorFlow's global state, so they need processes. A child stays for the
next task because importing TensorFlow takes seconds. If a child dies (out of memory, killed), only its task fails, and
another child replaces it. The output of a task goes to a file of its own.

The parent talks to each child through a pipe. It sends a task and receives None or a `Failure`; the end of the file
means that the child has died. A child whose parent has died sees the end of the file too, and exits. This module does
not import TensorFlow; the function that the tasks call may.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from etils.epath import Path

from tfbio.files import is_remote
from tfbio.machine import cores

__all__ = ["Failure", "Task", "run_all"]

_GRACE = 60.0  # seconds that a child has to save a checkpoint when all are stopped
_TICK = 1.0  # seconds between two calls of `on_tick`


@dataclass(frozen=True)
class Task:
    """One call of the function. `log` is the file that its output is appended to."""

    name: str
    arguments: tuple
    log: Path


@dataclass(frozen=True)
class Failure:
    """Why a task failed: one sentence, and the traceback (None if the process died)."""

    sentence: str
    traceback: str | None


@dataclass
class _Child:
    process: multiprocessing.Process
    connection: Connection
    task: Task | None = None
    since: float = 0.0


def run_all(
    function: Callable,
    tasks: Sequence[Task],
    processes: int,
    on_start: Callable[[Task], None],
    on_done: Callable[[Task, float, Failure | None], None],
    on_tick: Callable[[int], None],
) -> None:
    """Calls `function(*task.arguments)` for every task, in order, in several processes.

    Args:
        function: picklable, so defined at the top level of a module. An exception fails its own task only.
        tasks: the calls to make.
        processes: the number of processes that run at the same time. Each gets an equal share of the cores.
        on_start: called with a task before it starts.
        on_done: called with a task, its seconds, and its `Failure` or None.
        on_tick: called about once a second with the number of running tasks.

    Raises:
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM. It is raised after every child has received SIGTERM and up to
            60 s to write a checkpoint.
    """
    waiting = list(reversed(tasks))
    children: list[_Child] = []
    with _sigterm_raises():
        try:
            while True:
                for child in [child for child in children if child.task is None]:
                    if waiting:
                        _give(child, waiting.pop(), on_start)
                    else:
                        children.remove(child)
                        _dismiss(child)
                while waiting and len(children) < processes:
                    children.append(_start(function, processes, waiting[-1].log))
                    _give(children[-1], waiting.pop(), on_start)
                if not children:
                    break
                on_tick(len(children))
                ready = wait([child.connection for child in children], timeout=_TICK)
                for child in [child for child in children if child.connection in ready]:
                    task, seconds = child.task, time.monotonic() - child.since
                    child.task = None
                    try:
                        failure = child.connection.recv()
                    except (EOFError, OSError):
                        children.remove(child)
                        failure = Failure(_death(child), None)
                    on_done(task, seconds, failure)
        except BaseException:
            _stop(children)
            raise


def _start(function: Callable, processes: int, log: Path) -> _Child:
    context = multiprocessing.get_context("spawn")  # a fork would copy TensorFlow's locks and not its threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(function, theirs))
    with _environment(processes), _output_to(log):  # what is printed during imports belongs to the first task
        process.start()
    theirs.close()  # or the end of the file would never be seen here
    return _Child(process, ours)


def _give(child: _Child, task: Task, on_start: Callable[[Task], None]) -> None:
    on_start(task)
    child.task, child.since = task, time.monotonic()
    with contextlib.suppress(OSError):  # it has died, which the next `wait` on its pipe finds
        child.connection.send(task)


def _work(function: Callable, connection: Connection) -> None:
    """Runs in a child: receives tasks and runs them until there are no more."""
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):  # the parent has no more tasks, or has died
            return
        failure = None
        with _output_to(task.log):
            try:
                function(*task.arguments)
            except Exception as error:
                failure = Failure(_sentence(error), traceback.format_exc())
        with contextlib.suppress(OSError):
            connection.send(failure)
        keras = sys.modules.get("keras")
        if keras is not None:
            keras.backend.clear_session()


@contextlib.contextmanager
def _output_to(path: Path):
    """Redirects output to a file, including TensorFlow's messages, which C++ writes to file descriptor 2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remote = is_remote(path)  # has no file descriptor, so the output is copied there at the end
    _flush()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with tempfile.TemporaryFile() if remote else path.open("ab") as file:
            for number, _ in saved:
                os.dup2(file.fileno(), number)
            try:
                yield
            finally:
                _flush()
                if remote:
                    file.seek(0)
                    with path.open("ab") as log:
                        log.write(file.read())
    finally:
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    return text if " " in text else f"{type(error).__name__}: {text}"  # a KeyError's text is the bare key


def _death(child: _Child) -> str:
    child.process.join(_GRACE)
    code = child.process.exitcode
    killed = "it was killed, most often because memory ran out: use fewer processes or a smaller batch"
    return f"the process ended with exit code {code}; {killed if code == -9 else 'its last output is in log.txt'}."


def _dismiss(child: _Child) -> None:
    child.connection.close()
    child.process.join()


def _stop(children: Sequence[_Child]) -> None:
    """Sends SIGTERM to all children, waits for their checkpoints, then kills what still runs."""
    until = time.monotonic() + _GRACE
    try:
        for child in children:
            child.process.terminate()
        for child in children:
            child.process.join(max(0.0, until - time.monotonic()))
    finally:  # at once after a second Ctrl-C
        for child in children:
            child.process.kill()


@contextlib.contextmanager
def _environment(processes: int):
    """Sets what a process that is started inside inherits: its share of the cores, and that it ignores Ctrl-C.

    A terminal sends Ctrl-C to the children too. They ignore it and wait for the parent's SIGTERM.
    """
    share = str(max(1, cores() // processes))
    settings = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), share)
    if processes > 1:
        settings["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # or the first child takes all of a GPU's memory
    added = {name: value for name, value in settings.items() if name not in os.environ}  # the user's own choice wins
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if _in_main_thread() else None
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _sigterm_raises():
    """Makes SIGTERM raise SystemExit(143), as Ctrl-C raises KeyboardInterrupt."""
    if not _in_main_thread():  # Python handles signals in the main thread only
        yield
        return

    def leave(number, frame):
        raise SystemExit(128 + number)

    handler = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
