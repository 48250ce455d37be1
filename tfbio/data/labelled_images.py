"""What every source of data hands over: a whole split as arrays, checked once."""

import dataclasses

import numpy as np

__all__ = ["LabelledImages"]


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images of one size with a class each.

    Args:
        images: shape `(examples, height, width, channels)`, uint8 in 0…255.
        labels: shape `(examples,)`, integers in `[0, classes)`; kept as int32.
        classes: number of classes.
        class_names: a name for each class, or None.

    Raises:
        ValueError: if there are no examples, or the arrays are not as said.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: int
    class_names: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.images.ndim != 4 or self.images.dtype != np.uint8 or self.images.size == 0:
            raise ValueError(
                "Invalid value for `images`: expected at least one uint8 image in an array of shape (examples, height, "
                f"width, channels), received {self.images.dtype} of shape {self.images.shape}."
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"Invalid value for `labels`: expected shape {self.images.shape[:1]}, a label for each image, received "
                f"{self.labels.shape}."
            )
        lowest, highest = self.labels.min(), self.labels.max()
        if lowest < 0 or highest >= self.classes:
            raise ValueError(
                f"Invalid value for `labels`: expected classes in [0, {self.classes}), received labels from {lowest} "
                f"to {highest}. A split whose labels are all -1 has none: choose another."
            )
        object.__setattr__(self, "labels", self.labels.astype(np.int32))

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> "LabelledImages":
        """The examples at some indices.

        Args:
            indices: shape `(count,)`, integers.

        Returns:
            the examples in the order of the indices.
        """
        return dataclasses.replace(self, images=self.images[indices], labels=self.labels[indices])
