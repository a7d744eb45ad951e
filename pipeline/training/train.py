"""`perceiver train`: one training with Ray Train and DeepSpeed, which resumes where it stopped."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from typing import Any

from cluster.deepspeed_keys import keys_of_weights
from cluster.ray_session import ray_session, require_resources
from perceiver_model.config_checks import flatten
from pipeline.config.folders import Folder
from pipeline.config.model import ModelConfig
from pipeline.config.objectives import OBJECTIVE_CONFIGS, default_objective
from pipeline.config.training import AugmentConfig, TrainingConfig
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.positions import load_positions
from pipeline.media.registered import MODALITIES, modality
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
from pipeline.runs.storage import make_folder, read_bytes, remove_folder
from pipeline.runs.strict_json import to_json
from pipeline.runs.tracking import log_to_run, open_run, undelivered
from pipeline.training.backbone import check_backbone, weights_fingerprint
from pipeline.training.checkpoints import best_checkpoint, last_checkpoint, read_checkpoint
from pipeline.training.ema import lagging_average
from pipeline.training.ending import stopped_early
from pipeline.training.initial_weights.report import log_init, show_init, summary
from pipeline.training.initial_weights.start import find_init
from pipeline.training.launch import run_training
from pipeline.training.loop import steps_per_epoch
from pipeline.training.objectives import objective_of
from pipeline.training.progress import describe, show_progress
from pipeline.training.step_profile import FOLDER as PROFILE
from pipeline.training.step_profile import refuse_profile
from shards import ShardSet

STAGE = "train"
LEFT = "undelivered"
DEEPSPEED = "training.deepspeed"
SAME_TO_ROUNDING = frozenset(
    {
        "training.zero_stage",
        "training.gradient_accumulation_steps",
        "training.activation_checkpointing",
        "training.attention_path",
        "training.compile",
        "training.offload.optimizer",
        "training.offload.parameters",
        "training.offload.nvme_path",
        "training.overlap_communication",
        DEEPSPEED,
    }
)
"""Fields that change how a training is computed, but its weights only by rounding."""
EPOCHS = "training.epochs"
_MAX_BYTES = 1 << 30
STOPPED_TAG = "perceiver.stopped_at_epoch"
DEFAULTS = flatten(
    {
        "model": ModelConfig().model_dump(mode="json"),
        "training": TrainingConfig().model_dump(mode="json"),
    }
)
"""The default values of the fields that determine the weights, without those of adapters."""
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
            _same_to_rounding(config),
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
            check_resources(config)
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


def report(result: dict[str, Any], console: Console) -> None:
    """Show the user what `train` returned."""
    state = "done before and verifies: skipped" if result["skipped"] else "done"
    console.say(f"training {state}; best epoch: {describe(result['metrics'])}")
    if stopped := result.get("stopped_early"):  # an older record has none
        console.say(f"stopped early after epoch {stopped}: the score did not improve any more")
    if bad := result.get("bad_steps"):
        console.say(f"{bad} steps were bad and are not in the weights (training.on_bad_step)")
    console.say(f"best checkpoint {result['checkpoint']}")
    console.say(
        f"{result['parameters']:,} parameters, {result['forward_flops']:,} FLOPs forward a sample; "
        f"MLflow run {result['run_id']}"
    )
    if result[LEFT]:
        console.say(result[LEFT])
    for source, reason in result["bad_samples"][:10]:
        console.say(f"could not be read: {source}: {reason}")


def open_shards(config: Config) -> ShardSet:
    """Open the configuration's shard set, and check that the model can be trained on it.

    Raises:
        UserError: No objective is trained on such targets, or the set was made with another
            modality or format.
        ShardError: There is no set, or its Fourier configuration differs from the model's.
    """
    if config.trained_for is None:
        kinds = ", ".join(each().kind for each in OBJECTIVE_CONFIGS if "none" in each.targets)
        raise UserError(
            f"objective.kind is missing: data.target.kind is {config.data.target.kind!r}; give one "
            f"of {kinds}"
        )
    try:
        config.trained_for.check(config)
    except ValueError as error:
        raise UserError(str(error)) from None
    shard_set = ShardSet.open(config.shards_folder)
    check_format(config, shard_set)
    try:
        objective = objective_of(config, shard_set)
    except ValueError as error:
        raise UserError(f"{config.shards_folder}: {error}") from None
    load_positions(shard_set, objective.model_config)
    check_backbone(config.model, getattr(objective.model_config, "input", None))
    return shard_set


def check_format(config: Config, shard_set: ShardSet) -> None:
    """Check that a shard set was made with the modalities and formats of the configuration.

    Raises:
        UserError: It was made with others. The message names the first difference.
    """
    made = shard_set.manifest.config
    data = config.tree()["data"]
    wanted = {f"data.{key}": modality(key).in_manifest(data[key]) for key in MODALITIES}
    for field, value in wanted.items():
        if made.get(field) != value:
            raise UserError(
                f"{config.shards_folder}: was made with {field}={made.get(field)}, the "
                f"configuration has {value}; run 'perceiver preprocess' again, or mend {field}"
            )


def training_fingerprint(
    config: Config, shard_set: ShardSet, init_sha256: str | None = None
) -> dict[str, Any]:
    """Return everything that determines the weights.

    Where the training runs, and on how many workers, is not part of it. The fields in
    `SAME_TO_ROUNDING` are included so that a change can be reported.

    Args:
        config: The configuration.
        shard_set: The shard set.
        init_sha256: The digest of the weights of `model.init`, which count instead of their place.
    """
    tree = config.tree()
    chosen = {key: tree[key] for key in ("seed", "model", "training")}
    if init := config.model.init:
        chosen["model"] = {key: value for key, value in tree["model"].items() if key != "init"}
        chosen |= {
            "model.init.sha256": init_sha256,
            "model.init.freeze": sorted(init.freeze),
            "model.init.learning_rate_scale": sorted(map(list, init.learning_rate_scale.items())),
        }
    ignored = {"training.log_steps", "training.loader_workers", "training.checkpoint_steps"}
    if config.training.on_bad_step == "rollback":  # to the last checkpoint
        ignored.remove("training.checkpoint_steps")
    flat = {key: value for key, value in flatten(chosen).items() if key not in ignored}
    flat = {key: value for key, value in flat.items() if not key.startswith(f"{DEEPSPEED}.")}
    rounded, others = keys_of_weights(config.training.deepspeed)
    flat |= {DEEPSPEED: rounded} if rounded else {}
    flat |= {f"{DEEPSPEED}.{key}": value for key, value in others.items()}
    flat |= weights_fingerprint(config.model)
    return {**flat, **_objective_fields(config), "shards.digest": shard_set.digest}


def default_values(config: Config) -> dict[str, Any]:
    """Return the default values of the fields that determine the weights.

    An older record lacks the fields that were added after it, and was made with their defaults.
    """
    adapters = {"model.adapter": config.model.adapter}
    adapters |= {
        f"model.modalities.{name}.adapter": part.adapter
        for name, part in config.model.modalities.items()
    }
    return DEFAULTS | {
        f"{path}.{field.name}": list(default) if isinstance(default, tuple) else default
        for path, adapter in adapters.items()
        if adapter is not None
        for field in fields(adapter)
        if (default := field.default) is not MISSING
    }


def _objective_fields(config: Config) -> dict[str, Any]:
    """Return the objective's fields that differ from the objective that the targets imply.

    A training that is older than the section `objective` has none of them.
    """
    assert config.trained_for is not None
    fields = flatten({"objective": config.trained_for.model_dump(mode="json")})
    implied = default_objective(config.data.target.kind)
    default = flatten({"objective": implied.model_dump(mode="json")}) if implied else {}
    return {key: value for key, value in fields.items() if default.get(key, ...) != value}


def _same_to_rounding(config: Config) -> frozenset[str]:
    """Return the fields that may change between two launches of this training."""
    if config.training.stream is None:
        return SAME_TO_ROUNDING
    # Rows without a part do not count in the mean of their micro-batch, and not all have some.
    return SAME_TO_ROUNDING - {"training.gradient_accumulation_steps"}


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


def check_resources(config: Config) -> None:
    """Refuse more workers than the cluster can hold.

    Raises:
        ClusterError: The cluster has too few CPUs or GPUs.
    """
    require_resources(
        num_workers=config.cluster.min_workers,
        cpus_per_worker=config.cluster.cpus_per_worker,
        use_gpu=config.cluster.use_gpu,
        what="the training",
        mend="lower cluster.num_workers or cluster.cpus_per_worker, or name a larger cluster in "
        "cluster.address",
    )


def training_result(
    config: Config, folder: Folder, run: RunRef, shard_set: ShardSet
) -> dict[str, Any]:
    """Return the result of a finished training, with the fields that `train` describes.

    Args:
        config: The configuration.
        folder: The folder of the training.
        run: The MLflow run.
        shard_set: The shard set.
    """
    best = best_checkpoint(folder / "checkpoints")
    last = last_checkpoint(folder / "checkpoints")
    assert best is not None and last is not None
    objective = objective_of(config, shard_set)
    return {
        "run_id": run.run_id,
        "checkpoint": str(best.path),
        "metrics": best.state.metrics,
        "score": objective.selected(best.state.metrics),
        "epochs": last.state.epoch,
        "stopped_early": stopped_early(config.training, last.state),
        "bad_steps": last.state.bad_steps,
        "parameters": objective.num_parameters(),
        "forward_flops": objective.forward_flops(),
        "bad_samples": _bad_samples(folder / "bad_samples.json"),
    }


def _bad_samples(path: Folder) -> list[Any]:
    try:
        return list(json.loads(read_bytes(path, _MAX_BYTES)))
    except FileNotFoundError:
        return []


def log_best(run: RunRef, result: dict[str, Any]) -> None:
    """Record the best checkpoint in the MLflow run, for `promote` and for people."""
    log_to_run(
        run,
        metrics={
            "best_score": result["score"],
            "forward_flops": result["forward_flops"],
            "parameters": result["parameters"],
        },
        tags={
            "perceiver.checkpoint": result["checkpoint"],
            **({STOPPED_TAG: str(stopped)} if (stopped := result["stopped_early"]) else {}),
        },
    )
