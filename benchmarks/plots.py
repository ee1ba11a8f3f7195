"""Draws what was measured, as SVG; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Points = Sequence[tuple[float, float]]
"""What was measured, by what grew."""


def draw(
    path: Path,
    title: str,
    grows: str,
    panes: Mapping[str, Mapping[str, Points]],
    *,
    solid: str = "",
) -> None:
    """Draw some panes side by side, both axes logarithmic.

    Args:
        path: The file to write.
        title: What was measured, where, and when.
        grows: What the horizontal axis is.
        panes: By what the vertical axis is: by name, what is drawn.
        solid: Names that begin so are drawn as lines, the others dashed.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = path.name  # the same file for the same figures
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, len(panes), figsize=(5 * len(panes), 4.2), squeeze=False)
    for axis, (label, lines) in zip(axes[0], panes.items(), strict=True):
        for name, points in lines.items():
            style = "-" if name.startswith(solid) else "--"
            if points:
                axis.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=name)
        axis.set_xscale("log")
        axis.set_yscale("log")
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axis.set_xticks(ticks, [f"{x:,.0f}" for x in ticks], fontsize=8)
        axis.tick_params(axis="x", which="minor", bottom=False)
        for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatted(FuncFormatter(lambda y, _: f"{y:,g}" if _leads(y) else ""))
        axis.set_xlabel(grows)
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _leads(value: float) -> bool:
    """Whether a tick is worth a label: 1, 2, 5, 10, 20, ..."""
    return f"{value:e}"[0] in "125"
