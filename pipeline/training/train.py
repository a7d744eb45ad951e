"""`perceiver train`: one training with Ray Train and DeepSpeed, which resumes where it stopped."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cluster.ray_session import ray_session
from pipeline.config.folders import Folder
from pipeline.config.training import AugmentConfig
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.find_shards import with_shards
from pipeline.runs.console import Console
from pipeline.runs.outbox import RunRef
from pipeline.runs.records import (
    RunRecord,
    has_grown,
    read_run_record,
    recorded_folder,
    write_run_record,
)
from pipeline.runs.run_lock import run_lock
from pipeline.runs.storage import make_folder, remove_folder
from pipeline.runs.strict_json import to_json
from pipeline.runs.tracking import log_to_run, open_run, undelivered
from pipeline.training.checkpoints import last_checkpoint, read_checkpoint
from pipeline.training.ema import lagging_average
from pipeline.training.ending import stopped_early
from pipeline.training.fingerprint import (
    default_values,
    same_to_rounding,
    training_fingerprint,
)
from pipeline.training.initial_weights.report import log_init, show_init, summary
from pipeline.training.initial_weights.start import find_init
from pipeline.training.launch import run_training
from pipeline.training.loaders import steps_per_epoch
from pipeline.training.objectives import objective_of
from pipeline.training.open_shards import open_shards
from pipeline.training.placing import check_room
from pipeline.training.progress import show_progress
from pipeline.training.result import LEFT, log_best, training_result
from pipeline.training.step_profile import FOLDER as PROFILE
from pipeline.training.step_profile import refuse_profile
from shards import ShardSet

STAGE = "train"
EPOCHS = "training.epochs"
ReportBest = Callable[[Config, Folder, RunRef, ShardSet, Mapping[str, Any], Console], None]
"""It gets the folder of the training, its run, its shard set and its result."""


def train(
    config: Config,
    console: Console,
    *,
    fresh: bool = False,
    profile: int = 0,
    report_best: ReportBest | None = None,
) -> dict[str, Any]:
    """Train, resume, continue for more epochs, or find that the training is already done.

    A training that was made with fewer `training.epochs` continues from its last checkpoint. From
    that step on, its learning rate follows the schedule over the new total. So the result differs
    from that of a new training with as many epochs.

    Args:
        config: The configuration.
        console: The console, which shows progress and notes.
        fresh: Whether to delete an earlier training of this name and start anew.
        profile: The number of steps to profile; 0 profiles none.
        report_best: What logs a report on the best checkpoint at the end, such as
            `pipeline.evaluation.best.report_best`; None logs none.

    Returns:
        `run_id`, `checkpoint` (the folder of the best one), `metrics` (of the best one), `score`
        (its value of the objective's selection metric), `epochs`, `stopped_early` (the epoch after
        which early stopping ended it, or None), `bad_steps` (the number of steps that were skipped
        or rolled back), `continued` (for each time that
        the training was continued, its former total `epochs` and the `step` where it resumed),
        `parameters`, `forward_flops`, `bad_samples`, `seconds`, `skipped`, and `undelivered` (a
        text on what MLflow has not received yet, or None). With `model.init` also `init`: `from`,
        `origin`, `sha256`, and the numbers of tensors that were `loaded`, `skipped` and are `new`.

    Raises:
        UserError: An input is wrong, or a different training has this name or is running there.
        ClusterError: The machines cannot run it.
    """
    _ = config.tracking_uri  # refuse early that there is none
    config = with_shards(config, console)
    shard_set = open_shards(config)
    steps = steps_per_epoch(config, shard_set) * config.training.epochs
    if note := lagging_average(config.training.ema_decay, steps):
        console.notice(note)
    with run_lock(
        config.folder / f".{STAGE}.lock", str(config.folder / STAGE), console.notice
    ) as still_held:
        return _train(
            config, console, shard_set, still_held, report_best, fresh=fresh, profile=profile
        )


def _train(
    config: Config,
    console: Console,
    shard_set: ShardSet,
    still_held: Callable[[], None],
    report_best: ReportBest | None,
    *,
    fresh: bool,
    profile: int,
) -> dict[str, Any]:
    folder = config.folder / STAGE
    init = find_init(config, folder, console, fresh=fresh)
    plan = init.plan(config, shard_set) if init else None
    fingerprint = training_fingerprint(config, shard_set, init.sha256 if init else None)
    record = None if fresh else read_run_record(config.folder, STAGE)
    continued: list[dict[str, int]] = []
    if record:
        before: int = record.fingerprint.get(EPOCHS, 0)
        changed = record.refuse_changes(
            {**fingerprint, EPOCHS: before},
            str(folder),
            same_to_rounding(config),
            default_values(config),
        )
        more = has_grown(str(folder), EPOCHS, before, config.training.epochs)
        continued = record.result.get("continued", [])
        if record.done and not more:
            if profile:
                refuse_profile(profile, 0)
            _check_best(record, config.folder)
            return {**record.result, "continued": continued, "seconds": record.seconds,
                    "skipped": True, LEFT: undelivered(config, "train")}  # fmt: skip
        if changed:
            console.notice(_goes_on_with(changed, config))
        last = last_checkpoint(folder / "checkpoints")
        stopped = stopped_early(config.training, last.state) if last else None
        if stopped:
            console.notice(
                f"the training stopped early after epoch {stopped}; more epochs do not change that"
            )
        elif more and last is not None:
            continued = [*continued, {"epochs": before, "step": last.state.step}]
            console.notice(_continues(continued[-1], config))
    if profile:
        done = last_checkpoint(folder / "checkpoints") if record else None
        steps = steps_per_epoch(config, shard_set) * config.training.epochs
        refuse_profile(profile, steps - (done.state.step if done else 0))
    spent = record.seconds if record else 0.0
    started = time.time()
    run_id = record.result.get("run_id") if record else None
    with contextlib.ExitStack() as stack:
        if config.cluster.min_workers:
            stack.enter_context(ray_session(config.cluster.address))
            check_room(config.cluster)
        run = stack.enter_context(
            open_run(config, kind="train", shard_set=shard_set, run_id=run_id)
        )
        if fresh:  # only now: everything that the new training needs has been found
            remove_folder(folder)
        make_folder(folder)
        if profile:  # what is there is of an earlier command
            remove_folder(folder / PROFILE)
        if init and plan:
            init = init.saved(folder)
            if last_checkpoint(folder / "checkpoints") is None:
                show_init(init, plan, objective_of(config, shard_set), console)
            log_init(run, folder, init, plan)
        if continued:
            log_to_run(run, tags={"perceiver.continued": to_json(continued)})
        noted = {"run_id": run.run_id, "continued": continued}
        begun = RunRecord(STAGE, fingerprint, noted, spent)
        write_run_record(config.folder, begun)
        try:
            with show_progress(folder, console):
                run_training(config, folder, run, console=console, profile=profile)
            still_held()
        finally:
            begun = replace(begun, seconds=spent + time.time() - started)
            write_run_record(config.folder, begun)
        result = {**training_result(config, folder, run, shard_set), "continued": continued}
        if init and plan:
            result["init"] = summary(init, plan)
        log_best(run, result)
        if report_best is not None:
            report_best(config, folder, run, shard_set, result, console)
    seconds = spent + time.time() - started
    write_run_record(config.folder, RunRecord(STAGE, fingerprint, result, seconds, done=True))
    return {**result, "seconds": seconds, "skipped": False, LEFT: undelivered(config, "train")}


def _check_best(record: RunRecord, run_folder: Folder) -> None:
    """Refuse a finished training whose best checkpoint is no longer whole."""
    try:
        read_checkpoint(recorded_folder(record, run_folder, "checkpoint")).check()
    except UserError as error:
        raise UserError(f"{error}; train again with --fresh") from None


def _continues(part: dict[str, int], config: Config) -> str:
    """Return a note on what more epochs mean for the learning rate."""
    return (
        f"{EPOCHS} was {part['epochs']}, is {config.training.epochs}: the training goes on from "
        f"step {part['step']}, with the learning rate that the schedule over all "
        f"{config.training.epochs} epochs has there"
    )


def _goes_on_with(changed: str, config: Config) -> str:
    """Return a note on what another way to compute the same training means for its weights."""
    model = config.model
    dropout = model.encoder.dropout or (model.decoder and model.decoder.dropout)
    dropout = dropout or any(part.dropout for part in model.modalities.values())
    augment = config.training.augment != AugmentConfig()
    draws = (dropout or augment) and "gradient_accumulation_steps" in changed
    if draws or (dropout and ("attention_path" in changed or "compile" in changed)):
        means = "augmentation and dropout draw other numbers from here on"
    else:
        means = "its weights will agree to rounding with those of an unchanged one"
    return f"{changed}: the training goes on; {means}"
