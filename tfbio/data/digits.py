"""The handwritten digits that come with scikit-learn: 1,797 grey images of 8 × 8 pixels, no download."""

import functools

import numpy as np

from tfbio.data.labelled_images import LabelledImages

__all__ = ["read"]

_TEST_EXAMPLES = 360  # a fifth


@functools.cache
def read(split: str) -> LabelledImages:
    """One split of the digits.

    The set has no official split: this one is fixed, whatever the seed of a run, so that test errors compare.

    Args:
        split: `"train"` (1,437 examples) or `"test"` (360).

    Returns:
        the examples; pixels, which are 0…16 in scikit-learn, scaled to 0…255.
    """
    from sklearn import datasets  # Here, because it is slow to import and other sets do without it.

    digits = datasets.load_digits()
    images = np.round(digits.images[..., np.newaxis] * (255 / 16)).astype(np.uint8)
    names = tuple(str(name) for name in digits.target_names)
    indices = np.random.RandomState(0).permutation(len(images))
    indices = indices[-_TEST_EXAMPLES:] if split == "test" else indices[:-_TEST_EXAMPLES]
    return LabelledImages(images, digits.target, classes=len(names), class_names=names).take(indices)
