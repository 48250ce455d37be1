"""Packaging. The gin tree of the repository's top level is installed as `tfbio/gin`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

_HERE = Path(__file__).parent


def _version() -> str:
    """`tfbio.__version__`, read from the text: importing tfbio would need TensorFlow."""
    text = (_HERE / "tfbio" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


setup(
    name="tfbio",
    version=_version(),
    description="Trains plain Keras models with learning rules other than backpropagation",
    long_description=(_HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",  # what Keras 3.14 needs
    packages=[*find_packages(include=["tfbio", "tfbio.*"]), "tfbio.gin"],
    package_dir={"tfbio.gin": "gin"},
    package_data={"tfbio.gin": ["**/*.gin"]},
    entry_points={"console_scripts": ["tfbio=tfbio.cli:main"]},
    install_requires=[  # one a line, because .ci/lowest reads the lowest versions here
        "tensorflow>=2.20",  # older ones need a protobuf that tensorflow-datasets no longer works with
        "keras>=3.14",  # older ones do not divide penalties on activities by the batch size
        "tensorflow-datasets>=4.9.7",
        "importlib_resources>=6",  # tensorflow-datasets needs it on Python 3.11, and does not ask for it
        "numpy>=1.26",
        "scipy>=1.11.1",
        "etils[epath]>=1.9.1",  # paths, gs:// among them; tensorflow-datasets needs this version
        "gin-config>=0.5",
        "h5py>=3.11",  # what TensorFlow needs
        "absl-py>=2",
        "scikit-learn>=1.3",
        "matplotlib>=3.8",
        "tensorboard>=2.20",
    ],
    extras_require={
        "hub": ["keras-hub>=0.20"],  # oracles on its networks; tfbio itself needs none of it
        "gpu": ["tensorflow[and-cuda]>=2.20"],
        "tpu": ["tensorflow-tpu>=2.20"],
        "dev": ["build", "pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.5", "ruff==0.17.*", "setuptools>=69"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
