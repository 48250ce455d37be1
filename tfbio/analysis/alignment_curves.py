"""Alignment over epochs, layer by layer: a panel for each figure of `tfbio.analysis.alignment`, a line for each layer.

Figures that a rule adds (`LearningRule.diagnostics`) are drawn like all others, under their own names if unknown here.

Layers go from dark to light, from the input to the output.
"""

from collections.abc import Sequence

from tfbio.analysis.pictures import curve, draw, literal, png
from tfbio.analysis.runs import Run

__all__ = ["alignment_curves"]

_PANELS = {
    "angle": "angle of the gradient\nto backpropagation's [°]",
    "norm_ratio": "norm of the gradient\nto backpropagation's",
    "feedback_angle": "angle of feedback\nto forward weights [°]",
    "feedback_norm_ratio": "norm of feedback\nto forward weights",
    "sign_concordance": "share of feedback weights\nwith the forward sign",
    "reconstruction": "loss of inverses\nwithout noise",
    "target_distance": "distance of targets\nto activations' norm",
    "target_approach": "distance to the target once\nthe one below is met, to now's",
    "closer": "share of examples\nthat come closer then",
}


def alignment_curves(runs: Sequence[Run]) -> bytes | None:
    """Draws the figures that the runs measured.

    Args:
        runs: runs that differ in their seed alone.

    Returns:
        A PNG picture of less than 200 kB, or None if none measured its alignment.
    """
    layers: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for run in runs for record in run.metrics for name in record):
        kind, _, layer = name.partition("/")
        if layer and layer != "total":
            layers.setdefault(kind, []).append(layer)
    if not layers:
        return None

    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.4 + 2.4 * len(layers)), layout="constrained")
    axes = figure.subplots(len(layers), 1, squeeze=False)[:, 0]
    known = [kind for kind in _PANELS if kind in layers]
    for axis, kind in zip(axes, [*known, *(kind for kind in layers if kind not in _PANELS)], strict=True):
        names = layers[kind]
        for number, layer in enumerate(names):
            colour = colormaps["viridis"](0.9 * number / max(1, len(names) - 1))
            label = literal(layer.partition("/")[2] or layer)
            draw(axis, curve(runs, f"{kind}/{layer}"), (colour, ""), label=label)
        axis.set_ylabel(_PANELS.get(kind, kind), fontsize=8)
        axis.grid(alpha=0.25)
        if kind.endswith("angle"):
            axis.set_yticks([0, 30, 60, 90])
            axis.set_ylim(-4, max(95, axis.get_ylim()[1]))
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False, ncols=1 + len(names) // 16)
    axes[-1].set_xlabel("epoch")
    return png(figure)
