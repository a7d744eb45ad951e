"""The figures of the studies, all in one style: SVG, dots with intervals, and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.studies.metrics import Metric
from pipeline.studies.statistics import Difference, Mean

INK, ACCENT, FAINT = "#223", "#4a6fa5", "#b9c6da"
COLOURS = ("#4a6fa5", "#c44e52", "#55a868", "#8172b3", "#ccb974", "#64b5cd", "#8c8c8c", "#937860")
MARKERS = "os^Dv<>P"
"""Of curves, in the order of the arms."""
_WIDTH, _ROW, _MARGIN = 7.2, 0.34, 0.9


def draw_means(
    path: Path, means: Mapping[str, Mean], values: Mapping[str, Sequence[float]], metric: Metric
) -> None:
    """Draw the mean of each arm with its interval, and the value of each seed.

    Args:
        path: The SVG file.
        means: The means by label, in the order of the rows.
        values: The values of the seeds, by label.
        metric: The metric.
    """
    figure, axes = _rows(list(means))
    for row, (label, mean) in enumerate(means.items()):
        shown = [metric.factor * value for value in values[label]]
        axes.plot(shown, [row] * len(shown), ".", color=FAINT, zorder=1)
        _interval(axes, row, *(metric.factor * each for each in (mean.mean, mean.low, mean.high)))
    axes.set_xlabel(f"{metric.axis_text}: mean over {next(iter(means.values())).count} seeds, 95 %")
    _save(figure, path)


def draw_differences(path: Path, differences: Sequence[Difference], metric: Metric) -> None:
    """Draw paired differences with their intervals and a line at zero; of ratios, at one."""
    signs = "/" if metric.is_ratio else "−"
    figure, axes = _rows([f"{each.arm} {signs} {each.base}{_at(each)}" for each in differences])
    axes.axvline(1 if metric.is_ratio else 0, color=INK, linewidth=0.8)
    for row, each in enumerate(differences):
        _interval(axes, row, *map(metric.difference, (each.mean, each.low, each.high)))
    if metric.is_ratio:
        axes.set_xscale("log")
    step = metric.step or metric.unit
    kind = "ratio" if metric.is_ratio else f"difference{f' in {step}' if step else ''}"
    axes.set_xlabel(f"paired {kind} of {metric.title}, 95 %")
    _save(figure, path)


def draw_curves(path: Path, curves: Mapping[str, Mapping[int, Mean]], metric: Metric) -> None:
    """Draw a metric's curves with their intervals.

    Args:
        path: The SVG file.
        curves: The means by label and number.
        metric: The metric. If arms are compared by ratios, its axis is logarithmic.
    """
    figure, axes = _figure(_WIDTH, 4.2)
    for index, (label, curve) in enumerate(curves.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        at, means = list(curve), list(curve.values())
        middle = [metric.factor * each.mean for each in means]
        ends = [[metric.factor * getattr(each, end) for each in means] for end in ("low", "high")]
        axes.plot(at, middle, marker=marker, color=colour, label=label, markersize=4, linewidth=1.4)
        axes.fill_between(at, *ends, color=colour, alpha=0.15, linewidth=0)
    numbers = sorted({at for curve in curves.values() for at in curve})
    if metric.log_along:
        axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(numbers, [f"{at:,}" for at in numbers])
    if metric.is_ratio:
        axes.set_yscale("log")
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.set_xlabel(metric.along, fontsize=9)
    axes.set_ylabel(f"{metric.heading}: mean, 95 %", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    _save(figure, path)


def _at(difference: Difference) -> str:
    return "" if difference.at is None else f", {difference.at:,}"


def _rows(labels: Sequence[str]) -> tuple[Any, Any]:
    figure, axes = _figure(_WIDTH, _MARGIN + _ROW * len(labels))
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.spines["left"].set_visible(False)
    axes.xaxis.label.set_fontsize(9)
    return figure, axes


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _interval(axes: Any, row: int, middle: float, low: float, high: float) -> None:
    axes.plot([low, high], [row, row], color=ACCENT, linewidth=2, solid_capstyle="butt")
    axes.plot(middle, row, "o", color=ACCENT, markersize=5)


def _save(figure: Any, path: Path) -> None:
    import matplotlib

    # Neither a date nor random names: the same results make the same file.
    with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
