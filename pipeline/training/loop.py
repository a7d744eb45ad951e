"""The training loop: epochs of optimizer steps, each followed by an evaluation and a checkpoint."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Never

import torch

from cluster.accumulation import Accumulation
from pipeline.config.folders import Folder
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.batches import media_loader
from pipeline.runs.run_logger import RunLogger
from pipeline.training.agreement import agreed_checkpoint
from pipeline.training.augmentation.draws import step_seed
from pipeline.training.bad_samples import BadSamples
from pipeline.training.bad_steps import StepGuard, bad_loss
from pipeline.training.checkpoint_files import Checkpoint, TrainState, not_finite_line
from pipeline.training.checkpoint_saver import CheckpointSaver
from pipeline.training.checkpoint_state import CARRIED
from pipeline.training.ema import WeightAverage
from pipeline.training.ending import has_ended
from pipeline.training.epoch_report import report_evaluation
from pipeline.training.evaluation import Metrics, RecordingMetrics, answered, metrics_of
from pipeline.training.feed import Feed, MicroBatch
from pipeline.training.loss_scaling import OVERFLOW, LossScaling
from pipeline.training.micro_steps import MicroSteps
from pipeline.training.objectives import Objective
from pipeline.training.progress import Progress
from pipeline.training.progress_writer import ProgressWriter
from pipeline.training.rank_info import RankInfo
from pipeline.training.reports.details import Details, details_of, joined_details
from pipeline.training.saved_state import own_state, restore_training
from pipeline.training.schedule import learning_rate
from pipeline.training.step_clock import StepClock
from pipeline.training.step_figures import MEASURED, StepFigures
from pipeline.training.step_profile import StepProfiler
from pipeline.training.step_sums import MOST_STEPS, StepSums
from pipeline.training.stopping import Stop, StopAgreedError, StopCheck, TrainingStoppedError
from pipeline.training.streams import (
    CarriedLatents,
    stream_steps,
    training_lanes,
)
from shards import ShardReader, ShardSet
from shards.lanes import Lanes
from shards.loader import ShardLoader


def steps_per_epoch(config: Config, shard_set: ShardSet) -> int:
    """Return the number of optimizer steps in an epoch.

    Samples that do not fill a whole batch are left for a later epoch. Streams leave none.

    Raises:
        UserError: The training split does not fill one batch.
        ShardError: `training.stream` is set, and the split has no streams.
    """
    if lanes := training_lanes(config):
        return stream_steps(lanes, shard_set)
    samples, batch_size = shard_set.num_samples("train"), config.training.batch_size
    if samples < batch_size:
        raise UserError(
            f"training.batch_size is {batch_size}, but the shard set has only {samples} training "
            "samples; lower training.batch_size"
        )
    return samples // batch_size


@dataclass
class TrainLoop:
    """Train and evaluate one epoch at a time.

    Attributes:
        config: The configuration.
        objective: What the model is trained for.
        shard_set: The shard set.
        engine: DeepSpeed's engine around the model.
        rank_info: This process among all ranks.
        folder: The folder for checkpoints and progress.
        logger: The logger of the MLflow run.
        still_held: A function that raises UserError if another training has taken over the folder.
    """

    config: Config
    objective: Objective
    shard_set: ShardSet
    engine: Any
    rank_info: RankInfo
    folder: Folder
    logger: RunLogger
    still_held: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        training = self.config.training
        lanes = training_lanes(self.config)
        self.carried = None if lanes is None else CarriedLatents(lanes, self.rank_info)
        # Samples that do not fill a whole batch are left for a later epoch, which is shuffled anew.
        self.train_batches = self._loader("train", lanes, shuffle=True, drop_last=True)
        self.steps_per_epoch = steps_per_epoch(self.config, self.shard_set)
        self.eval_split = "validation" if "validation" in self.shard_set.manifest.counts else None
        if self.eval_split:
            lanes = lanes and Lanes(lanes.count // lanes.groups)
            self.eval_batches = self._loader(self.eval_split, lanes, shuffle=False, drop_last=False)
        self.bad = BadSamples(self.rank_info, self.folder, self.config.data.max_bad_fraction)
        decay = training.ema_decay
        self.average = None if decay is None else WeightAverage(self.engine, decay)
        self.micro_steps = MicroSteps(
            self.config,
            self.objective,
            self.engine,
            self.rank_info,
            self.bad,
            self.carried,
            self.train_batches.recordings,
        )
        self.accumulation = Accumulation(self.engine)
        self.saver = CheckpointSaver(self.folder / "checkpoints", self.rank_info)
        self.scaling = LossScaling(self.engine) if training.precision == "fp16" else None
        guarded = training.on_bad_step != "fail" or self.scaling is not None
        self.guard = StepGuard(self.engine) if guarded else None
        total = training.epochs * self.steps_per_epoch * training.batch_size
        held_out = self.shard_set.num_samples(self.eval_split) if self.eval_split else 0
        self.shown = ProgressWriter(self.folder)
        self.progress = Progress(
            total_samples=total, epochs=training.epochs, evaluation_samples=held_out
        )
        self.details: Details | None = None
        self.profiler: StepProfiler | None = None
        self.clock = StepClock()
        self.figures = StepFigures(
            self.config, self.objective, self.engine, self.rank_info, self.clock
        )
        self.stop_check = StopCheck(self.rank_info.rank, self.rank_info.world_size)

    def run_epoch(self, state: TrainState) -> TrainState:
        """Train from `state` to the end of its epoch, evaluate, save, and return the new state.

        Raises:
            UserError: A loss, metric, gradient or tensor is not finite, or too many samples cannot
                be read.
            TrainingStoppedError: The ranks have agreed to stop, and a checkpoint is saved.
        """
        started, first = time.time(), state.samples
        state, sums = self._train(state)
        metrics = {
            **metrics_of(self.objective, "train", sums),
            "bad_samples": sums[-1],
            "samples_per_second": (state.samples - first) / (time.time() - started),
        }
        self.bad.check("train", sums[-1], state.samples)
        if self.progress.samples_per_second is None:  # no step was logged yet
            self.progress.samples_per_second = metrics["samples_per_second"]
            self.progress.loss = metrics["train_loss"]
        evaluation_began = time.time()
        if self.eval_split:
            try:
                with self.average.applied() if self.average else contextlib.nullcontext():
                    metrics |= self.evaluate()
            except StopAgreedError as agreed:
                self._stop(agreed.stop, state)
        for name, value in metrics.items():
            self._check_finite(name, value, state.step)
        score = self.objective.score(metrics)
        state = TrainState(
            step=state.step,
            epoch=state.epoch + 1,
            metrics=metrics,
            score=score,
            window=state.window,
            scores=(*state.scores, score),
            losses=state.losses,
            bad_steps=state.bad_steps,
            lost_steps=state.lost_steps,
            loss_scale=state.loss_scale,
            loss_scale_steps=state.loss_scale_steps,
            overflow_steps=state.overflow_steps,
        )
        self.save(state)
        if note := report_evaluation(self.folder, self.logger, self.details, state):
            self.progress.notes.append(note)
        logged = {name: value for name, value in metrics.items() if name not in MEASURED}
        self.logger.log({**logged, "epoch": float(state.epoch)}, state.step)
        # A score that is reported has a checkpoint, or a line says that it could not be written.
        self.saver.wait(is_required=has_ended(self.config.training, state))
        self.progress.evaluation_seconds = time.time() - evaluation_began
        self.progress.evaluations.append((state.epoch, metrics))
        self._show(state)
        return state

    def _train(self, state: TrainState) -> tuple[TrainState, tuple[float, ...]]:
        training, rank_info = self.config.training, self.rank_info
        sums = StepSums(self.objective, rank_info, state.sums)
        step_in_epoch = state.samples // training.batch_size
        if self.scaling is not None:
            self.scaling.restore(state)
        self.engine.train()
        order = self.train_batches.state_dict()
        order |= {"epoch": state.epoch, "samples": state.samples}
        if state.window != "auto":
            order["window"] = state.window
        self.train_batches.load_state_dict(order)
        window = self.train_batches.state_dict()["window"]
        if self.carried is not None and not state.samples:
            self.carried.begin()
        feed = Feed(
            iter(self.train_batches),
            self.config,
            self.objective,
            rank_info,
            self.steps_per_epoch - step_in_epoch,
            self.clock,
        )
        self.clock.begin()
        while step_in_epoch < self.steps_per_epoch:
            rate = learning_rate(state.step, self.steps_per_epoch, training)
            for group in self.engine.optimizer.param_groups:
                group["lr"] = rate * group.get("learning_rate_scale", 1.0)
            with self.accumulation.step():
                for micro, micro_batch in enumerate(feed.step()):
                    if micro:
                        self.accumulation.between()
                    seed = step_seed(self.config.seed, state.epoch, step_in_epoch, micro)
                    torch.manual_seed(seed + rank_info.rank)
                    sums.add(self._micro_step(micro_batch, seed, micro))
            sums.end_step(state.step + 1)
            feed.read_ahead()
            step_in_epoch += 1
            is_last = step_in_epoch == self.steps_per_epoch
            after = replace(
                state,
                step=state.step + 1,
                samples=step_in_epoch * training.batch_size,
                window=window,
                metrics={},
                score=None,
            )
            is_logged = after.step % training.log_steps == 0
            due = not is_last and after.step % (training.checkpoint_steps or math.inf) == 0
            if is_logged:
                self.figures.before_step()
            stop = self.stop_check.agreed(now=is_last)
            reads = is_logged or due or is_last or stop is not None
            fault, after = self._step(sums, after, reads=reads)
            self.clock.step()
            state = replace(after, sums=tuple(sums.of_epoch.tolist()))
            if self.scaling is not None:
                state = self.scaling.kept_in(state)
            self._profile_step(state)
            if is_logged and not fault:
                assert sums.loss is not None
                figures = {"loss": sums.loss, "learning_rate": rate, **self.figures.read()}
                if self.scaling is not None:
                    figures |= self.scaling.metrics()
                self.logger.log(figures, state.step)
                self.progress.loss = sums.loss
                self.progress.samples_per_second = figures["samples_per_second"]
                self._show(state)
            if is_logged:
                self.saver.check()
            if stop:
                self._stop(stop, state)
            if due:
                began = time.perf_counter()
                self.save(state)
                self.clock.leave_out(time.perf_counter() - began)
        return state, state.sums

    def _profile_step(self, state: TrainState) -> None:
        if self.profiler is None:
            return
        seconds, note = self.profiler.step()
        self.clock.leave_out(seconds)
        if note is not None:
            self.progress.notes.append(note)
            self._show(state)

    def _stop(self, stop: Stop, state: TrainState) -> Never:
        """Save a checkpoint, and stop. With `rollback`, the last one stays that of the training."""
        saves = self.config.training.on_bad_step != "rollback"
        if saves:
            self.save(state)
            self.saver.wait(is_required=True)
        raise TrainingStoppedError(stop, state.step, is_saved=saves)

    def _step(
        self, sums: StepSums, after: TrainState, *, reads: bool
    ) -> tuple[str | None, TrainState]:
        """Take the optimizer's step.

        If the step must be judged before it is taken, its loss is read. Else the losses are read
        every few steps, and before anything is logged or saved.

        Args:
            sums: The sums, with those of this step.
            after: The state after the step.
            reads: Whether the sums are needed after this step.

        Returns:
            Why the step was left out, or None; and the state after the step.

        Raises:
            UserError: A step is bad, and `training.on_bad_step` is `fail`.
        """
        training = self.config.training
        if self.guard is None and training.spike_factor is None:
            self.engine.step()
            if reads or self.engine.skipped_steps or sums.unread >= MOST_STEPS:
                for found in sums.read():
                    self._check_finite("the loss", found.loss, found.step)
                    sums.count(found)
                self._check_gradient(after.step)
            if self.average is not None:
                self.average.update()
            return None, after
        (found,) = sums.read()
        fault = bad_loss(training, found.loss, after.losses, after.step)
        if self.guard is not None:
            taken = self.guard.step(leave_out=fault is not None)
            if self.scaling is not None and not fault:
                fault = self.scaling.after_step(taken=taken)
            fault = fault or (None if taken else not_finite_line("the gradient", after.step))
            if fault and training.on_bad_step == "fail" and fault != OVERFLOW:
                raise UserError(fault)
            if fault:
                return fault, self._left_out(after, fault)
        elif fault:
            raise UserError(fault)
        else:
            self.engine.step()
            self._check_gradient(after.step)
        sums.count(found)
        if self.average is not None:
            self.average.update()
        if training.spike_factor is not None:
            losses = (*after.losses, found.loss)[-training.spike_window :]
            after = replace(after, losses=losses)
        return None, after

    def _check_gradient(self, step: int) -> None:
        """Refuse a step whose gradients are not finite. DeepSpeed silently skips it."""
        if self.engine.skipped_steps:
            raise UserError(not_finite_line("the gradient", step))

    def _left_out(self, state: TrainState, fault: str) -> TrainState:
        """Count a step that was left out, and roll back if that is wanted.

        Args:
            state: The state after the step.
            fault: Why the step is bad.

        Raises:
            UserError: There are more bad steps than `training.max_bad_steps`.
        """
        training = self.config.training
        state = replace(state, lost_steps=state.lost_steps + 1)
        if fault == OVERFLOW:
            return state
        state = replace(state, bad_steps=state.bad_steps + 1)
        if self.carried is not None:  # what the rows carry may not be finite
            self.carried.begin()
        self.logger.log({"bad_steps": float(state.bad_steps)}, state.step)
        if state.bad_steps > training.max_bad_steps:
            raise UserError(fault)
        done = "left out"
        if training.on_bad_step == "rollback":
            self.saver.wait()
            chosen, _ = agreed_checkpoint(self.folder / "checkpoints")
            assert chosen is not None  # `open_training` has saved one
            self.restore(chosen)
            state = replace(state, lost_steps=state.step - chosen.state.updates)
            done = f"left out, and the weights are those of {chosen.path.name} again"
        number = f"{state.bad_steps} of training.max_bad_steps={training.max_bad_steps}"
        self.progress.notes.append(f"{fault.split(';')[0]}: {done} ({number})")
        self._show(state)
        return state

    def _loader(
        self, split: str, lanes: Lanes | None, *, shuffle: bool, drop_last: bool
    ) -> ShardLoader:
        return media_loader(
            ShardReader(self.shard_set, split, verify_samples=self.config.data.verify_samples),
            self.config.data.formats,
            target=self.objective.target,
            one_length=self.config.training.compile is not None,
            batch_size=self.config.micro_batch_size(self.rank_info.world_size),
            global_batch=self.config.global_micro_batch,
            rank=self.rank_info.rank,
            world_size=self.rank_info.world_size,
            seed=self.config.seed,
            shuffle=shuffle,
            balance=self.config.training.balance_classes if shuffle else 0.0,
            drop_last=drop_last,
            num_workers=self.config.training.loader_workers,
            skip_corrupt=self.config.data.corrupt_samples == "skip",
            pin_memory=self.rank_info.device.type == "cuda",
            lanes=lanes,
        )

    def _micro_step(self, micro_batch: MicroBatch, seed: int, micro: int) -> torch.Tensor:
        """Run forward and backward for one micro-batch; see `MicroSteps.run`."""
        return self.micro_steps.run(micro_batch, seed, micro)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the loss and metrics over all samples of the validation split, each read once."""
        assert self.eval_split is not None
        objective, device = self.objective, self.rank_info.device
        self.engine.eval()
        metrics, formats = Metrics(objective, device), self.config.data.formats
        recordings = self.eval_batches.recordings
        own = None if recordings is None else RecordingMetrics(objective, device, recordings)
        details = details_of(objective)
        for batch, samples, outputs in answered(
            self.engine, objective, self.eval_batches, formats, device, recordings
        ):
            metrics.update(outputs, samples, len(batch.bad))
            if samples.good.any():
                details.update(objective, outputs, samples)
            if own is not None:
                own.update(outputs, samples)
            self.bad.note(batch)
            if stop := self.stop_check.agreed():
                raise StopAgreedError(stop)
        bad = metrics.sum_over_ranks()
        num_samples = self.shard_set.num_samples(self.eval_split)
        self.bad.check(self.eval_split, bad, num_samples)
        self.details = joined_details(details) if bad < num_samples else None
        return metrics.compute() | (own.compute() if own is not None else {})

    def _check_finite(self, name: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise UserError(not_finite_line(f"{name} ({value})", step))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up the weights, the moments and the average of a checkpoint.

        All ranks must call this (a collective). Each reads only what it holds.

        Raises:
            UserError: The checkpoint is not one of this training, or cannot be read.
            ClusterError: The moments are another optimizer's.
        """
        restore_training(self.engine, checkpoint, self.average)

    def restore_carried(self, checkpoint: Checkpoint) -> None:
        """Take up the latents that streams carry at a checkpoint.

        Raises:
            UserError: They are not those of this training.
        """
        if self.carried is not None:
            self.carried.restore(checkpoint.tensors(CARRIED), str(self.folder / "checkpoints"))

    def save(self, state: TrainState) -> None:
        """Begin to save a checkpoint. All ranks must call this (a collective).

        The training may go on when this returns. `saver.wait` waits for the end.

        Raises:
            UserError: A value is not finite, or the checkpoint before it could not be written.
        """
        self.logger.save()
        carried = self.carried if state.samples else None
        self.saver.save(state, own_state(self.engine, self.average, carried, self.rank_info))

    def show_notes(self, notes: list[str], state: TrainState) -> None:
        """Have the driver show notes to the user, and the progress of the training."""
        self.progress.notes = notes
        self._show(state)

    def _show(self, state: TrainState) -> None:
        if self.rank_info.rank == 0:
            done = state.epoch * self.steps_per_epoch * self.config.training.batch_size
            self.progress.samples, self.progress.epoch = done + state.samples, state.epoch
            self.progress.notes += [*self.logger.news(), *self.saver.news()]
            self.still_held()
            self.shown.write(self.progress)
