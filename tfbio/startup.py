"""The start of TensorFlow in a command: seconds, and lines about a machine that is as it should be."""

import contextlib
import faulthandler
import os
import sys
import tempfile
from collections.abc import Callable, Iterator

__all__ = ["import_tensorflow"]


def import_tensorflow() -> None:
    """Imports TensorFlow and looks for its devices; what it says meanwhile is shown if something is wrong.

    That is an error, or a GPU of the machine that TensorFlow does not find. Later notes of TensorFlow are left out too,
    unless the environment variable `TF_CPP_MIN_LOG_LEVEL` is set. A process that has imported it already is left alone.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _errors_held_back() as show:
        import tensorflow as tf

        found = tf.config.list_physical_devices("GPU")
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        if not found and not hidden and os.path.exists("/dev/nvidiactl"):
            show()


@contextlib.contextmanager
def _errors_held_back() -> Iterator[Callable[[], None]]:
    """Inside, standard error is a file: TensorFlow's first lines come before its settings can silence them.

    The file is shown after an exception, and by the function that this gives. Where a processor lacks what TensorFlow
    needs, the process dies: Python then says where.
    """
    if sys.stderr is None:  # closed before the process began
        yield lambda: None
        return
    with tempfile.TemporaryFile() as file, os.fdopen(os.dup(2), "wb", buffering=0) as screen:

        def show() -> None:
            file.seek(0)
            screen.write(file.read())

        sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        faulthandler.enable(screen)
        try:
            yield show
        except BaseException:
            show()
            raise
        finally:
            faulthandler.disable()
            os.dup2(screen.fileno(), 2)
