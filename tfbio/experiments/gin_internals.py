"""The private parts of gin that tfbio uses, as they are in gin-config 0.5.0."""

import gin

__all__ = ["own_message", "read_no_package_files"]


def read_no_package_files() -> None:
    """Stops gin from looking for configuration files inside Python packages.

    gin takes any folder that is named like the first part of a path for a package: beside an ordinary folder `runs/` it
    raises an error for `runs/base.gin`, which is a name in the installed gin tree. No public function removes a reader.
    """
    readers, unwanted = gin.config._FILE_READERS, gin.resource_reader.system_path_file_exists
    readers[:] = [(read, exists) for read, exists in readers if exists is not unwanted]


def own_message(error: BaseException) -> str:
    """Returns an error's message without what gin appends: the configurable that was called, which users don't know."""
    return str(error).partition("\n  In call to configurable")[0]
