"""Ctrl-C and SIGTERM: finish the step, save, then stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["TrainingInterrupted", "delayed_interrupts"]


class TrainingInterrupted(KeyboardInterrupt):
    """Training was asked to stop and saved itself.

    Attributes:
        signal_number: what asked; a command's exit code is 128 plus it.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


@contextlib.contextmanager
def delayed_interrupts() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of acting on them; a second SIGINT acts at once.

    A signal that the process ignores stays ignored. Signals can only be caught in a process's main thread; elsewhere
    the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, note) for number in heeded}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
