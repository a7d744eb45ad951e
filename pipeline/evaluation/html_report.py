"""An evaluation as one HTML file, which refers to nothing outside of it.

Everything that a set holds is untrusted: names of files, classes and texts are escaped by Jinja.
"""

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

MAX_MATRIX, MAX_CONFUSED_PAIRS = 40, 25
_SIZE = 240
"""The width and height of a diagram, in pixels."""


def html_report(result: dict[str, Any], heading: str | None = None) -> str:
    """Return the report.

    Args:
        result: What `evaluate` returns.
        heading: What the samples in `worst` are; None calls them those with the largest loss.
    """
    count = len(result["worst"])
    heading = heading or f"The {count} samples with the largest loss"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters |= {"number": _number, "text": _text, "points": _points}
    source = files("pipeline.evaluation").joinpath("report.html.jinja").read_text("utf-8")
    classes = result["classes"] or []
    return environment.from_string(source).render(
        result=result,
        heading=heading,
        columns=list(dict.fromkeys(key for each in classes for key in each)),
        matrix=_matrix(result["confusion_matrix"]),
        pairs=_confused(result["confusion_matrix"]),
        labels=_by_label(result["confusion_matrix"]),
        size=_SIZE,
    )


def _number(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    """Return a target or an answer as text; files are left out, which the report shows itself."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not (isinstance(v, dict) and "base64" in v)}
        return "\n".join(f"{name}: {_text(inner)}" for name, inner in kept.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _points(weights: list[float]) -> str:
    """Return a curve as the points of an SVG polyline."""
    most, last = max([*weights, 1e-30]), max(1, len(weights) - 1)
    return " ".join(
        f"{_SIZE * index / last:.1f},{60 - 58 * weight / most:.1f}"
        for index, weight in enumerate(weights)
    )


def _matrix(matrix: dict[str, Any] | None) -> list[tuple[str, list[tuple[int, float]]]] | None:
    """Return the rows of a small matrix: each count with its share of the row."""
    if matrix is None or "counts" not in matrix or len(matrix["classes"]) > MAX_MATRIX:
        return None
    return [
        (name, [(count, count / max(1, sum(row))) for count in row])
        for name, row in zip(matrix["classes"], matrix["counts"], strict=True)
    ]


def _confused(matrix: dict[str, Any] | None) -> list[tuple[int, str, str]]:
    """Return how often the most confused classes are taken for each other."""
    if matrix is None or "counts" not in matrix:
        return []
    names = matrix["classes"]
    pairs = [
        (count, names[row], names[column])
        for row, counts in enumerate(matrix["counts"])
        for column, count in enumerate(counts)
        if count and row != column
    ]
    return sorted(pairs, key=lambda pair: -pair[0])[:MAX_CONFUSED_PAIRS]


def _by_label(matrix: dict[str, Any] | None) -> list[tuple[str, int, int, int, int]]:
    """Return true negatives, false positives, false negatives and true positives by label."""
    if matrix is None or "counts_by_label" not in matrix:
        return []
    return [
        (name, *counts[0], *counts[1])
        for name, counts in zip(matrix["classes"], matrix["counts_by_label"], strict=True)
    ]
