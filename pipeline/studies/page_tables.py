"""The tables of a study's page, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.studies.metrics import Metric
from pipeline.studies.statistics import Difference, Mean
from pipeline.studies.study import Found, Point, Study

MISSING = "—"


def arms_table(
    study: Study, found: Found, results: Mapping[str, Sequence[Mapping[str, Any]]], seeds: int
) -> str:
    """Return the table of the arms: their numbers with intervals, and the columns beside.

    Curves have tables of their own. An arm that has curves only, and no columns, is left out.

    Args:
        study: The study.
        found: The means.
        results: The results by label.
        seeds: The number of seeds.
    """
    metrics = [each for each in study.metrics if found.means_of(each.name)]
    headings = [word for each in metrics for word in (each.heading, "interval")] + ["seeds"]
    headings += [each.heading.format(samples=study.samples) for each in study.columns]
    rows = [["arm", *headings]]
    for label, arm in results.items():
        means = [found.points.get(Point(each.name, label, None)) for each in metrics]
        beside = [_average(each, arm) for each in study.columns]
        if any(means) or any(text != MISSING for text in beside):
            numbers = [
                word
                for metric, mean in zip(metrics, means, strict=True)
                for word in _with_interval(metric, mean)
            ]
            rows.append([label, *numbers, str(seeds), *beside])
    return markdown_table(rows) if len(rows) > 1 else ""


def curves_table(metric: Metric, curves: Mapping[str, Mapping[int, Mean]]) -> str:
    """Return the table of a metric's curves: a row for each label, a column for each number."""
    numbers = sorted({at for curve in curves.values() for at in curve})
    rows = [[f"{metric.heading}; {metric.along}", *(f"{at:,}" for at in numbers)]]
    for label, curve in curves.items():
        cells = []
        for at in numbers:
            shown, interval = _with_interval(metric, curve.get(at))
            cells.append(f"{shown} ({interval})" if at in curve else shown)
        rows.append([label, *cells])
    return markdown_table(rows)


def differences_table(metric: Metric, differences: Sequence[Difference]) -> str:
    """Return the table of the differences of a metric."""
    along = [metric.along] if any(each.at is not None for each in differences) else []
    rows = [["arm", "over" if metric.is_ratio else "minus", *along, metric.step_name, "interval"]]
    rows[0].append("p, corrected")
    for d in differences:
        at = [MISSING if d.at is None else f"{d.at:,}"] if along else []
        low, high = metric.shown_difference(d.low), metric.shown_difference(d.high)
        shown = metric.shown_difference(d.mean)
        rows.append([d.arm, d.base, *at, shown, f"{low} to {high}", _p(d.corrected_p)])
    return markdown_table(rows)


def markdown_table(rows: Sequence[Iterable[str]]) -> str:
    """Return rows, of which the first are the headings, as a table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(list(rows[0])), *lines[1:]])


def sentence(text: str) -> str:
    """Return an answer as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def _with_interval(metric: Metric, mean: Mean | None) -> tuple[str, str]:
    if mean is None:
        return MISSING, MISSING
    low, high = metric.shown(mean.low), metric.shown(mean.high)
    return metric.shown(mean.mean), f"{low} to {high}"


def _average(metric: Metric, rows: Sequence[Mapping[str, Any]]) -> str:
    values = [each[metric.name] for each in rows if each.get(metric.name) is not None]
    return metric.shown(sum(values) / len(values)) if values else MISSING


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
