"""Reads, cuts and rewires a plain Keras model: its graph of calls, its stages, and inverses of these."""

from tfbio.network.feedback_model import FeedbackModel, with_feedback
from tfbio.network.inverses import inverse
from tfbio.network.stages import stages
from tfbio.network.treatable import output_layers

__all__ = ["FeedbackModel", "inverse", "output_layers", "stages", "with_feedback"]
