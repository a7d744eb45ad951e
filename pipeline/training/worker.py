"""One training process: what Ray Train runs on every worker."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from cluster.deepspeed_engine import initialize_engine, leave_process_group
from cluster.divided_model import divided_as_built
from cluster.nvme import swap_folder
from cluster.strategy import Strategy, as_dict, read_strategy
from perceiver_model.attention.cross_attend import CrossAttend
from perceiver_model.attention.multi_head import MLP, Attend
from pipeline.config.folders import Folder, folder_at
from pipeline.config.tree import Config
from pipeline.inputs.positions import load_positions
from pipeline.runs.outbox import RunRef
from pipeline.runs.run_lock import run_lock
from pipeline.runs.run_logger import RunLogger
from pipeline.runs.storage import exists
from pipeline.training.agreement import (
    agreed_checkpoint,
    check_same_folder,
    check_same_shards,
    every_rank,
)
from pipeline.training.backbone import load_backbone
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.compiled import compiled
from pipeline.training.ending import has_ended
from pipeline.training.initial_weights.matching import InitPlan
from pipeline.training.initial_weights.start import start_from
from pipeline.training.loop import TrainLoop
from pipeline.training.objectives import objective_of
from pipeline.training.optimizer import make_optimizer
from pipeline.training.precision import compute_as, precision_notes, products_in
from pipeline.training.rank_info import RankInfo, join
from pipeline.training.step_profile import FOLDER as PROFILE
from pipeline.training.step_profile import TRACE, StepProfiler
from pipeline.training.stopping import TrainingStoppedError, notices_of
from pipeline.training.streams import idle_notes, training_lanes
from shards import ShardSet


@dataclass(frozen=True)
class TrainTask:
    """What the driver gives to every worker.

    Attributes:
        config: The resolved configuration, as JSON.
        folder: The folder of this run or trial, on storage that all workers share.
        run: The MLflow run.
        token: The token from `folder_token`. Workers look for it in the folder.
        init_folder: The folder with the copy of the weights of `model.init`; empty means `folder`.
        profile: The number of steps that rank 0 profiles; 0 profiles none.
        study_token: The token of the study that this training is a trial of; empty for none.
        until: The number of epochs after which it pauses; 0 trains to the end.
    """

    config: str
    folder: str
    run: RunRef | None
    token: str = ""
    init_folder: str = ""
    profile: int = 0
    study_token: str = ""
    until: int = 0


def train_worker(task: TrainTask) -> dict[str, int] | None:
    """Train from the last checkpoint, if there is one, to the last epoch or until it stops early.

    Every rank reports each epoch's metrics to Ray Train. Rank 0 writes checkpoints, MLflow metrics
    and the progress file.

    Returns:
        None if the training has ended. `notice`, `rank`, `step` and `is_saved` if it has stopped
        before, as in `TrainingStoppedError`.
    """
    import ray.train

    try:
        with notices_of(task.token, task.study_token), open_training(task) as (loop, state):
            until = task.until or loop.config.training.epochs
            while state.epoch < until and not has_ended(loop.config.training, state):
                state = loop.run_epoch(state)
                ray.train.report({"epoch": state.epoch, "score": state.score, **state.metrics})
    except TrainingStoppedError as stopped:
        stop = stopped.stop
        return {
            "notice": int(stop.notice),
            "rank": stop.rank,
            "step": stopped.step,
            "is_saved": stopped.is_saved,
        }
    return None


@contextlib.contextmanager
def open_training(task: TrainTask) -> Iterator[tuple[TrainLoop, TrainState]]:
    """Agree with the other ranks, build the engine, restore the last checkpoint, and open the log.

    Yields:
        The loop, and the state to continue from.

    Raises:
        ClusterError: DeepSpeed's engine does not have the requested settings.
        UserError: The ranks see different folders, shards or checkpoints, no checkpoint is whole,
            or there are too few samples for a batch.
    """
    config = Config.model_validate_json(task.config)
    rank_info = join()
    folder = folder_at(task.folder)
    check_same_folder(folder, task.token)
    with contextlib.ExitStack() as stack:
        # Workers of an earlier launch may still be ending.
        held: list[Callable[[], None]] = []
        every_rank(lambda: held.extend(_hold(folder, rank_info, stack)))
        yield from _open_training(task, config, rank_info, folder, stack, held)


def _hold(
    folder: Folder, rank_info: RankInfo, stack: contextlib.ExitStack
) -> list[Callable[[], None]]:
    """Lock the folder on rank 0, so that no other training writes to it.

    Returns:
        On rank 0, a function that raises UserError if the lock was lost.
    """
    if rank_info.rank:
        return []
    lock = run_lock(folder / ".writer.lock", str(folder), print, patient=True)
    return [stack.enter_context(lock)]


def _open_training(
    task: TrainTask,
    config: Config,
    rank_info: RankInfo,
    folder: Folder,
    stack: contextlib.ExitStack,
    held: list[Callable[[], None]],
) -> Iterator[tuple[TrainLoop, TrainState]]:
    shard_set = ShardSet.open(config.shards_folder, config.data.remote_reading)
    check_same_shards(config.shards_folder, shard_set.digest)
    objective = objective_of(config, shard_set)
    training = config.training
    num_parameters = objective.num_parameters()
    strategy = _with_swap_folder(_strategy(config, rank_info), num_parameters, rank_info, stack)
    torch.manual_seed(config.seed)
    with divided_as_built(strategy, num_parameters, [Attend, MLP]):
        model: Any = objective.build_model(load_positions(shard_set, objective.model_config))
    model = model.to(rank_info.device)
    every_rank(lambda: compute_as(model, training.precision, training.attention_path))
    if hasattr(model, "encoder"):  # a Perceiver AR has none, and takes no share
        model.encoder.checkpointed_share = training.activation_checkpointing
    chosen, notes = agreed_checkpoint(folder / "checkpoints")
    if chosen is None:
        load_backbone(model, config.model)
    init_folder = folder_at(task.init_folder) if task.init_folder else folder
    plan = _started(model, config, init_folder, load=chosen is None)
    stack.enter_context(compiled(model, training.compile))

    notes += precision_notes(training.precision, rank_info.device)
    state = chosen.state if chosen else TrainState()
    if chosen:
        notes.append(f"resuming at epoch {state.epoch + 1}, step {state.step}, from {chosen.path}")
    if config.cluster.is_elastic:
        fewest, most = config.cluster.min_workers, config.cluster.max_workers
        notes.append(
            f"{rank_info.world_size} workers train (cluster.num_workers: {fewest} to {most})"
        )
    optimizer = make_optimizer(model, training, plan.rate_scales)
    engine = initialize_engine(model, optimizer, strategy, gathered_whole=[CrossAttend])

    watch = config.tracking.system_metrics and rank_info.local_rank == 0
    logger = RunLogger(
        task.run,
        system_metrics_seconds=config.tracking.system_metrics_seconds if watch else None,
        node=rank_info.node,
        writes_metrics=rank_info.rank == 0,
    )
    read = as_dict(read_strategy(engine, strategy))
    found = {f"engine.{name}": str(value) for name, value in read.items()}
    logger.tag(found)
    try:
        loop = TrainLoop(config, objective, shard_set, engine, rank_info, folder, logger, *held)
        stack.callback(loop.shown.close)
        with contextlib.closing(loop.saver):
            if chosen:
                loop.restore(chosen)
                loop.restore_carried(chosen)
            if training.on_bad_step == "rollback" and not state.step:
                loop.save(state)  # to return to, before there is a later one
                loop.saver.wait(is_required=True)
            lanes, recordings = training_lanes(config), loop.train_batches.recordings
            if lanes is not None and recordings is not None:
                notes += idle_notes(lanes, recordings)
            if task.profile and rank_info.rank == 0 and not exists(folder / PROFILE / TRACE):
                loop.profiler = StepProfiler(task.profile, folder, logger, rank_info.device)
                stack.callback(loop.profiler.close)
            loop.show_notes(notes, state)
            yield loop, state
    finally:
        logger.close()
        if config.cluster.min_workers == 0:
            leave_process_group(engine)


def _strategy(config: Config, rank_info: RankInfo) -> Strategy:
    training = config.training
    return Strategy(
        world_size=rank_info.world_size,
        zero_stage=config.zero_stage,
        micro_batch_size=config.micro_batch_size(rank_info.world_size),
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        gradient_clipping=training.gradient_clipping or 0.0,
        precision=products_in(training.precision),
        device=rank_info.device.type,
        optimizer=training.optimizer,
        offload_optimizer=training.offload.optimizer,
        offload_parameters=training.offload.parameters,
        nvme_path=training.offload.nvme_path,
        overlap_communication=training.overlap_communication,
        deepspeed=training.deepspeed,
    )


def _with_swap_folder(
    strategy: Strategy, num_parameters: int, rank_info: RankInfo, stack: contextlib.ExitStack
) -> Strategy:
    """Give this rank a folder of its own for what it keeps on NVMe, if it keeps something there."""
    folders: list[str | None] = []
    folder = swap_folder(strategy, num_parameters, local_rank=rank_info.local_rank)
    every_rank(lambda: folders.append(stack.enter_context(folder)))
    return replace(strategy, nvme_path=folders[0])


def _started(model: Any, config: Config, folder: Folder, *, load: bool) -> InitPlan:
    """Load and freeze what `model.init` says, on every rank or on none."""
    plans: list[InitPlan] = []
    every_rank(lambda: plans.append(start_from(model, config.model.init, folder, load=load)))
    return plans[0]
