"""Run by tests of exports in a process of its own, in which tfbio can't be imported: what they predict."""

import sys

import keras
import numpy as np
import tensorflow as tf

sys.modules["tfbio"] = None  # importing it fails from here on


def main(images: str, exports: str) -> None:
    """Writes the predictions beside the images, as `keras.npy` and `served.npy`."""
    x, folder = np.load(images), images.rpartition("/")[0]
    model = keras.models.load_model(f"{exports}/model.keras")
    served = tf.saved_model.load(f"{exports}/saved_model")
    np.save(f"{folder}/keras.npy", model.predict(x, verbose=0))
    np.save(f"{folder}/served.npy", served.serve(x))
    print(type(model).__module__)


if __name__ == "__main__":
    main(*sys.argv[1:])
