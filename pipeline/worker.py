"""One training process: what Ray Train runs on every worker."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from cluster.deepspeed_engine import Strategy, initialize_engine, read_strategy
from cluster.engine_state import gather_state, restore_state
from perceiver_model import PerceiverClassifier
from perceiver_model.config import AudioInput, ClassifierConfig
from pipeline.augment import augment_audio, augment_images, step_seed
from pipeline.batches import BadSample, Batch, load_batches
from pipeline.checkpoints import TrainState, last_checkpoint, save_checkpoint
from pipeline.config import Config, TrainingConfig
from pipeline.errors import UserError
from pipeline.preprocess import position_spec
from pipeline.schedule import learning_rate
from pipeline.stages import write_json
from pipeline.tracking import RunLogger, RunRef
from shards import ShardReader, ShardSet, epoch_positions

PROGRESS_FILE = "progress.json"
BAD_SAMPLES_NAMED = 20


@dataclass(frozen=True)
class TrainTask:
    """What the driver hands to every worker.

    Attributes:
        config: the resolved tree, as JSON.
        folder: of this run or trial, on storage that all workers share.
        run: the MLflow run.
    """

    config: str
    folder: str
    run: RunRef | None


@dataclass(frozen=True)
class Place:
    """This process among the others."""

    rank: int
    local_rank: int
    node: int
    world_size: int
    device: torch.device


def train_worker(task: TrainTask) -> None:
    """Train to the last epoch, from the last checkpoint if there is one.

    Every rank reports each epoch's metrics to Ray Train; rank 0 writes checkpoints, MLflow metrics
    and the progress file.
    """
    import ray.train

    config = Config.model_validate_json(task.config)
    place = _join()
    folder = Path(task.folder)
    shard_set = ShardSet.open(config.shards_folder)
    classifier = config.classifier(len(shard_set.manifest.classes))
    training = config.training
    torch.manual_seed(config.seed)
    table = torch.from_numpy(shard_set.position_table(position_spec(classifier)).copy())
    model = PerceiverClassifier(classifier, positions=table).to(place.device)

    checkpoint = last_checkpoint(folder / "checkpoints")
    state = checkpoint.state if checkpoint else TrainState()
    if checkpoint:
        weights, moments = checkpoint.load()
        model.load_state_dict(weights)
    strategy = Strategy(
        world_size=place.world_size,
        zero_stage=training.zero_stage,
        micro_batch_size=config.micro_batch_size(place.world_size),
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        gradient_clipping=training.gradient_clipping or 0.0,
        precision=training.precision,
        device=place.device.type,
    )
    engine = initialize_engine(model, make_optimizer(model, training), strategy)
    if checkpoint:
        restore_state(engine, weights, moments, step=state.step)

    watch = config.tracking.system_metrics and place.local_rank == 0
    logger = RunLogger(
        task.run,
        system_metrics_seconds=config.tracking.system_metrics_seconds if watch else None,
        node=place.node,
        writes_metrics=place.rank == 0,
    )
    found = {f"engine.{name}": str(value) for name, value in asdict(read_strategy(engine)).items()}
    logger.tag(found)
    loop = TrainLoop(config, classifier, shard_set, engine, place, folder, logger)
    try:
        while state.epoch < training.epochs:
            state = loop.run_epoch(state)
            ray.train.report({"epoch": state.epoch, "score": state.score, **state.metrics})
    finally:
        logger.close()


def make_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with decay on weights and latents, and none on biases and norms (IO, appendix H)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)


def _join() -> Place:
    """Find this process's place; without Ray Train it is the only one."""
    import ray.train

    context = ray.train.get_context()
    rank, local_rank = context.get_world_rank(), context.get_local_rank()
    world_size = context.get_world_size()
    if not dist.is_initialized():  # cluster.num_workers=0
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    use_gpu = dist.get_backend() == "nccl"
    device = ray.train.torch.get_device() if use_gpu else torch.device("cpu")
    return Place(rank, local_rank, context.get_node_rank(), world_size, device)


@dataclass
class TrainLoop:
    """An epoch of training and its evaluation."""

    config: Config
    classifier: ClassifierConfig
    shard_set: ShardSet
    engine: Any
    place: Place
    folder: Path
    logger: RunLogger

    def __post_init__(self) -> None:
        training = self.config.training
        self.train_reader = ShardReader(self.shard_set, "train")
        self.steps_per_epoch = len(self.train_reader) // training.batch_size
        if self.steps_per_epoch == 0:
            raise UserError(
                f"training.batch_size is {training.batch_size}, but the shard set has only "
                f"{len(self.train_reader)} training samples; lower training.batch_size"
            )
        self.eval_split = "validation" if "validation" in self.shard_set.manifest.counts else None
        self.bad: dict[str, BadSample] = {}

    def run_epoch(self, state: TrainState) -> TrainState:
        """Train from ``state`` to the end of its epoch, evaluate, save; returns the new state."""
        started, first = time.time(), state.samples
        state, sums = self._train(state)
        count = max(1.0, sums[2])
        metrics = {
            "train_loss": sums[0] / count,
            "train_accuracy": sums[1] / count,
            "bad_samples": sums[3],
            "samples_per_second": (state.samples - first) / (time.time() - started),
        }
        self._check_bad("train", sums[3], sums[2] + sums[3])
        if self.eval_split:
            metrics |= self.evaluate(self.eval_split)
        state = TrainState(
            step=state.step,
            epoch=state.epoch + 1,
            metrics=metrics,
            score=metrics.get("val_accuracy", metrics["train_accuracy"]),
        )
        self.logger.log({**metrics, "epoch": float(state.epoch)}, state.step)
        self._save(state)
        self._progress(state, 0, metrics)
        return state

    def _train(self, state: TrainState) -> tuple[TrainState, tuple[float, ...]]:
        training, place = self.config.training, self.place
        sums = torch.zeros(4, dtype=torch.float64)
        sums[:] = torch.tensor(state.sums or (0.0,) * 4)
        step_in_epoch = state.samples // training.batch_size
        self.engine.train()
        micro_steps = iter(self._micro_batches(state))
        while step_in_epoch < self.steps_per_epoch:
            rate = learning_rate(state.step, self.steps_per_epoch, training)
            for group in self.engine.optimizer.param_groups:
                group["lr"] = rate
            step_sums = torch.zeros(4, dtype=torch.float64)
            for micro in range(training.gradient_accumulation_steps):
                seed = step_seed(self.config.seed, state.epoch, step_in_epoch, micro)
                torch.manual_seed(seed + place.rank)
                step_sums += self._micro_step(next(micro_steps), seed)
            sums += step_sums
            step_in_epoch += 1
            state = TrainState(
                step=state.step + 1,
                epoch=state.epoch,
                samples=step_in_epoch * training.batch_size,
                sums=tuple(sums.tolist()),
            )
            if state.step % training.log_steps == 0:
                loss = float(step_sums[0] / step_sums[2].clamp(min=1))
                self._check_finite(loss, state.step)
                self.logger.log({"loss": loss, "learning_rate": rate}, state.step)
                self._progress(state, state.samples, {"loss": loss})
            due = training.checkpoint_steps and state.step % training.checkpoint_steps == 0
            if due and step_in_epoch < self.steps_per_epoch:
                self._save(state)
        return state, state.sums

    def _micro_batches(self, state: TrainState) -> Iterator[Batch]:
        numbers = epoch_positions(
            self.train_reader,
            seed=self.config.seed,
            epoch=state.epoch,
            rank=self.place.rank,
            world_size=self.place.world_size,
            batch_size=self.config.micro_batch_size(self.place.world_size),
            start=state.samples,
            shuffle=True,
            drop_last=True,
        )
        return iter(self._load(self.train_reader, numbers))

    def _load(self, reader: ShardReader, numbers: Any) -> Any:
        return load_batches(
            reader,
            self.config.data.media,
            numbers,
            num_workers=self.config.training.loader_workers,
            pin_memory=self.place.device.type == "cuda",
        )

    def _micro_step(self, batch: Batch, seed: int) -> torch.Tensor:
        """Forward and backward of one micro-batch, and an optimizer step where one is due.

        The loss is the mean over the good samples of all ranks. Returns the global sums of loss,
        correct answers, good and bad samples, float64 on the CPU.
        """
        inputs, mask = self._augment(batch, seed)
        targets, weights = batch.targets.to(self.place.device), batch.weights.to(self.place.device)
        counts = self._sum_over_ranks([weights.sum(), torch.tensor(float(len(batch.bad)))])
        self._note_bad(batch)
        logits = self.engine(inputs, mask)
        losses = F.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.config.training.label_smoothing
        )
        total = (losses * weights).sum()
        # DeepSpeed averages gradients over the ranks.
        self.engine.backward(total * self.place.world_size / counts[0].clamp(min=1))
        self.engine.step()
        correct = ((logits.argmax(dim=1) == targets) * weights).sum()
        sums = self._sum_over_ranks([total.detach(), correct])
        return torch.cat([sums, counts]).double().cpu()

    def _augment(self, batch: Batch, seed: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        place, config = self.place, self.config.training.augment
        inputs = batch.inputs.to(place.device, non_blocking=True)
        share = {"seed": seed, "rank": place.rank, "world_size": place.world_size}
        if batch.mask is None:
            return augment_images(inputs, config, **share), None
        mask = batch.mask.to(place.device, non_blocking=True)
        source = self.classifier.input
        assert isinstance(source, AudioInput)
        return augment_audio(inputs, mask, config, sample_rate=source.sample_rate, **share)

    def _sum_over_ranks(self, values: list[torch.Tensor]) -> torch.Tensor:
        summed = torch.stack([value.float().to(self.place.device) for value in values])
        dist.all_reduce(summed)
        return summed

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """``val_loss`` and ``val_accuracy`` over every sample of a split, once."""
        reader = ShardReader(self.shard_set, split)
        numbers = epoch_positions(
            reader,
            seed=0,
            epoch=0,
            rank=self.place.rank,
            world_size=self.place.world_size,
            batch_size=self.config.micro_batch_size(self.place.world_size),
            shuffle=False,
            drop_last=False,
        )
        self.engine.eval()
        sums = torch.zeros(4, dtype=torch.float64, device=self.place.device)
        for batch in self._load(reader, numbers):
            mask = None if batch.mask is None else batch.mask.to(self.place.device)
            logits = self.engine(batch.inputs.to(self.place.device), mask)
            targets = batch.targets.to(self.place.device)
            weights = batch.weights.to(self.place.device)
            losses = F.cross_entropy(logits, targets, reduction="none")
            sums[0] += (losses * weights).sum()
            sums[1] += ((logits.argmax(dim=1) == targets) * weights).sum()
            sums[2] += weights.sum()
            sums[3] += len(batch.bad)
            self._note_bad(batch)
        dist.all_reduce(sums)
        loss, correct, count, bad = sums.tolist()
        self._check_bad(split, bad, count + bad)
        return {"val_loss": loss / max(1.0, count), "val_accuracy": correct / max(1.0, count)}

    def _note_bad(self, batch: Batch) -> None:
        for bad in batch.bad:
            self.bad.setdefault(bad.source, bad)

    def _check_bad(self, split: str, bad: float, total: float) -> None:
        """Tell of the samples that could not be read; fail when they are too many."""
        if bad == 0:
            return
        everyone: list[Any] = [None] * self.place.world_size
        dist.all_gather_object(everyone, list(self.bad.values()))
        named = sorted({(b.source, b.reason) for rank in everyone for b in rank})
        if self.place.rank == 0:
            write_json(self.folder / "bad_samples.json", named)
        if bad / total > self.config.data.max_bad_fraction:
            some = "; ".join(f"{source}: {reason}" for source, reason in named[:3])
            raise UserError(
                f"{bad:g} of {total:g} samples of split {split!r} cannot be read, more than "
                f"data.max_bad_fraction={self.config.data.max_bad_fraction:g}: {some}"
            )

    def _check_finite(self, loss: float, step: int) -> None:
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise UserError(
                f"the loss is {loss} at step {step}; lower training.learning_rate, or set "
                "training.gradient_clipping"
            )

    def _save(self, state: TrainState) -> None:
        weights, moments = gather_state(self.engine)
        if self.place.rank == 0:
            save_checkpoint(self.folder / "checkpoints", state, weights, moments)
        dist.barrier()

    def _progress(self, state: TrainState, samples: int, shown: dict[str, float]) -> None:
        if self.place.rank != 0:
            return
        done = state.epoch * self.steps_per_epoch + samples // self.config.training.batch_size
        total = self.config.training.epochs * self.steps_per_epoch
        write_json(
            self.folder / PROGRESS_FILE,
            {
                "epoch": state.epoch,
                "samples": done * self.config.training.batch_size,
                "total_samples": total * self.config.training.batch_size,
                "metrics": shown,
                "finished_epoch": bool(state.metrics),
            },
        )


def read_progress(folder: Path) -> dict[str, Any] | None:
    """What rank 0 last wrote of its progress."""
    try:
        return json.loads((folder / PROGRESS_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
