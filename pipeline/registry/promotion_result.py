"""What a promotion found: as tags of the version, as the verb's result, and for people."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.registry.judged_models import Verdict
from pipeline.registry.registration import JUDGED_TAG, SET_TAG
from pipeline.registry.slices import Slice
from pipeline.runs.console import Console
from pipeline.training.objectives import Objective, name_field, objective_class

_MOST_NAMED = 20


def report(result: dict[str, Any], console: Console) -> None:
    """Show the user what `promote` returned."""
    if result["skipped"]:
        console.say(
            f"{result['model_uri']} is this run's model already (version {result['version']})"
        )
        return
    metric = objective_class(result.get("objective")).sample_metric
    before = result[f"champion_{metric}"]
    against = "there was no champion" if before is None else f"the champion before had {before:.4f}"
    if result["p_value"] is not None:
        against += f" ({result['wins']} won, {result['losses']} lost, p = {result['p_value']:.3g})"
    is_now = (
        f"{result['model_uri']} would be this run's model"
        if result["version"] is None
        else f"{result['model_uri']} is now version {result['version']}"
    )
    interval = result["interval"]
    between = "" if interval is None else f" (95%: {interval[0]:.4f} to {interval[1]:.4f})"
    console.say(
        f"{is_now}: {metric} {result[metric]:.4f}{between} on {result['samples']} samples of the "
        f"{result['split']} split; {against}"
    )


def measured(verdict: Verdict, metric: str) -> dict[str, str]:
    """Return a verdict as tags of a version."""
    values: dict[str, Any] = {
        metric: verdict.value,
        "samples": verdict.samples,
        "left_out": verdict.left_out,
    }
    if verdict.champion_value is not None:
        values[f"champion_{metric}"] = verdict.champion_value
    if (comparison := verdict.comparison) is not None:
        values |= {"wins": comparison.wins, "losses": comparison.losses}
        values["p_value"] = comparison.p_value
    if verdict.interval is not None:
        values[f"{metric}_low"], values[f"{metric}_high"] = verdict.interval
    tags = {f"perceiver.{key}": repr(value) for key, value in values.items()}
    if verdict.worse:
        tags["perceiver.worse_slices"] = json.dumps(
            [f"{one.kind} {one.name[:100]}" for one in verdict.worse[:_MOST_NAMED]]
        )
    return tags


def result_of(
    objective: type[Objective],
    name: str,
    alias: str,
    version: Any | None,
    run_id: str,
    tags: dict[str, str],
    *,
    skipped: bool,
    worse: Sequence[Slice] = (),
) -> dict[str, Any]:
    """Return the verb's result, as `promote` describes it."""

    def number(key: str, kind: type[int] | type[float] = float) -> float | None:
        try:
            value = kind(tags[f"perceiver.{key}"])
        except (KeyError, ValueError):  # a version that another program has made
            return None
        return value if math.isfinite(value) else None

    interval = [number(f"{objective.sample_metric}_{end}") for end in ("low", "high")]
    return {
        "model_uri": f"models:/{name}@{alias}",
        "version": None if version is None else str(version),
        objective.sample_metric: number(objective.sample_metric),
        f"champion_{objective.sample_metric}": number(f"champion_{objective.sample_metric}"),
        "interval": None if interval[0] is None else interval,
        "samples": number("samples", int),
        "left_out": number("left_out", int),
        "wins": number("wins", int),
        "losses": number("losses", int),
        "p_value": number("p_value"),
        "split": tags.get("perceiver.split"),
        "set_digest": tags.get(JUDGED_TAG, tags.get(SET_TAG)),
        "worse_slices": [asdict(one) for one in worse],
        "run_id": run_id,
        "skipped": skipped,
        **name_field(objective),
    }
