"""What can be wrong with the data on a machine."""

__all__ = ["DataNotFoundError"]


class DataNotFoundError(FileNotFoundError):
    """A known data set is not prepared on this machine, or part of it is missing."""
