"""Compare the means of a study with those that its page states, which has other seeds."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.studies.metrics import Metric
from pipeline.studies.request import Request
from pipeline.studies.statistics import CONFIDENCE, Mean, expected
from pipeline.studies.study import Found, Point, Study


class Compared(NamedTuple):
    """A mean of other seeds beside the page's.

    Attributes:
        metric: The name of the metric.
        label: The label of the arm, pool or curve.
        at: The number of the curve; None for a metric that is one number.
        stated: The page's mean.
        low: The lower end of where a mean of as many seeds as ours is expected, with 95 %.
        high: The upper end.
        mean: Ours.
        is_within: Whether ours is there.
    """

    metric: str
    label: str
    at: int | None
    stated: float
    low: float
    high: float
    mean: float
    is_within: bool


def stated_points(found: Found) -> list[dict[str, Any]]:
    """Return the means of a study for the summary of its page."""
    return [{**point._asdict(), **vars(mean)} for point, mean in found.points.items()]


def read_summary(path: Path, request: Request, seeds: range) -> dict[str, Any]:
    """Read the summary of a page, before any training begins.

    Args:
        path: The file `NAME.json` beside the page.
        request: What is asked for now.
        seeds: The seeds that are asked for.

    Raises:
        UserError: The file is no summary with means, or of something else, or has a seed of ours.
    """
    where = f"--against {path}"
    try:
        summary = json.loads(path.read_text())
        asked = summary["name"], summary["scale"], list(summary["overrides"])
        theirs = range(summary["first_seed"], summary["first_seed"] + summary["seeds"])
        if not theirs or not _stated(summary):
            raise ValueError("no seeds or no means")
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{where}: is no summary of a study's page with its means; give the NAME.json that "
            "'perceiver study --docs' writes beside it"
        ) from None
    if asked != (request.name, request.scale, list(request.overrides)):
        raise UserError(f"{where}: is of '{summary['command']}', which asks for something else")
    if set(theirs) & set(seeds):
        last = theirs[-1]
        raise UserError(
            f"{where}: has the seeds {theirs[0]} to {last}; give --first-seed {last + 1}"
        )
    return dict(summary)


def compared(study: Study, found: Found, summary: Mapping[str, Any]) -> list[Compared]:
    """Return our means beside the page's, where both have one, in the order of the page."""
    metrics, rows = {each.name: each for each in study.metrics}, []
    for point, stated in _stated(summary).items():
        ours = found.points.get(point)
        if ours is None:
            continue
        low, high = _range(metrics[point.metric], stated, ours.count)
        slack = 1e-9 * max(1.0, abs(ours.mean))  # rounding alone puts no mean outside
        is_within = low - slack <= ours.mean <= high + slack
        rows.append(Compared(*point, stated.mean, low, high, ours.mean, is_within))
    return rows


def agreement(rows: Sequence[Compared]) -> str:
    """Return the comparison in one line."""
    within = sum(each.is_within for each in rows)
    return (
        f"{within} of {len(rows)} means lie where the page expects those of other seeds; "
        f"{CONFIDENCE:.0%} should"
    )


def against_table(study: Study, rows: Sequence[Compared]) -> list[tuple[str, ...]]:
    """Return a row of text for each comparison: what, the page's mean, expected, ours, within."""
    metrics = {each.name: each for each in study.metrics}
    lines: list[tuple[str, ...]] = []
    for each in rows:
        metric = metrics[each.metric]
        at = "" if each.at is None else f", {metric.along} {each.at:,}"
        lines.append(
            (
                f"{each.label}{at}",
                metric.heading,
                metric.shown(each.stated),
                f"{metric.shown(each.low)} to {metric.shown(each.high)}",
                metric.shown(each.mean),
                "within" if each.is_within else "outside",
            )
        )
    return lines


def _stated(summary: Mapping[str, Any]) -> dict[Point, Mean]:
    """Return the means of a summary.

    Raises:
        KeyError, TypeError, ValueError: It has none.
    """
    found = {}
    for each in summary["points"]:
        mean, low, high = (float(each[name]) for name in ("mean", "low", "high"))
        if not math.isfinite(mean + low + high) or int(each["count"]) < 2:
            raise ValueError("a mean is not finite or has no interval")
        at = None if each["at"] is None else int(each["at"])
        point = Point(str(each["metric"]), str(each["label"]), at)
        found[point] = Mean(mean, low, high, int(each["count"]))
    return found


def _range(metric: Metric, stated: Mean, count: int) -> tuple[float, float]:
    if not metric.is_ratio:
        return expected(stated, count)
    mean, low, high = (math.log(value) for value in (stated.mean, stated.low, stated.high))
    low, high = expected(Mean(mean, low, high, stated.count), count)
    return math.exp(low), math.exp(high)
