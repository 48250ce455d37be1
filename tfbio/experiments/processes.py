"""Tasks in worker processes that live on from task to task.

Processes, since TensorFlow's process-wide state can't be shared by two runs; the same process for task after task,
since importing TensorFlow takes seconds. A process that dies (out of memory, killed) takes its task with it and nothing
else: another one replaces it. What a task prints goes to a file of its own, so that the parent's terminal stays
readable.

The parent speaks to each worker through a pipe: a task goes one way, None or a failure comes back, and the end of the
file means that the worker died. A worker whose parent died sees the same at its end and leaves. Nothing here needs
TensorFlow.
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

from tfbio.data.pipelines import cores
from tfbio.files import is_remote

__all__ = ["Failure", "Task", "run_all"]

_GRACE = 60.0  # seconds a worker has for its checkpoint when all are stopped
_TICK = 1.0  # seconds between two calls of `on_tick`


@dataclass(frozen=True)
class Task:
    """One call of the function; `log` is the file that gets what it prints."""

    name: str
    arguments: tuple
    log: Path


@dataclass(frozen=True)
class Failure:
    """Why a task failed: one sentence, and the traceback (None where the process died)."""

    sentence: str
    traceback: str | None


@dataclass
class _Worker:
    process: multiprocessing.Process
    connection: Connection
    task: Task | None = None
    since: float = 0.0


def run_all(
    function: Callable,
    tasks: Sequence[Task],
    workers: int,
    on_start: Callable[[Task], None],
    on_done: Callable[[Task, float, Failure | None], None],
    on_tick: Callable[[int], None],
) -> None:
    """Calls `function(*task.arguments)` for every task, in order, in `workers` processes.

    Args:
        function: picklable, so defined at the top level of a module. An exception it raises fails its task alone.
        tasks: what to call it with.
        workers: processes at the same time, each with its share of the cores.
        on_start: called with a task before it starts.
        on_done: called with a task, its seconds, and its failure or None.
        on_tick: called about once a second with the number of running tasks.

    Raises:
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM, once every worker has had SIGTERM and up to 60 s to write a
        checkpoint.
    """
    waiting = list(reversed(tasks))
    pool: list[_Worker] = []
    with _sigterm_raises():
        try:
            while True:
                for worker in [worker for worker in pool if worker.task is None]:
                    if waiting:
                        _give(worker, waiting.pop(), on_start)
                    else:
                        pool.remove(worker)
                        _dismiss(worker)
                while waiting and len(pool) < workers:
                    pool.append(_start(function, workers, waiting[-1].log))
                    _give(pool[-1], waiting.pop(), on_start)
                if not pool:
                    break
                on_tick(len(pool))
                ready = wait([worker.connection for worker in pool], timeout=_TICK)
                for worker in [worker for worker in pool if worker.connection in ready]:
                    task, seconds = worker.task, time.monotonic() - worker.since
                    worker.task = None
                    try:
                        failure = worker.connection.recv()
                    except (EOFError, OSError):
                        pool.remove(worker)
                        failure = Failure(_death(worker), None)
                    on_done(task, seconds, failure)
        except BaseException:
            _stop(pool)
            raise


def _start(function: Callable, workers: int, log: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would copy TensorFlow's locks and not its threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(function, theirs))
    with _surroundings(workers), _output_to(log):  # what it says while it imports belongs to its first task
        process.start()
    theirs.close()  # or the end of the file would never be seen here
    return _Worker(process, ours)


def _give(worker: _Worker, task: Task, on_start: Callable[[Task], None]) -> None:
    on_start(task)
    worker.task, worker.since = task, time.monotonic()
    with contextlib.suppress(OSError):  # it died meanwhile, which the next look at its pipe finds
        worker.connection.send(task)


def _work(function: Callable, connection: Connection) -> None:
    """A worker's whole life."""
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):  # the parent has nothing more to do, or is no more
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
    """Sends what is printed inside to a file: TensorFlow's messages too, which come from C++ and know no sys.stderr."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remote = is_remote(path)  # nothing can be redirected there: what was printed goes there at the end
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


def _death(worker: _Worker) -> str:
    worker.process.join(_GRACE)
    code = worker.process.exitcode
    killed = "it was killed, most often for want of memory: use fewer workers or a smaller batch"
    return f"the process ended with exit code {code}; {killed if code == -9 else 'its last words are in log.txt'}."


def _dismiss(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.join()


def _stop(pool: Sequence[_Worker]) -> None:
    """SIGTERM to all workers, time for their checkpoints, then an end."""
    until = time.monotonic() + _GRACE
    try:
        for worker in pool:
            worker.process.terminate()
        for worker in pool:
            worker.process.join(max(0.0, until - time.monotonic()))
    finally:  # a second Ctrl-C ends the patience
        for worker in pool:
            worker.process.kill()


@contextlib.contextmanager
def _surroundings(workers: int):
    """What a process started inside inherits: its share of the cores, and no Ctrl-C.

    A terminal sends Ctrl-C to every process. Workers ignore it from their first instruction on and wait for the SIGTERM
    that the parent then sends.
    """
    share = str(max(1, cores() // workers))
    settings = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), share)
    if workers > 1:
        settings["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # or the first worker takes all of a GPU's memory
    added = {name: value for name, value in settings.items() if name not in os.environ}  # the user's own choice holds
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
    """Inside, SIGTERM raises SystemExit(143), as Ctrl-C raises KeyboardInterrupt."""
    if not _in_main_thread():  # Python handles signals there alone
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
