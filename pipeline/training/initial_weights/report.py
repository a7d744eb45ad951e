"""Say what was loaded, skipped and new: a table for the console, and a file for the MLflow run."""

import math
from collections.abc import Sequence
from typing import Any

from pipeline.config.folders import Folder
from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.runs.outbox import RunRef
from pipeline.runs.records import write_json
from pipeline.runs.tracking import log_to_run
from pipeline.training.initial_weights.matching import InitPlan, MatchedTensor
from pipeline.training.initial_weights.start import FoundInit
from pipeline.training.objectives import Objective, objective_of
from shards import ShardSet
from shards.redaction import redacted

REPORT_FILE = "initial_weights.json"
SOURCE_TAG = "perceiver.init"
SHA256_TAG = "perceiver.init_sha256"
INIT_TAGS = (SOURCE_TAG, SHA256_TAG)
"""Where the weights come from: tags of a run, and of the versions that are registered from it."""
COLUMNS = ("tensors", "number", "values", "state", "why", "training")
MAX_ROWS = 40


def show_init(found: FoundInit, plan: InitPlan, objective: Objective, console: Console) -> None:
    """Print the table. Tensors that fit are one row for each part of the model.

    Args:
        found: The weights.
        plan: What became of them.
        objective: The objective of the training.
        console: The console.
    """
    rows = table_rows(plan)
    if len(rows) > MAX_ROWS:
        left = len(rows) - MAX_ROWS
        rows = [*rows[:MAX_ROWS], (f"and {left} more: {REPORT_FILE}", "", "", "", "", "")]
    counts = ", ".join(f"{count} {state}" for state, count in count_states(plan).items())
    console.table(f"weights from {found.origin}: {counts}", COLUMNS, rows)
    for difference in found.odd_settings(objective):
        console.notice(f"model.init: {difference}")


def show_study_init(
    found: FoundInit, trials: Sequence[Config], shard_set: ShardSet, console: Console
) -> None:
    """Check the trials of a study, and print the table of the first one.

    Args:
        found: The weights.
        trials: The configuration of every trial.
        shard_set: The shard set.
        console: The console.

    Raises:
        UserError: The weights do not fit a trial.
    """
    plans = [found.plan(config, shard_set) for config in trials]
    show_init(found, plans[0], objective_of(trials[0], shard_set), console)
    if any(plan != plans[0] for plan in plans):
        console.notice(
            "model.init: the table is trial 0's; other trials load other tensors, see "
            f"{REPORT_FILE} in their MLflow runs"
        )


def table_rows(plan: InitPlan) -> list[tuple[Any, ...]]:
    """Return the rows of the table, in the order of the model's tensors.

    Tensors that were loaded share a row with the others of their part of the model, if they are
    trained alike. Every other tensor has its own.
    """
    parts: dict[tuple[str, ...], list[MatchedTensor]] = {}
    for tensor in plan.tensors:
        part = ".".join(tensor.name.split(".")[:2])
        name = part if tensor.state == "loaded" else tensor.name
        key = (name, tensor.state, tensor.reason, _training(plan, tensor))
        parts.setdefault(key, []).append(tensor)
    rows = []
    for (part, state, reason, training), tensors in parts.items():
        alone = len(tensors) == 1
        name = tensors[0].name if alone else f"{part}.*"
        values = sum(math.prod(t.shape) for t in tensors if t.shape is not None)
        rows.append((name, len(tensors), values, state, reason, training))
    return rows


def count_states(plan: InitPlan) -> dict[str, int]:
    """Return the number of tensors that were loaded, skipped, and are new."""
    return {state: len(plan.names(state)) for state in ("loaded", "skipped", "new")}


def summary(found: FoundInit, plan: InitPlan) -> dict[str, Any]:
    """Return where the weights come from, and the number of tensors in each state."""
    return {
        "from": found.config.source,
        "origin": found.origin,
        "sha256": found.sha256,
        **count_states(plan),
    }


def log_init(run: RunRef, folder: Folder, found: FoundInit, plan: InitPlan) -> None:
    """Log to an MLflow run where the weights come from, and what became of every tensor.

    Args:
        run: The run.
        folder: The folder that keeps the file.
        found: The weights.
        plan: What became of them.

    Raises:
        UserError: The folder cannot be written.
    """
    path = folder / REPORT_FILE
    report = {
        **summary(found, plan),
        "tensors": [
            {
                "name": tensor.name,
                "state": tensor.state,
                "shape": tensor.shape,
                "reason": tensor.reason,
                "training": _training(plan, tensor),
            }
            for tensor in plan.tensors
        ],
    }
    write_json(path, report)
    tags = {SOURCE_TAG: redacted(found.origin), SHA256_TAG: found.sha256}
    log_to_run(run, tags=tags, artifacts=[path])


def _training(plan: InitPlan, tensor: MatchedTensor) -> str:
    """Return how a tensor is trained, in words."""
    if tensor.shape is None:
        return ""
    if tensor.name in plan.frozen:
        return "frozen"
    factor = plan.rate_scales.get(tensor.name)
    return "" if factor is None else f"{factor:g} x learning rate"
