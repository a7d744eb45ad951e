"""The page of a study, as Markdown with figures."""

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.runs.records import replace_text, write_json
from pipeline.studies.figures import draw_curves, draw_differences, draw_means
from pipeline.studies.index import SUMMARY
from pipeline.studies.metrics import ACCURACY, Metric
from pipeline.studies.other_seeds import stated_points
from pipeline.studies.page_tables import arms_table, curves_table, differences_table, sentence
from pipeline.studies.study import Found, Point, Study

WIDTH = 100
Results = Mapping[str, Sequence[Mapping[str, Any]]]


def write_study(
    folder: Path, study: Study, found: Found, results: Results, about: Mapping[str, Any]
) -> Path:
    """Write the page of a study, its figures, and a summary for the index.

    Args:
        folder: The folder that gets them.
        study: The study.
        found: The means and differences.
        results: The results by label, from `by_label`, in the order of the seeds.
        about: `scale`, `seeds`, `first_seed`, `overrides`, `command`, `machine`, `versions`,
            `date`, `data` and `minutes`.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for metric in study.metrics:
        _draw(folder, study, found, metric)
    for source, name, _ in _pictures(study, results):
        shutil.copy(source, folder / name)
    page = folder / f"{study.name}.md"
    replace_text(page, page_text(study, found, results, about))
    summary = {
        "name": study.name,
        "question": study.question,
        "answer": study.answer(found),
        "interval": _widest(study, found),
        "seeds": about["seeds"],
        "first_seed": about["first_seed"],
        "scale": about["scale"],
        "overrides": about["overrides"],
        "command": about["command"],
        "points": stated_points(found),
    }
    write_json(folder / f"{study.name}{SUMMARY}", summary)
    return page


def page_text(study: Study, found: Found, results: Results, about: Mapping[str, Any]) -> str:
    """Return the page of a study. The arguments are those of `write_study`."""
    seeds = about["seeds"]
    numbers = [each for each in study.metrics if found.means_of(each.name)]
    measured = study.measured or (
        f"Every accuracy is on test {study.samples}s that no training has seen, of the weights "
        "after the last epoch."
    )
    answer = study.answer(found)
    unclear = (
        " *Not clear* marks a difference whose corrected *p* is 0.05 or more."
        if "not clear" in answer
        else ""
    )
    arms = arms_table(study, found, results, seeds)
    parts = [
        f"# {study.question}",
        _wrapped(f"**{sentence(answer)}**"),
        _wrapped(
            f"Scale `{about['scale']}`, {seeds} seeds for each arm, {about['data']}. {measured} "
            "Intervals are 95 %, by Student's distribution over the seeds; the mean of as many "
            f"other seeds is expected in one that is {2**0.5:.2f} times as wide.{unclear}"
        ),
        *(f"![{each.title} of each arm]({_figure(study, each)})" for each in numbers),
        *map(_wrapped, study.notes),
        *(["## Every arm", arms, _wrapped(_beside(study))] if arms else []),
        *(part for each in study.metrics for part in _curve_parts(study, found, each)),
        *_ends(results),
        *([] if study.section is None else [study.section(found)]),
        *_picture_parts(study, results),
        *(["## Differences"] if found.differences else []),
        *(part for each in study.metrics for part in _difference_parts(study, found, each, seeds)),
        "## What the papers report",
        _wrapped(study.paper),
        "## What was not controlled, and what would change the answer",
        "\n".join(_wrapped(line, "- ") for line in study.uncontrolled),
        "## How it was made",
        f"```bash\n{about['command']}\n```",
        _wrapped(
            f"{about['machine']}; {about['versions']}; {about['date']}; "
            f"{about['minutes']:.0f} minutes of training processes, added up."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _beside(study: Study) -> str:
    names = {each.name for each in study.columns}
    if not {"forward_flops", "seconds"} <= names:
        return "Columns without an interval are means over the seeds."
    return (
        f"FLOPs are of one forward pass of one {study.samples}, seconds of one training with its "
        "start, on the resources of one trial. Both are means over the seeds."
    )


def _curve_parts(study: Study, found: Found, metric: Metric) -> list[str]:
    curves = found.curves(metric.name)
    if not curves:
        return []
    geometric = " Means and intervals are geometric." if metric.is_ratio else ""
    return [
        f"## {_capital(metric.title)} by {metric.along}",
        f"![{metric.title} by {metric.along}]({_figure(study, metric, 'curves')})",
        *([_wrapped(f"{metric.told}{geometric}")] if metric.told else []),
        curves_table(metric, curves),
    ]


def _difference_parts(study: Study, found: Found, metric: Metric, seeds: int) -> list[str]:
    differences = [each for each in found.differences if each.metric == metric.name]
    if not differences:
        return []
    tests = len(found.differences)
    with_p = (
        f"*p* is that of a paired t-test on {seeds} seeds, after Holm's correction for the {tests} "
        "tests of this page."
    )
    if metric.is_ratio:
        told = (
            f"A ratio is the geometric mean over seeds of the arm's {metric.title} over the "
            f"other's with the same seed. The t-test is of the logarithms. {with_p}"
        )
    else:
        step = "points (hundredths)" if metric.step == "points" else metric.step or metric.unit
        told = (
            f"A difference is the mean over seeds of the arm's {metric.title} minus the other's "
            f"with the same seed{f', in {step}' if step else ''}. {with_p}"
        )
    return [
        f"![paired differences]({_figure(study, metric, 'differences')})",
        differences_table(metric, differences),
        _wrapped(told),
    ]


def _ends(results: Results) -> list[str]:
    """Return why curves end early, as the work reports it in `ends`."""
    lines = {
        f"{label}: {rows[0]['ends']}": None
        for label, rows in results.items()
        if rows[0].get("ends")
    }
    return ["\n".join(_wrapped(line, "- ") for line in lines)] if lines else []


def _pictures(study: Study, results: Results) -> list[tuple[str, str, str]]:
    """Return file, name on the page and caption of the pictures that the first seed has made."""
    return [
        (each["file"], f"{study.name}-{each['name']}-{_slug(label)}.png", each["caption"])
        for label, rows in results.items()
        for each in rows[0].get("pictures", ())
    ]


def _picture_parts(study: Study, results: Results) -> list[str]:
    found = _pictures(study, results)
    parts = ["## Pictures"] if found else []
    for _, name, caption in found:
        parts += [f"![{caption.split('.')[0]}]({name})", _wrapped(caption)]
    return parts


def _slug(label: str) -> str:
    """Return a label as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def _draw(folder: Path, study: Study, found: Found, metric: Metric) -> None:
    means = found.means_of(metric.name)
    if means:
        values = {label: found.values[Point(metric.name, label, None)] for label in means}
        draw_means(folder / _figure(study, metric), means, values, metric)
    curves = found.curves(metric.name)
    if curves:
        draw_curves(folder / _figure(study, metric, "curves"), curves, metric)
    differences = [each for each in found.differences if each.metric == metric.name]
    if differences:
        draw_differences(folder / _figure(study, metric, "differences"), differences, metric)


def _figure(study: Study, metric: Metric, kind: str = "") -> str:
    """Return the name of a figure. The main metric's have no name of a metric."""
    names = (study.name, "" if metric == study.metrics[0] else metric.name, kind)
    return f"{'-'.join(filter(None, names)).replace('_', '-')}.svg"


def _widest(study: Study, found: Found) -> str:
    """Return the half width of the widest interval among the main differences, or the means."""
    main = study.metrics[0]
    each: Sequence[Any] = [d for d in found.differences if d.metric == main.name]
    if main.is_ratio and each:
        half = max((d.high - d.low) / 2 for d in each)
        return f"at most × or ÷ {main.shown_difference(half)[2:]}"
    each = each or [mean for point, mean in found.points.items() if point.metric == main.name]
    half = main.factor * max((one.high - one.low) / 2 for one in each)
    if main == ACCURACY:
        return f"at most ± {half:.1f} points"
    return f"at most ± {half:{main.spec}} {main.step or main.unit}".rstrip()


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _wrapped(text: str, mark: str = "") -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )
