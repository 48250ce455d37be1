"""Learning curves: a panel for each network and data set, a line for each rule.

The running training error is dashed, the error on held-out data solid; lines are means over seeds, bands 95 %
intervals. Where runs measured the angle between their rule's gradient and backpropagation's, a panel below each shows
it. A rule has the same colour in every panel.
"""

import math
from collections.abc import Sequence

from tfbio.analysis.pictures import COLOURS, curve, draw, literal, png
from tfbio.analysis.runs import Run

__all__ = ["learning_curves"]

_MARKERS = ("", "o", "s", "^", "v", "D")  # once the colours are used up
_PANELS_ACROSS = 4


def learning_curves(runs: Sequence[Run]) -> bytes | None:
    """Draws the error (the loss, where there is no error) and the angle over epochs.

    Args:
        runs: what `collect` returned. The labels `dataset` and `network` make the panels, all the others together the
            lines. A line is the mean over its finished runs, or over those there are while none has finished.

    Returns:
        A PNG picture of less than 200 kB, or None if no run has finished an epoch.
    """
    panels = _panels(runs)
    if not panels:
        return None
    lines = list(dict.fromkeys(line for panel in panels.values() for line in panel))
    looks = {
        line: (COLOURS[i % len(COLOURS)], _MARKERS[i // len(COLOURS) % len(_MARKERS)]) for i, line in enumerate(lines)
    }
    with_angle = any("angle/total" in record for run in runs for record in run.metrics)

    # The object interface, not pyplot: no global state, no window system, nothing to close.
    from matplotlib.figure import Figure  # 0.5 s to import, and a study's child processes draw nothing
    from matplotlib.lines import Line2D

    across = min(len(panels), _PANELS_ACROSS)
    heights = [3.2, 1.9] if with_angle else [3.2]
    bands = math.ceil(len(panels) / across)
    figure = Figure(figsize=(1 + 4.2 * across, 0.7 + sum(heights) * bands), layout="constrained")
    axes = figure.subplots(len(heights) * bands, across, squeeze=False, gridspec_kw={"height_ratios": heights * bands})
    for axis in axes.flat:
        axis.set_visible(False)
    held_out = {}
    for i, (title, panel) in enumerate(panels.items()):
        row, column = len(heights) * (i // across), i % across
        held_out |= _draw_errors(axes[row, column], panel, looks)
        axes[row, column].set_title(literal(title), fontsize=10)
        if with_angle:
            _draw_angles(axes[row + 1, column], panel, looks)
    handles = [
        Line2D([], [], color=colour, marker=marker, label=literal(line))
        for line, (colour, marker) in looks.items()
        if line
    ]
    handles.append(Line2D([], [], color="0.4", linestyle="--", label="training (running)"))
    handles += [Line2D([], [], color="0.4", label=name) for name in held_out]
    longest = max(len(handle.get_label()) for handle in handles)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, int(figure.get_figwidth() / (0.7 + 0.07 * longest))),  # in inches: a handle, and letters of 9 pt
        fontsize=9,
        frameon=False,
        handlelength=2.8,
    )
    return png(figure)


def _panels(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    panels: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if any("epoch" in record for record in run.metrics):
            title = ", ".join(run.labels[name] for name in ("dataset", "network") if name in run.labels)
            line = ", ".join(value for name, value in run.labels.items() if name not in ("dataset", "network"))
            panels.setdefault(title, {}).setdefault(line, []).append(run)
    for panel in panels.values():
        for line, group in panel.items():
            # Averaging in runs that stopped early would make a step in the line where they end.
            panel[line] = [run for run in group if run.finished] or group
    return panels


def _draw_errors(axis, panel: dict[str, list[Run]], looks: dict) -> dict[str, None]:
    """Draws a panel's training and held-out figures; returns the legend's names of the held-out ones."""
    names = {name for runs in panel.values() for run in runs for record in run.metrics for name in record}
    figure, scale = ("error", 100.0) if "error" in names else ("loss", 1.0)
    held_out = next((prefix for prefix in ("test", "val") if f"{prefix}_{figure}" in names), None)
    seen: dict[str, list[float]] = {"--": [], "-": []}
    for line, runs in panel.items():
        for name, linestyle in ((figure, "--"), (f"{held_out}_{figure}", "-")):
            points = curve(runs, name, scale)
            draw(axis, points, looks[line], linestyle)
            seen[linestyle] += [value for value in points[1] if value > 0]
    positive = seen["--"] + seen["-"]
    if positive and max(positive) >= 10 * min(positive):
        # Training errors, which tend to zero, leave the picture downwards before they flatten the held-out ones.
        bottom = max(min(positive), min(seen["-"], default=0) / 10)
        axis.set_yscale("log", nonpositive="clip")
        axis.set_ylim(0.8 * bottom, 1.25 * max(positive))
        axis.yaxis.set_major_formatter("{x:g}")
    axis.set_visible(True)
    axis.set_xlabel("epoch")
    axis.set_ylabel("error [%]" if figure == "error" else "loss")
    axis.grid(alpha=0.25)
    return {} if held_out is None else {{"test": "test", "val": "validation"}[held_out]: None}


def _draw_angles(axis, panel: dict[str, list[Run]], looks: dict) -> None:
    for line, runs in panel.items():
        points = curve(runs, "angle/total")
        if points[0]:
            draw(axis, points, looks[line])
            axis.set_visible(True)
    axis.set_xlabel("epoch")
    axis.set_ylabel("angle to backprop [°]")
    axis.set_yticks([0, 30, 60, 90])
    axis.set_ylim(-4, max(95, axis.get_ylim()[1]))
    axis.grid(alpha=0.25)
