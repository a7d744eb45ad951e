"""Plots of a study."""

import itertools
import math
from pathlib import Path
from typing import Any

_FONT_POINTS = 7
_CHARACTER, _LINE = 0.061, 0.16
"""The width of a character and the height of a line in the list, in inches."""
_PLOT = (7.0, 4.6)
_AXIS_LABELS = 0.65
_ROWS = 14


def plot_study(trials: list[dict[str, Any]], path: Path, title: str, metric: str) -> None:
    """Draw a validation metric against forward FLOPs, with one numbered point per trial, as PNG.

    The numbers are the ranks. A list below the plot gives the settings of each trial.

    Args:
        trials: The trials, best first, with the metric, `forward_flops`, `stopped_early` and
            `params`.
        path: The path of the PNG.
        title: The title of the plot.
        metric: The objective's metric that ranks the trials.
    """
    study_figure(trials, title, metric).savefig(path)


def study_figure(trials: list[dict[str, Any]], title: str, metric: str) -> Any:
    """Return the matplotlib figure that `plot_study` saves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [f"{rank:>3}  {_settings(trial)}" for rank, trial in enumerate(trials, start=1)]
    column_width = _CHARACTER * (max(map(len, lines)) + 3)
    columns = min(math.ceil(len(lines) / _ROWS), max(1, int(2 * _PLOT[0] / column_width)))
    rows = math.ceil(len(lines) / columns)
    width = max(_PLOT[0], columns * column_width)
    list_height = (rows + 1) * _LINE
    height = _PLOT[1] + list_height
    figure = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(figure)
    bottom = list_height + _AXIS_LABELS
    axes = figure.add_axes(
        (0.8 / width, bottom / height, 1 - 1.0 / width, (height - bottom - 0.4) / height)
    )
    for rank, trial in enumerate(trials, start=1):
        axes.scatter(
            trial["forward_flops"] / 1e6,
            trial[metric],
            c="tab:orange" if rank == 1 else "tab:blue",
            marker="x" if trial["stopped_early"] else "o",
        )
    axes.set_xlabel("forward MFLOPs a sample")
    axes.set_ylabel(f"{metric} on validation")
    axes.set_title(f"{title}: by rank, the best in orange; × stopped early", fontsize=10)
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    _number_points(axes, [(trial["forward_flops"] / 1e6, trial[metric]) for trial in trials])
    for index, line in enumerate(lines):
        column, row = divmod(index, rows)
        x, y = column * column_width / width, (rows - row) * _LINE / height
        figure.text(x, y, line, fontsize=_FONT_POINTS, family="monospace", va="center")
    return figure


def _number_points(axes: Any, points: list[tuple[float, float]]) -> None:
    """Write each point's rank beside it, where it covers no point and no other number."""
    figure = axes.figure
    figure.draw_without_rendering()  # sets the limits of the axes
    renderer = figure.canvas.get_renderer()
    pixels = axes.transData.transform(points)
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in pixels]
    frame = axes.get_window_extent(renderer).extents
    for rank, (point, (x, y)) in enumerate(zip(points, pixels, strict=True), start=1):
        text = axes.annotate(
            str(rank), point, xytext=(0, 0), textcoords="offset pixels", fontsize=_FONT_POINTS,
            ha="center", va="center", arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "gray"},
        )  # fmt: skip
        box = text.get_window_extent(renderer)
        half_width, half_height = (box.width + 3) / 2, (box.height + 2) / 2
        for right, up in _around():
            a, b = x + right, y + up
            box = (a - half_width, b - half_height, a + half_width, b + half_height)
            inside = box[0] > frame[0] and box[1] > frame[1]
            inside = inside and box[2] < frame[2] and box[3] < frame[3]
            if inside and not any(_overlap(box, other) for other in taken):
                text.set_position((right, up))
                taken.append(box)
                break
        else:  # the frame has no room for another number
            text.remove()


def _around() -> Any:
    """Yield offsets in pixels, the nearest first."""
    for radius, turn in itertools.product(range(13, 400, 8), range(16)):
        angle = math.pi * (2 * turn + 4) / 16
        yield radius * math.cos(angle), radius * math.sin(angle)


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _settings(trial: dict[str, Any]) -> str:
    return "  ".join(f"{k.rpartition('.')[2]}={_short(v)}" for k, v in trial["params"].items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
