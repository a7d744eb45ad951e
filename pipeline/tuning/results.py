"""The results of a study: its trials and settings by rank, and what happened to them."""

import math
from collections.abc import Sequence
from typing import Any

from pipeline.runs.storage import exists
from pipeline.runs.tracking import log_to_run, run_ref
from pipeline.training.checkpoints import best_checkpoint
from pipeline.training.objectives import Objective, objective_of
from pipeline.training.result import log_best, training_result
from pipeline.tuning.front import front, pareto_front
from pipeline.tuning.journal import Refusal
from pipeline.tuning.ranking import Estimate, SettingScore, confirmation, ranked_settings
from pipeline.tuning.spending import Spending
from pipeline.tuning.study import Study
from pipeline.tuning.trial_costs import measured_latency, planned_memory
from pipeline.tuning.trial_records import TrialRecord
from pipeline.tuning.trials import TRIAL_FILE, read_note, stopped_at, trial_folder
from shards import ShardSet


def checkpoint_score(study: Study, record: TrialRecord) -> float | None:
    """Return the score of a trial's best checkpoint; None without a finite one."""
    folder = trial_folder(study.folder, record.number)
    best = best_checkpoint(folder / "checkpoints") if exists(folder / TRIAL_FILE) else None
    score = None if best is None else best.state.score
    return score if score is not None and math.isfinite(score) else None


def study_results(study: Study, shard_set: ShardSet) -> dict[str, Any]:
    """Return the results of a study, and log those of each trial to its MLflow run.

    Args:
        study: The study, of which all trials have ended.
        shard_set: The shard set.

    Returns:
        `best`, `trials`, `settings`, `front`, `confirmed`, `failed` and `refused`, as `tune`
        describes them. `best` is None if no trial succeeded.
    """
    objective = objective_of(study.base, shard_set)
    ranked = ranked_settings(study)
    trials = [
        _trial(study, objective, record, shard_set)
        for setting in ranked
        for record in setting.trials
    ]
    best = ranked[0] if ranked else None
    confirmed = confirmation(study, best.draw) if best else None
    on_front = _front(study, ranked) if study.section.objectives else []
    settings = [_setting(objective, each) for each in ranked]
    for setting in settings:
        setting["on_front"] = setting["draw"] in on_front if study.section.objectives else None
    _add_measured_costs(study, objective, ranked, settings, shard_set)
    if study.section.seeds > 1:
        _log_settings(study, objective.selection, ranked, settings)
    return {
        "best": trials[0] if trials else None,
        "trials": trials,
        "settings": settings,
        "front": [each["id"] for each in trials if each["draw"] in on_front],
        "confirmed": None
        if confirmed is None
        else {
            **_numbers(objective, confirmed[0]),
            "trials": [_trial(study, objective, each, shard_set) for each in confirmed[1]],
        },
        "failed": [error for _, error in sorted(study.journal.errors.items())],
        "refused": [e.refused for e in study.journal.entries if isinstance(e, Refusal)],
        "budget": Spending(study).told(),
    }


def _front(study: Study, ranked: Sequence[SettingScore]) -> set[int]:
    """Return the numbers of the settings that no others beat in the metric and all objectives."""
    points = [
        (each.estimate.mean, *(-each.costs[name] for name in study.section.objectives))
        for each in ranked
    ]
    return {ranked[number].draw for number in front(points)}


def _trial(
    study: Study, objective: Objective, record: TrialRecord, shard_set: ShardSet
) -> dict[str, Any]:
    """Return the results of a trial, and log them to its run."""
    folder = trial_folder(study.folder, record.number)
    config = study.config(record)
    run = run_ref(study.base, "trial", read_note(folder / TRIAL_FILE)["run_id"])
    result = training_result(config, folder, run, shard_set)
    log_best(run, result)
    epochs = config.training.epochs
    return {
        "id": folder.name,
        "draw": record.draw,
        "seed": config.seed,
        "params": record.settings,
        objective.selection: result["score"],
        "forward_flops": result["forward_flops"],
        "parameters": result["parameters"],
        "epochs": result["epochs"],
        "val_loss": result["metrics"].get("val_loss"),
        "stopped_early": stopped_at(study.journal, record.number, epochs) is not None,
        "notes": [*record.notes, *(_handover(each.donor, each.epoch) for each in record.handovers)],
        "run_id": run.run_id,
        "checkpoint": result["checkpoint"],
    }


def _handover(donor: int, epoch: int) -> str:
    return f"took over the weights of trial {donor} after epoch {epoch}"


def _setting(objective: Objective, setting: SettingScore) -> dict[str, Any]:
    return {
        "draw": setting.draw,
        "params": setting.settings,
        **_numbers(objective, setting.estimate),
        "forward_flops": setting.costs["flops"],
        "parameters": setting.costs["parameters"],
        "ids": [f"{record.number:05d}" for record in setting.trials],
    }


def _add_measured_costs(
    study: Study,
    objective: Objective,
    ranked: Sequence[SettingScore],
    settings: Sequence[dict[str, Any]],
    shard_set: ShardSet,
) -> None:
    """Add `memory` and `latency_ms` to the settings on the front of the metric against FLOPs.

    Each takes seconds to find out, so other settings do not get them.
    """
    sign = 1 if objective.higher_is_better else -1
    for number in pareto_front(settings, objective.selection, sign, "forward_flops"):
        config = study.config(ranked[number].trials[0])
        settings[number]["memory"] = planned_memory(config, shard_set)
        settings[number]["latency_ms"] = measured_latency(config, shard_set)


def _numbers(objective: Objective, estimate: Estimate) -> dict[str, Any]:
    """Return an estimate in the units of the metric: its mean, and the interval's two ends."""
    ends = [objective.signed(end) for end in (estimate.low, estimate.high) if end is not None]
    return {
        objective.selection: objective.signed(estimate.mean),
        "interval": sorted(ends) or None,
        "seeds": estimate.count,
    }


def _log_settings(
    study: Study,
    selection: str,
    ranked: Sequence[SettingScore],
    settings: Sequence[dict[str, Any]],
) -> None:
    """Log the mean of settings and its interval to the run of each of their trials."""
    for setting, numbers in zip(ranked, settings, strict=True):
        if numbers["interval"] is None:
            continue
        low, high = numbers["interval"]
        metrics = {"settings_mean": numbers[selection], "settings_low": low, "settings_high": high}
        for record in setting.trials:
            note = read_note(trial_folder(study.folder, record.number) / TRIAL_FILE)
            log_to_run(run_ref(study.base, "trial", note["run_id"]), metrics=metrics)
