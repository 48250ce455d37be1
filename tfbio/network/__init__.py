"""Reads, cuts and rewires a plain Keras model: its graph of calls, its stages, and inverses of these."""

from tfbio.network.feedback_model import FeedbackModel, output_layers, with_feedback
from tfbio.network.inverses import inverse
from tfbio.network.stages import stages

__all__ = ["FeedbackModel", "inverse", "output_layers", "stages", "with_feedback"]
