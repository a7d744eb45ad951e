"""A study as one HTML page, which refers to nothing outside of it.

Names and values are escaped, by Jinja in the text and by plotly in the figures.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from pipeline.config.folders import Folder
from pipeline.runs.records import replace_text
from pipeline.training.objectives import objective_class
from pipeline.tuning.figures import (
    costs_of,
    curves_figure,
    front_figure,
    importances_figure,
    parallel_figure,
    searched_fields,
)
from pipeline.tuning.front import COSTS, pareto_front, scaling_law
from pipeline.tuning.report import happened
from pipeline.tuning.spending import told_of_budget
from pipeline.tuning.study import Study

MAX_REFUSED = 20


def study_page(
    result: Mapping[str, Any],
    *,
    name: str,
    metric: str,
    sign: int,
    curves: Mapping[str, Sequence[float | None]],
    command: str,
    notes: Sequence[str] = (),
) -> str:
    """Return the page of a study.

    Args:
        result: What `tune` returns: `trials`, `settings`, `failed`, `refused` and `run_id`.
        name: The name of the configuration.
        metric: The objective's metric that ranks the trials.
        sign: 1 if a higher metric is better, -1 if a lower one is.
        curves: The metric after each epoch, by the trial's `id`; None where it is not finite.
        command: The command that ran the study.
        notes: What happened to the study, one line each.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    rows = rows_of(result, metric)
    figures = [
        (
            f"{metric} against {COSTS[cost]}",
            "Each point is a setting. No other one is as cheap and better than those on the line.",
            front_figure(rows, metric, sign, cost),
        )
        for cost in costs_of(rows)
    ]
    if len(rows) > 1 and searched_fields(rows):
        figures.append(
            (
                "Settings",
                "A line for each setting, from the best in dark to the worst in yellow. Click on a "
                "rank to hide its line.",
                parallel_figure(rows, metric),
            )
        )
        if importances := importances_figure(rows, metric, sign):
            figures.append(
                (
                    "Importance of the fields",
                    "The share of the metric's variance that each field explains by itself and "
                    "with others (fANOVA, Hutter et al. 2014, on a forest of random trees). With "
                    "few trials these are rough.",
                    importances,
                )
            )
    if any(curves.values()):
        figures.append(
            (
                "Learning curves",
                f"The {metric} on validation of each trial after each epoch.",
                curves_figure(result["trials"], curves, metric),
            )
        )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters["number"] = _number
    environment.filters["happened"] = happened
    source = files("pipeline.tuning").joinpath("study.html.jinja").read_text("utf-8")
    return environment.from_string(source).render(
        name=name,
        metric=metric,
        command=command,
        notes=notes,
        result=result,
        rows=rows,
        has_interval=any(row["low"] is not None for row in rows),
        max_refused=MAX_REFUSED,
        fields=searched_fields(rows),
        costs=costs_of(rows),
        front=set(pareto_front(rows, metric, sign, "forward_flops")),
        law=scaling_law(rows, "forward_flops"),
        plotly=Markup(get_plotlyjs()),  # the library's own code
        figures=[
            (title, text, Markup(_embedded(figure)))  # plotly escapes what a script could end
            for title, text, figure in figures
        ],
    )


def write_page(path: Folder, result: Mapping[str, Any], study: Study, name: str) -> None:
    """Write the page of a study that has ended, as a whole.

    Args:
        path: The file of the page.
        result: What `tune` returns.
        study: The study.
        name: The name of the configuration.
    """
    objective = objective_class(result.get("objective"))
    curves = {
        f"{number:05d}": [
            None if score is None else objective.signed(score)
            for _, score in sorted(record.scores.items())
        ]
        for number, record in study.records.items()
    }
    text = study_page(
        result,
        name=name,
        metric=objective.selection,
        sign=1 if objective.higher_is_better else -1,
        curves=curves,
        command=f"perceiver tune {name}",
        notes=told_of_budget(result.get("budget")),
    )
    replace_text(path, text)


def rows_of(result: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    """Return what the page shows of each setting, by rank.

    Args:
        result: What `tune` returns.
        metric: The objective's metric.

    Returns:
        For each setting: `params`, the metric (the mean over its seeds), `low` and `high` (the ends
        of its interval or None), the costs, and of its best trial `epochs`, `stopped_early`,
        `val_loss` and `notes`.
    """
    trials = {trial["id"]: trial for trial in result["trials"]}
    rows = []
    for setting in result["settings"]:
        best = trials[setting["ids"][0]]
        low, high = setting["interval"] or (None, None)
        costs = {cost: setting.get(cost, best.get(cost)) for cost in COSTS}
        rows.append(
            {
                "params": setting["params"],
                metric: setting[metric],
                "low": low,
                "high": high,
                **costs,
                "epochs": best["epochs"],
                "stopped_early": best["stopped_early"],
                "val_loss": best.get("val_loss"),
                "notes": best["notes"],
            }
        )
    return rows


def _embedded(figure: Any) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False, default_height="460px"))


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
