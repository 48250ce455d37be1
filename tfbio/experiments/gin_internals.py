"""The private parts of gin that tfbio uses, as they are in gin-config 0.5.0."""

from collections.abc import Callable
from typing import TextIO

import gin

__all__ = ["own_message", "read_files_by"]


def read_files_by(read: Callable[[str], TextIO], exists: Callable[[str], bool]) -> None:
    """Makes gin read its files in one way alone.

    gin's first reader takes a byte-order mark for a name. Another looks for files inside Python packages, and takes any
    folder that is named like the first part of a path for one: beside an ordinary folder `runs/` it raises an error for
    `runs/base.gin`, which is a name in the installed gin tree. No public function removes a reader.

    Args:
        read: opens the file at a path.
        exists: tells whether there is one.
    """
    gin.config._FILE_READERS[:] = [(read, exists)]


def own_message(error: BaseException) -> str:
    """Returns an error's message without what gin appends: the configurable that was called, which users don't know."""
    return str(error).partition("\n  In call to configurable")[0]
