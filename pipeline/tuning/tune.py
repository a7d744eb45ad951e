"""`perceiver tune`: a Ray Tune study. Each trial is a training with Ray Train and DeepSpeed."""

import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cluster.errors import ClusterError
from cluster.placement import capacity
from cluster.ray_session import ray_session
from pipeline.config.folders import Folder, folder_at
from pipeline.config.study import StudyConfig
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.find_shards import with_shards
from pipeline.preprocess.identity import needed_positions
from pipeline.preprocess.position_tables import add_missing_tables
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.runs.outbox import RunRef
from pipeline.runs.records import (
    RunRecord,
    has_grown,
    read_run_record,
    recorded_folder,
    write_json,
    write_run_record,
)
from pipeline.runs.run_lock import run_lock
from pipeline.runs.storage import make_folder, remove_folder, writable
from pipeline.runs.tracking import log_to_run, open_run, undelivered
from pipeline.training.checkpoints import read_checkpoint
from pipeline.training.fingerprint import SAME_TO_ROUNDING, default_values, training_fingerprint
from pipeline.training.initial_weights.report import show_study_init
from pipeline.training.initial_weights.start import FoundInit, find_init
from pipeline.training.objectives import name_field, objective_class
from pipeline.training.open_shards import open_shards
from pipeline.training.placing import worker_placement
from pipeline.training.result import LEFT
from pipeline.tuning.journal import Failure, StudyJournal
from pipeline.tuning.journal_lines import JOURNAL_FILE, has_journal
from pipeline.tuning.plots import plot_study
from pipeline.tuning.study import Study
from pipeline.tuning.study_run import run_trials
from pipeline.tuning.trials import (
    close_trials,
    collect_trials,
    draw_settings,
    study_base,
    trial_config,
)
from shards import ShardSet

STAGE = "tune"
RESULTS_FILE = "study.json"
WITHOUT_EFFECT = frozenset({"study.num_workers", "study.max_concurrent_trials"})
"""Fields that decide only where trials run, and how many at the same time."""


def tune(config: Config, console: Console, *, fresh: bool = False) -> dict[str, Any]:
    """Run a study, resume an interrupted one, or find that it is already done.

    Trials are ranked only by their best value of the objective's metric on the validation split,
    such as `accuracy`. If `study.num_trials` grows after a study is done, only the new trials are
    run.

    Args:
        config: The configuration, with a section `study`.
        console: The console, which shows progress and notes.
        fresh: Whether to delete an earlier study of this name and start anew.

    Returns:
        `run_id` (the parent run), `best` (the best trial), `trials` (by rank, each with `params`,
        the metric, `forward_flops`, `parameters`, `epochs`, `stopped_early`, `run_id` and
        `checkpoint`), `failed` (the errors of trials), `plot`, `seconds`, `skipped`, and
        `undelivered` (a text on what MLflow has not received yet, or None).

    Raises:
        UserError: There is no section `study` or no validation split, or no trial succeeded.
        ShardError: The set lacks position tables of trials, and cannot be written.
        ClusterError: The machines cannot hold one trial.
    """
    study = config.study
    if study is None:
        raise UserError(f"{config.name}: has no section 'study'; add one with the fields to search")
    _ = config.tracking_uri  # refuse early that there is none
    config = with_shards(config, console)
    shard_set = open_shards(config)
    _require_validation(config, shard_set)
    base = study_base(config, study)
    folder = config.folder / STAGE
    init = find_init(base, folder, console, fresh=fresh)
    fingerprint = {
        **training_fingerprint(base, shard_set, init.sha256 if init else None),
        **{f"study.{key}": value for key, value in study.model_dump(mode="json").items()},
    }
    lock = config.folder / f".{STAGE}.lock"
    with run_lock(lock, str(folder), console.notice) as still_held:
        record = None if fresh else read_run_record(config.folder, STAGE)
        if record:
            more = _has_more_trials(record, fingerprint, study, folder, default_values(config))
            if record.done and not more:
                best = recorded_folder(record, config.folder, "best", "checkpoint")
                read_checkpoint(best).check()
                left = undelivered(config, "study")
                return {**record.result, "seconds": record.seconds, "skipped": True, LEFT: left}
        if init:
            show_study_init(init, _trial_configs(base, study), shard_set, console)
        if fresh:
            client(config.tracking_uri)  # nothing is deleted if MLflow does not answer
            remove_folder(folder)
        needed = map(needed_positions, _trial_configs(base, study))
        add_missing_tables(shard_set, itertools.chain(*needed), console)
        return _study(
            config, study, base, shard_set, init, fingerprint, record, console, still_held
        )


def _study(
    config: Config,
    study: StudyConfig,
    base: Config,
    shard_set: ShardSet,
    init: FoundInit | None,
    fingerprint: dict[str, Any],
    record: RunRecord | None,
    console: Console,
    still_held: Callable[[], None],
) -> dict[str, Any]:
    """Run the trials that have not ended, and rank all trials."""
    folder = config.folder / STAGE
    spent, started = record.seconds if record else 0.0, time.time()
    run_id = record.result.get("run_id") if record else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(ray_session(config.cluster.address))
        concurrent = _concurrent_trials(base, study)
        make_folder(folder)
        if init:
            init = init.saved(folder)
        journal = StudyJournal(folder)
        run = stack.enter_context(
            open_run(config, kind="study", shard_set=shard_set, run_id=run_id)
        )
        begun = RunRecord(STAGE, fingerprint, {"run_id": run.run_id}, spent)
        write_run_record(config.folder, begun)
        settings = draw_settings(study, config.seed)
        under_way = Study(base, study, folder, run, settings, journal)
        if record:
            what = "going on with more trials in" if record.done else "resuming the study in"
            console.notice(f"{what} {folder}")
            close_trials(folder, run, journal, under_way.epochs, under_way.ended())
        errors: dict[int, str] = {}
        try:
            errors = run_trials(under_way, concurrent, console)
            still_held()
        finally:
            close_trials(folder, run, journal, under_way.epochs, under_way.ended(errors))
            begun = replace(begun, seconds=spent + time.time() - started)
            write_run_record(config.folder, begun)
        succeeded = [number for number, well in under_way.ended(errors).items() if well]
        trials = collect_trials(base, folder, shard_set, journal, succeeded)
        if not trials:
            first = f": {next(iter(errors.values()))}" if errors else ""
            raise UserError(f"none of the study's trials succeeded{first}")
        for number, error in errors.items():
            journal.append(Failure(number, error))
        assert config.trained_for is not None  # the trials were trained for it
        objective = objective_class(config.trained_for.kind)
        plot = folder / f"{objective.selection}_vs_flops.png"
        with writable(plot) as file:
            plot_study(trials, file, config.name, objective.selection)
        result = {
            **name_field(objective),
            "run_id": run.run_id,
            "best": trials[0],
            "trials": trials,
            "failed": [error for _, error in sorted(journal.errors.items())],
            "plot": str(plot),
        }
        write_json(folder / RESULTS_FILE, result)
        _log_study(run, folder, result, objective.selection)
    seconds = spent + time.time() - started
    write_run_record(config.folder, RunRecord(STAGE, fingerprint, result, seconds, done=True))
    return {**result, "seconds": seconds, "skipped": False, LEFT: undelivered(config, "study")}


def _trial_configs(base: Config, study: StudyConfig) -> list[Config]:
    """Return the configuration of every trial, by number."""
    return [trial_config(base, settings) for settings in draw_settings(study, base.seed)]


def _require_validation(config: Config, shard_set: ShardSet) -> None:
    """Check that there is a validation split, on which trials are ranked.

    The split column of a table may name it.
    """
    data = config.data
    if "validation" in shard_set.manifest.counts and (data.validation or data.columns.split):
        return
    if data.columns.split:
        raise UserError(
            f"data.columns.split={data.columns.split}: a study ranks its trials on a validation "
            "split, and no usable row of the listing has it; write 'validation' in that column "
            "of some rows, and preprocess again"
        )
    raise UserError(
        "data.validation: a study ranks its trials on a validation split, and the set has none; "
        "set data.validation to a share such as 0.1, or to a folder, and preprocess again"
    )


def _has_more_trials(
    record: RunRecord,
    fingerprint: dict[str, Any],
    study: StudyConfig,
    folder: Folder,
    defaults: dict[str, Any],
) -> bool:
    """Return whether the study now asks for more trials than before.

    Raises:
        UserError: The study has other settings or fewer trials, or has no journal to continue from.
    """
    trials = "study.num_trials"
    record.refuse_changes(
        fingerprint,
        str(folder),
        {*SAME_TO_ROUNDING, *WITHOUT_EFFECT, trials},
        defaults,
    )
    before = StudyConfig.model_validate(
        study.model_dump() | {"num_trials": record.fingerprint.get(trials)}
    ).trials
    more = has_grown(str(folder), trials, before, study.trials)
    if not has_journal(folder) and (more or not record.done):
        raise UserError(
            f"{folder}: an earlier version made this study without {JOURNAL_FILE}, so it cannot go "
            "on; run it again with --fresh"
        )
    return more


def report(result: dict[str, Any], console: Console) -> None:
    """Show the user what `tune` returned."""
    metric = objective_class(result.get("objective")).selection
    fields = list(result["trials"][0]["params"])
    rows = []
    for rank, trial in enumerate(result["trials"], start=1):
        values = [trial["params"][field] for field in fields]
        epochs = f"{trial['epochs']}{' (stopped)' if trial['stopped_early'] else ''}"
        mflops = trial["forward_flops"] / 1e6
        rows.append((rank, *values, trial[metric], mflops, trial["parameters"], epochs))
    columns = ("rank", *(f.rpartition(".")[2] for f in fields))
    console.table(
        f"study, by {metric} on validation" + (" (done before: skipped)" * result["skipped"]),
        (*columns, metric, "MFLOPs forward", "parameters", "epochs"),
        rows,
    )
    if result[LEFT]:
        console.say(result[LEFT])
    for error in result["failed"]:
        console.say(f"a trial failed: {error}")
    console.say(f"plot {result['plot']}; MLflow run {result['run_id']}")


def _concurrent_trials(base: Config, study: StudyConfig) -> int:
    """Return how many trials run at the same time.

    More trials than the cluster holds would wait for each other's workers.

    Raises:
        ClusterError: The cluster cannot hold one trial, or as many as the configuration asks for.
    """
    placement = worker_placement(base.cluster)
    placement.require("a trial", "lower study.num_workers or cluster.cpus_per_worker")
    fit = max(1, capacity(placement.place) // study.num_workers)
    wanted = study.max_concurrent_trials
    if wanted is not None and wanted > fit:
        raise ClusterError(
            f"study.max_concurrent_trials={wanted}: the cluster holds {fit} trials of "
            f"{study.num_workers} workers at once; lower it or leave it out"
        )
    return wanted or fit


def _log_study(run: RunRef, folder: Folder, result: dict[str, Any], metric: str) -> None:
    log_to_run(
        run,
        metrics={"best_score": result["best"][metric]},
        tags={"perceiver.best_trial": result["best"]["run_id"]},
        artifacts=[folder / RESULTS_FILE, folder_at(result["plot"])],
    )
