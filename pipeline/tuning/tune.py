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
from pipeline.config.trial_configs import draw_settings, study_base, trial_config
from pipeline.errors import UserError
from pipeline.preprocess.find_shards import with_shards
from pipeline.preprocess.identity import needed_positions
from pipeline.preprocess.position_tables import add_missing_tables
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.runs.outbox import RunRef
from pipeline.runs.records import (
    RunRecord,
    read_run_record,
    recorded_folder,
    write_json,
    write_run_record,
)
from pipeline.runs.run_lock import run_lock
from pipeline.runs.storage import make_folder, remove_folder, writable
from pipeline.runs.tracking import log_to_run, open_run, undelivered
from pipeline.training.checkpoints import read_checkpoint
from pipeline.training.fingerprint import default_values, training_fingerprint
from pipeline.training.initial_weights.report import show_study_init
from pipeline.training.initial_weights.start import FoundInit, find_init
from pipeline.training.objectives import name_field, objective_class
from pipeline.training.open_shards import open_shards
from pipeline.training.placing import worker_placement
from pipeline.training.result import LEFT
from pipeline.tuning.admission import Admission
from pipeline.tuning.growth import has_more_trials, study_fields
from pipeline.tuning.journal import Begin, Failure, StudyJournal
from pipeline.tuning.page import write_page
from pipeline.tuning.plots import plot_study
from pipeline.tuning.results import checkpoint_score, study_results
from pipeline.tuning.study import Study
from pipeline.tuning.study_run import run_trials
from pipeline.tuning.trials import close_trials
from shards import ShardSet

STAGE = "tune"
RESULTS_FILE, PAGE_FILE = "study.json", "study.html"


def tune(config: Config, console: Console, *, fresh: bool = False) -> dict[str, Any]:
    """Run a study, resume an interrupted one, or find that it is already done.

    Settings are ranked only by their value of the objective's metric on the validation split, such
    as `accuracy`: a trial's best, or the worse bound of the confidence interval of the mean over
    `study.seeds`. If `study.num_trials` or `study.confirm` grows after a study is done, only the
    new trials are run.

    Args:
        config: The configuration, with a section `study`.
        console: The console, which shows progress and notes.
        fresh: Whether to delete an earlier study of this name and start anew.

    Returns:
        `run_id` (the parent run), `best` (the best trial of the best settings), `trials` (by rank,
        each with its `id`, `draw` (the number of its settings), `seed`, `params`, the metric,
        `forward_flops`, `parameters`, `epochs`, `stopped_early`, `notes` (what happened to it),
        `run_id` and `checkpoint`), `settings` (by rank, each with `draw`, `params`, the metric's
        mean, `interval`, `seeds`, `forward_flops`, `parameters`, `on_front`, the `ids` of its
        trials, and, on the front against FLOPs, `memory` and `latency_ms`), `front` (the IDs of the
        trials that are best in the metric and `study.objectives`), `confirmed` (the mean and
        interval of the best settings from other seeds, and these `trials`; None without), `failed`
        (the errors of trials), `refused` (why settings were not trained), `budget` (what was spent
        of it; None without one), `plot`, `page`, `seconds`, `skipped`, and `undelivered` (a text on
        what MLflow has not received yet, or None).

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
        **study_fields(study),
    }
    lock = config.folder / f".{STAGE}.lock"
    with run_lock(lock, str(folder), console.notice) as still_held:
        record = None if fresh else read_run_record(config.folder, STAGE)
        if record:
            more = has_more_trials(record, fingerprint, study, folder, default_values(config))
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
        admission = Admission(base, shard_set, console)
        journal = _opened_journal(folder, base, study)
        run = stack.enter_context(
            open_run(config, kind="study", shard_set=shard_set, run_id=run_id)
        )
        begun = RunRecord(STAGE, fingerprint, {"run_id": run.run_id}, spent)
        write_run_record(config.folder, begun)
        under_way = Study(
            base,
            study,
            folder,
            run,
            journal,
            admission.samples_per_epoch,
            admission.costs,
            checkpoint_score,
        )
        if record:
            what = "going on with more trials in" if record.done else "resuming the study in"
            console.notice(f"{what} {folder}")
            if record.done:
                _give_up(journal)
            close_trials(folder, run, journal, under_way.epochs, under_way.ended())
        try:
            run_trials(
                under_way, concurrent, console, admission.refuses, shard_set.num_samples("train")
            )
            still_held()
        finally:
            close_trials(folder, run, journal, under_way.epochs, under_way.ended())
            begun = replace(begun, seconds=spent + time.time() - started)
            write_run_record(config.folder, begun)
        found = study_results(under_way, shard_set)
        if not found["trials"]:
            reasons = [*found["failed"], *found["refused"]]
            first = f": {reasons[0]}" if reasons else ""
            raise UserError(f"none of the study's trials succeeded{first}")
        _give_up(journal)
        assert config.trained_for is not None  # the trials were trained for it
        objective = objective_class(config.trained_for.kind)
        plot = folder / f"{objective.selection}_vs_flops.png"
        with writable(plot) as file:
            plot_study(found["trials"], file, config.name, objective.selection)
        page = folder / PAGE_FILE
        result = {
            **name_field(objective),
            "run_id": run.run_id,
            **found,
            "plot": str(plot),
            "page": str(page),
        }
        write_page(page, result, under_way, config.name)
        write_json(folder / RESULTS_FILE, result)
        _log_study(run, folder, result, objective.selection)
    seconds = spent + time.time() - started
    write_run_record(config.folder, RunRecord(STAGE, fingerprint, result, seconds, done=True))
    return {**result, "seconds": seconds, "skipped": False, LEFT: undelivered(config, "study")}


def _trial_configs(base: Config, study: StudyConfig) -> list[Config]:
    """Return the configurations that are known before the study starts, or else the base's.

    Settings that cannot be trained are left out.
    """
    found = []
    for settings in draw_settings(study, base.seed):
        with contextlib.suppress(UserError):
            found.append(trial_config(base, settings))
    return found or [trial_config(base, {})]


def _opened_journal(folder: Folder, base: Config, study: StudyConfig) -> StudyJournal:
    """Open the journal of a study.

    One of an earlier version does not say which settings its trials have. They were those of a
    random or grid search, by number.
    """
    journal = StudyJournal(folder)
    if journal.entries and not any(isinstance(each, Begin) for each in journal.entries):
        settings = draw_settings(study, base.seed)
        for number in range(min(max(journal.trials) + 1, len(settings))):
            journal.append(Begin(number, number, base.seed, settings[number]))
    return journal


def _give_up(journal: StudyJournal) -> None:
    """Note of each trial with an error that it is not tried again."""
    for number, error in sorted(journal.errors.items()):
        if not journal.trials[number].is_given_up:
            journal.append(Failure(number, error))


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
    metrics = {"best_score": result["best"][metric]}
    for name, found in (("best", result["settings"][0]), ("confirmed", result["confirmed"])):
        if found is not None and found["interval"] is not None:
            low, high = found["interval"]
            metrics |= {f"{name}_mean": found[metric], f"{name}_low": low, f"{name}_high": high}
    log_to_run(
        run,
        metrics=metrics,
        tags={"perceiver.best_trial": result["best"]["run_id"]},
        artifacts=[
            folder / RESULTS_FILE,
            folder_at(result["plot"]),
            folder_at(result["page"]),
        ],
    )
