"""What a study has found: the means of its metrics and their paired differences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.studies.metrics import Metric
from pipeline.studies.statistics import Difference, Mean, corrected, difference_of, mean_of
from pipeline.studies.study import Found, Pair, Point, Pool, Study

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""The results of the seeds, by label."""


def by_label(study: Study, results: Results) -> dict[str, list[dict[str, Any]]]:
    """Return the results of arms with those of pools and of further labels.

    Args:
        study: The study.
        results: The results of the arms' work, seed by seed.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in study.arms:
        found[arm.label] = [dict(each) for each in results[arm.label]]
        for label in arm.also:
            found[label] = [each["also"][label] for each in results[arm.label]]
    # Pools first: they are what the answer is about.
    return {**{pool.label: pooled(pool, found) for pool in study.pools}, **found}


def pooled(pool: Pool, results: Results) -> list[dict[str, Any]]:
    """Return results of a pool, seed by seed: the mean of each number over its arms."""
    rows = zip(*(results[label] for label in pool.arms), strict=True)
    return [numbers_of(row) for row in rows]


def numbers_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each number that results have."""
    names = [name for name, value in rows[0].items() if isinstance(value, int | float)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in names}


def found_of(study: Study, results: Results) -> Found:
    """Return what a study has found.

    Args:
        study: The study.
        results: The results by label, from `by_label`. A metric that a seed lacks, or of which it
            has None, has no mean.
    """
    lines = {arm.label: arm.line for arm in study.arms if arm.line}
    values: dict[Point, list[float]] = {}
    for metric in study.metrics:
        for label, rows in results.items():
            line, at = lines.get(label, (label, None))
            for number, found in _by_number(metric, rows).items():
                values[Point(metric.name, line, at if number is None else number)] = found
    metrics = {each.name: each for each in study.metrics}
    points = {point: _mean(metrics[point.metric], found) for point, found in values.items()}
    differences = [_difference(study, pair, values) for pair in study.pairs]
    known = corrected([each for each in differences if each is not None])
    numbers = {label: numbers_of(rows) for label, rows in results.items()}
    return Found(study.metrics[0].name, points, values, known, numbers)


def _mean(metric: Metric, values: Sequence[float]) -> Mean:
    """Return the mean of a metric. If it is compared by ratios, the mean is geometric."""
    found = mean_of([metric.compared(value) for value in values])
    if not metric.is_ratio:
        return found
    return Mean(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.count)


def _by_number(metric: Metric, rows: Sequence[Mapping[str, Any]]) -> dict[int | None, list[float]]:
    """Return the values of the seeds by number of the curve; by None if there is no curve."""
    found: dict[int | None, list[float]] = {}
    for row in rows:
        value = row.get(metric.name)
        curve = value.items() if isinstance(value, Mapping) else [(None, value)]
        for at, each in curve:
            if each is not None:
                found.setdefault(None if at is None else int(at), []).append(float(each))
    return {at: values for at, values in found.items() if len(values) == len(rows)}


def _difference(
    study: Study, pair: Pair, values: Mapping[Point, Sequence[float]]
) -> Difference | None:
    """Return a difference, or None if one of the two has not been measured."""
    name = pair.metric or study.metrics[0].name
    metric = next(each for each in study.metrics if each.name == name)
    both = [values.get(Point(name, label, pair.at)) for label in (pair.arm, pair.base)]
    if both[0] is None or both[1] is None:
        return None
    ours, theirs = ([metric.compared(value) for value in each] for each in both if each)
    return difference_of(pair.arm, pair.base, ours, theirs, name, pair.at)
