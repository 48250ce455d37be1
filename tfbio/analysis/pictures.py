"""What all pictures share: curves over epochs, colours, and small PNG files."""

import io
import math
from collections.abc import Sequence
from typing import Any

from tfbio.analysis.runs import Run, estimate

__all__ = ["COLOURS", "curve", "draw", "literal", "png"]

#: Okabe and Ito's, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LARGEST_PICTURE = 200_000  # bytes: results are committed to repositories


def curve(runs: Sequence[Run], name: str, scale: float = 1.0) -> tuple[list, list, list, list]:
    """Epochs, means and both ends of the interval (of no width where one seed alone has the epoch).

    Args:
        runs: those to average over.
        name: a figure of `metrics.jsonl`.
        scale: a factor on its values.
    """
    values: dict[int, list[float]] = {}
    for run in runs:
        # A run resumed from a checkpoint may have written an epoch twice: the later line holds.
        latest = {record["epoch"]: record[name] for record in run.metrics if "epoch" in record and name in record}
        for epoch, value in latest.items():
            if isinstance(value, int | float) and math.isfinite(value):
                values.setdefault(epoch, []).append(scale * value)
    epochs = sorted(values)
    estimates = [estimate(values[epoch]) for epoch in epochs]
    low = [e.mean - (e.half_width or 0) for e in estimates]
    high = [e.mean + (e.half_width or 0) for e in estimates]
    return epochs, [e.mean for e in estimates], low, high


def draw(axis: Any, points: tuple, look: tuple[str, str], linestyle: str = "-", label: str | None = None) -> None:
    """Draws what `curve` returned, in a colour and with a marker, its interval as a band."""
    epochs, means, low, high = points
    if not epochs:
        return
    colour, marker = look
    marker = marker or ("." if len(epochs) == 1 else "")  # one epoch is a point, which a line would not show
    axis.plot(
        epochs,
        means,
        color=colour,
        linestyle=linestyle,
        linewidth=1.3,
        marker=marker,
        markevery=max(1, len(epochs) // 8),
        markersize=4,
        label=label,
    )
    axis.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)


def literal(text: str) -> str:
    """What matplotlib shows as `text`: dollar signs of users begin no formula."""
    return text.replace("$", r"\$")


def png(figure: Any) -> bytes:
    """A matplotlib figure as a PNG picture of less than 200 kB."""
    from PIL import Image  # here, because a study's child processes draw nothing

    for dpi in (110, 80, 55, 40, 25):
        full, picture = io.BytesIO(), io.BytesIO()
        figure.savefig(full, format="png", dpi=dpi)
        Image.open(full).convert("RGB").quantize(128).save(picture, format="png", optimize=True)  # a third of the size
        if picture.tell() < _LARGEST_PICTURE:
            break
    return picture.getvalue()
