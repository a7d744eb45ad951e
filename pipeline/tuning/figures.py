"""The interactive figures of a study's page, by plotly."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pipeline.tuning.front import COSTS, pareto_front

MIN_IMPORTANCE_TRIALS = 8
"""The fewest trials whose fields are given an importance."""
_TREES = 64
_MOST_TICKS = 8
_LOG_RATIO = 20
"""Numbers that differ by more than this factor get a logarithmic axis."""
_MARGIN = {"l": 60, "r": 30, "t": 30, "b": 50}


def costs_of(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the costs that trials have."""
    return [cost for cost in COSTS if any(trial.get(cost) is not None for trial in trials)]


def searched_fields(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the searched fields of trials, those that only some trials have included."""
    return list(dict.fromkeys(field for trial in trials for field in trial["params"]))


def front_figure(trials: Sequence[Mapping[str, Any]], metric: str, sign: int, cost: str) -> Any:
    """Return the metric against a cost, with the Pareto front as a line.

    A trial that has an interval of its metric, `low` and `high`, gets an error bar.
    """
    import plotly.graph_objects as go

    ranked = [(rank, trial) for rank, trial in enumerate(trials, start=1)
              if trial.get(cost) is not None]  # fmt: skip
    values = [trial[metric] for _, trial in ranked]
    has_interval = any(trial.get("low") is not None for _, trial in ranked)
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [_or(trial.get("high"), trial[metric]) - trial[metric] for _, trial in ranked],
        "arrayminus": [trial[metric] - _or(trial.get("low"), trial[metric]) for _, trial in ranked],
    }
    front = pareto_front(trials, metric, sign, cost)
    figure = go.Figure()
    figure.add_scatter(
        x=[trials[number][cost] for number in front],
        y=[trials[number][metric] for number in front],
        mode="lines",
        line={"shape": "hv", "dash": "dot"},
        name="Pareto front",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[trial[cost] for _, trial in ranked],
        y=values,
        error_y=bars if has_interval else None,
        mode="markers+text",
        text=[str(rank) for rank, _ in ranked],
        textposition="top center",
        hovertext=[_described(rank, trial, metric) for rank, trial in ranked],
        hoverinfo="text",
        marker={
            "size": 9,
            "symbol": ["x" if trial.get("stopped_early") else "circle" for _, trial in ranked],
        },
        name="trials by rank (× stopped early)",
    )
    figure.update_xaxes(type="log", title=COSTS[cost])
    figure.update_yaxes(title=metric)
    return _laid_out(figure)


def parallel_figure(trials: Sequence[Mapping[str, Any]], metric: str) -> Any:
    """Return parallel coordinates of the searched fields and the metric.

    A line for each trial has the colour of its rank. Numbers keep their scale, or that of their
    logarithm. Other values, and fields that some trials lack, are names in their order.
    """
    import plotly.graph_objects as go
    from plotly.colors import sample_colorscale

    axes = [_axis(field.rpartition(".")[2], [trial["params"].get(field) for trial in trials])
            for field in searched_fields(trials)]  # fmt: skip
    axes.append(_axis(metric, [trial[metric] for trial in trials]))
    colors = sample_colorscale("Viridis", len(trials))
    figure = go.Figure()
    for number, trial in reversed(list(enumerate(trials))):
        figure.add_scatter(
            x=list(range(len(axes))),
            y=[axis.places[number] for axis in axes],
            mode="lines+markers",
            line={"color": colors[number], "width": 3 if number == 0 else 1.5},
            hovertext=_described(number + 1, trial, metric),
            hoverinfo="text",
            name=f"{number + 1}",
        )
    for number, axis in enumerate(axes):
        for place, text in axis.ticks:
            figure.add_annotation(
                x=number, y=place, text=text, showarrow=False, xanchor="left", xshift=7
            )
        figure.add_vline(x=number, line={"color": "#bbb", "width": 1})
    figure.update_xaxes(
        tickvals=list(range(len(axes))),
        ticktext=[axis.label for axis in axes],
        range=[-0.1, len(axes) - 0.6],
        showgrid=False,
    )
    figure.update_yaxes(visible=False)
    return _laid_out(figure)


def importances_figure(trials: Sequence[Mapping[str, Any]], metric: str, sign: int) -> Any | None:
    """Return the importance of each field; None if there are too few trials, or one field."""
    import plotly.graph_objects as go

    found = importances(trials, metric, sign)
    if not found:
        return None
    names = sorted(found, key=lambda field: found[field])
    figure = go.Figure(go.Bar(x=[found[field] for field in names], y=names, orientation="h"))
    figure.update_xaxes(title="importance", range=[0, 1])
    return _laid_out(figure).update_layout(margin={**_MARGIN, "l": 280})


def importances(trials: Sequence[Mapping[str, Any]], metric: str, sign: int) -> dict[str, float]:
    """Return the share of the metric's variance that each field explains, by fANOVA.

    Only fields that all trials have, with more than one value, are counted.

    Args:
        trials: The trials.
        metric: The key of the metric.
        sign: 1 if a higher metric is better, -1 if a lower one is.

    Returns:
        The importances by field, which sum to 1; empty if there are fewer than
        `MIN_IMPORTANCE_TRIALS` trials, fewer than two fields, or one value of the metric.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    found = ((field, _distribution([trial["params"].get(field) for trial in trials]))
             for field in searched_fields(trials))  # fmt: skip
    kinds = {field: kind for field, kind in found if kind is not None}
    values = {trial[metric] for trial in trials}
    if len(trials) < MIN_IMPORTANCE_TRIALS or len(kinds) < 2 or len(values) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize" if sign > 0 else "minimize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={field: trial["params"][field] for field in kinds},
                distributions=kinds,
                value=trial[metric],
            )
            for trial in trials
        ]
    )
    evaluator = FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
    return dict(get_param_importances(study, evaluator=evaluator))


def curves_figure(
    trials: Sequence[Mapping[str, Any]],
    curves: Mapping[str, Sequence[float | None]],
    metric: str,
) -> Any:
    """Return the metric of each trial after each epoch."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for rank, trial in enumerate(trials, start=1):
        curve = list(curves.get(trial["id"], ()))
        figure.add_scatter(
            x=list(range(1, len(curve) + 1)),
            y=curve,
            mode="lines+markers",
            name=f"{rank}",
            hovertext=_described(rank, trial, metric),
        )
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(title=metric)
    return _laid_out(figure)


def _distribution(values: Sequence[Any]) -> Any | None:
    """Return Optuna's distribution of a field; None if trials lack it or all have one value."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    distinct = list(dict.fromkeys(values))
    if None in distinct or len(distinct) < 2:
        return None
    if all(isinstance(value, int) and not isinstance(value, bool) for value in distinct):
        return IntDistribution(min(distinct), max(distinct))
    if all(isinstance(value, float) for value in distinct):
        low, high = min(distinct), max(distinct)
        return FloatDistribution(low, high, log=low > 0 and high / low > _LOG_RATIO)
    return CategoricalDistribution(distinct)


@dataclass(frozen=True)
class _Axis:
    """An axis of parallel coordinates, from 0 to 1.

    Attributes:
        label: The name of the axis.
        places: The place of each trial.
        ticks: The places and texts of the marked values.
    """

    label: str
    places: list[float]
    ticks: list[tuple[float, str]]


def _axis(label: str, values: Sequence[Any]) -> _Axis:
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if not numeric:
        names = ["none" if value is None else str(value) for value in values]
        distinct = list(dict.fromkeys(names))
        scale = {name: index / max(1, len(distinct) - 1) for index, name in enumerate(distinct)}
        ticks = [(place, escape(name)) for name, place in scale.items()]
        return _Axis(label, [scale[name] for name in names], ticks)
    low, high = min(values), max(values)
    is_log = low > 0 and high / low > _LOG_RATIO
    on_scale = math.log10 if is_log else float
    span = on_scale(high) - on_scale(low) or 1.0
    places = [(on_scale(value) - on_scale(low)) / span for value in values]
    marked = sorted(set(values))
    if len(marked) > _MOST_TICKS:
        marked = [low, high]
    ticks = [((on_scale(value) - on_scale(low)) / span, f"{value:.4g}") for value in marked]
    return _Axis(f"{label} (log)" if is_log else label, places, ticks)


def _described(rank: int, trial: Mapping[str, Any], metric: str) -> str:
    settings = "<br>".join(
        f"{escape(field)}={escape(str(value))}" for field, value in trial["params"].items()
    )
    return f"{rank}: {metric} {trial[metric]:.4g}<br>{settings}"


def _laid_out(figure: Any) -> Any:
    return figure.update_layout(
        template="plotly_white", margin=_MARGIN, legend={"y": 1.1, "orientation": "h"}
    )


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
