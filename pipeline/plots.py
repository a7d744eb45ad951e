"""Pictures of a study."""

from pathlib import Path
from typing import Any


def plot_study(trials: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw accuracy on validation against forward FLOPs, one point a trial, as PNG.

    Args:
        trials: with ``accuracy``, ``forward_flops`` and ``params``; the best first.
        path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for rank, trial in enumerate(trials):
        color = "tab:orange" if rank == 0 else "tab:blue"
        marker = "x" if trial["stopped_early"] else "o"
        axes.scatter(trial["forward_flops"] / 1e6, trial["accuracy"], c=color, marker=marker)
        label = "\n".join(f"{k.rpartition('.')[2]}={_short(v)}" for k, v in trial["params"].items())
        axes.annotate(
            label,
            (trial["forward_flops"] / 1e6, trial["accuracy"]),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=6,
        )
    axes.set_xlabel("forward MFLOPs a sample")
    axes.set_ylabel("accuracy on validation")
    axes.set_title(f"{title}: best in orange; × stopped early")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    figure.savefig(path)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
