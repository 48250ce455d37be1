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
    python_requires=">=3.10",
    packages=[*find_packages(include=["tfbio", "tfbio.*"]), "tfbio.gin"],
    package_dir={"tfbio.gin": "gin"},
    package_data={"tfbio.gin": ["**/*.gin"]},
    entry_points={"console_scripts": ["tfbio=tfbio.cli:main"]},
    install_requires=[
        "tensorflow>=2.20",  # older ones need a protobuf that tensorflow-datasets no longer works with
        "keras>=3.10",  # what TensorFlow 2.20 asks for
        "tensorflow-datasets>=4.9.7",
        "importlib_resources",  # tensorflow-datasets needs it for some sets and does not ask for it
        "numpy>=1.26",
        "scipy",
        "gin-config>=0.5",
        "absl-py",
        "scikit-learn",
        "matplotlib",
        "tensorboard",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.20"],
        "tpu": ["tensorflow-tpu>=2.20"],
        "dev": ["build", "pytest", "pytest-timeout", "pytest-xdist", "ruff"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
