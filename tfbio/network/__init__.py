"""Reads, cuts and rewires a plain Keras model: its graph of calls, its stages, and inverses of these."""

from tfbio.network.inverses import inverse
from tfbio.network.stages import output_layers, stages, with_feedback

__all__ = ["inverse", "output_layers", "stages", "with_feedback"]
