"""The figures of the studies, all in one style: SVG, dots with intervals, one color."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.studies.statistics import Difference, Mean

INK, ACCENT, FAINT = "#223", "#4a6fa5", "#b9c6da"
_WIDTH, _ROW, _MARGIN = 7.2, 0.34, 0.9


def draw_means(
    path: Path, means: Mapping[str, Mean], values: Mapping[str, Sequence[float]], metric: str
) -> None:
    """Draw the mean of each arm with its interval, and the value of each seed.

    Args:
        path: The SVG file.
        means: The means by label, in the order of the rows.
        values: The values of the seeds, by label.
        metric: The text of the axis.
    """
    figure, axes = _rows(list(means))
    for row, (label, mean) in enumerate(means.items()):
        axes.plot(values[label], [row] * len(values[label]), ".", color=FAINT, zorder=1)
        _interval(axes, row, mean.mean, mean.low, mean.high)
    axes.set_xlabel(f"{metric}: mean over {next(iter(means.values())).count} seeds, 95 %")
    _save(figure, path)


def draw_differences(path: Path, differences: Sequence[Difference], metric: str) -> None:
    """Draw the paired differences with their intervals, beside a line at zero."""
    figure, axes = _rows([f"{each.arm} − {each.base}" for each in differences])
    axes.axvline(0, color=INK, linewidth=0.8)
    for row, each in enumerate(differences):
        _interval(axes, row, each.mean, each.low, each.high)
    axes.set_xlabel(f"paired difference of {metric}, 95 %")
    _save(figure, path)


def _rows(labels: Sequence[str]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _MARGIN + _ROW * len(labels)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.xaxis.label.set_fontsize(9)
    return figure, axes


def _interval(axes: Any, row: int, middle: float, low: float, high: float) -> None:
    axes.plot([low, high], [row, row], color=ACCENT, linewidth=2, solid_capstyle="butt")
    axes.plot(middle, row, "o", color=ACCENT, markersize=5)


def _save(figure: Any, path: Path) -> None:
    import matplotlib

    # Neither a date nor random names: the same results make the same file.
    with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
