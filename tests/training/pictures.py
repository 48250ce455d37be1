"""Two classes of small random pictures in folders, for the tests of streams and the scripts that they run."""

from pathlib import Path

import numpy as np
import tensorflow as tf


def write_pictures(root: Path, train: int, test: int = 5) -> None:
    """JPEG files of 18 × 24 pixels, `train` and `test` of them, at `root/split/class/number.jpg`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            path = root / split / "ab"[index % 2] / f"{index:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 256, (3, 4, 3)).repeat(6, 0).repeat(6, 1).astype(np.uint8)
            path.write_bytes(tf.io.encode_jpeg(image).numpy())
