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
from pipeline.runs.run_logger import RunLogger
from pipeline.training.agreement import agreed_checkpoint
from pipeline.training.augmentation.draws import step_seed
from pipeline.training.bad_samples import BadSamples
from pipeline.training.checkpoint_files import Checkpoint, TrainState, check_finite
from pipeline.training.checkpoint_saver import CheckpointSaver
from pipeline.training.checkpoint_state import CARRIED
from pipeline.training.ema import WeightAverage
from pipeline.training.ending import has_ended
from pipeline.training.epoch_report import report_evaluation
from pipeline.training.evaluation import metrics_of
from pipeline.training.feed import Feed
from pipeline.training.loaders import VALIDATION, steps_per_epoch, train_loader, validation_loader
from pipeline.training.loss_scaling import OVERFLOW
from pipeline.training.micro_steps import MicroSteps
from pipeline.training.objectives import Objective
from pipeline.training.optimizer_step import OptimizerStep
from pipeline.training.progress import Progress
from pipeline.training.progress_writer import ProgressWriter
from pipeline.training.rank_info import RankInfo
from pipeline.training.saved_state import own_state, restore_training
from pipeline.training.schedule import learning_rate
from pipeline.training.step_clock import StepClock
from pipeline.training.step_figures import MEASURED, StepFigures
from pipeline.training.step_profile import StepProfiler
from pipeline.training.step_sums import StepSums
from pipeline.training.stopping import Stop, StopAgreedError, StopCheck, TrainingStoppedError
from pipeline.training.streams import CarriedLatents, training_lanes
from pipeline.training.validation import Validation
from shards import ShardSet


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
        config, rank_info = self.config, self.rank_info
        training, lanes = config.training, training_lanes(config)
        self.carried = None if lanes is None else CarriedLatents(lanes, rank_info)
        self.train_batches = train_loader(config, self.objective, self.shard_set, rank_info)
        self.steps_per_epoch = steps_per_epoch(config, self.shard_set)
        self.bad = BadSamples(rank_info, self.folder, config.data.max_bad_fraction)
        self.stop_check = StopCheck(rank_info.rank, rank_info.world_size)
        self.validation = self._validation()
        decay = training.ema_decay
        self.average = None if decay is None else WeightAverage(self.engine, decay)
        self.micro_steps = MicroSteps(
            config,
            self.objective,
            self.engine,
            rank_info,
            self.bad,
            self.carried,
            self.train_batches.recordings,
        )
        self.accumulation = Accumulation(self.engine)
        self.optimizer_step = OptimizerStep(training, self.engine, self.average)
        self.saver = CheckpointSaver(self.folder / "checkpoints", rank_info)
        self.shown = ProgressWriter(self.folder)
        self.progress = Progress(
            total_samples=training.epochs * self.steps_per_epoch * training.batch_size,
            epochs=training.epochs,
            evaluation_samples=self.validation.num_samples if self.validation else 0,
        )
        self.profiler: StepProfiler | None = None
        self.clock = StepClock()
        self.figures = StepFigures(config, self.objective, self.engine, rank_info, self.clock)

    def _validation(self) -> Validation | None:
        shard_set, objective, rank_info = self.shard_set, self.objective, self.rank_info
        batches = validation_loader(self.config, objective, shard_set, rank_info)
        if batches is None:
            return None
        samples = shard_set.num_samples(VALIDATION)
        return Validation(
            self.config,
            objective,
            self.engine,
            rank_info,
            batches,
            samples,
            self.bad,
            self.stop_check,
        )

    def run_epoch(self, state: TrainState) -> TrainState:
        """Train from `state` to the end of its epoch, evaluate, log and save. Return the new state.

        Raises:
            UserError: A loss, metric, gradient or tensor is not finite, or too many samples cannot
                be read.
            TrainingStoppedError: The ranks have agreed to stop, and a checkpoint is saved.
        """
        started, first = time.time(), state.samples
        state, sums = self.train_epoch(state)
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
        metrics |= self.evaluate(state)
        for name, value in metrics.items():
            check_finite(name, value, state.step)
        score = self.objective.score(metrics)
        state = replace(
            state,
            epoch=state.epoch + 1,
            samples=0,
            sums=(),
            metrics=metrics,
            score=score,
            scores=(*state.scores, score),
        )
        # Before the checkpoint: a training that is killed after it resumes behind this epoch.
        details = self.validation.details if self.validation else None
        if note := report_evaluation(self.folder, self.logger, details, state):
            self.progress.notes.append(note)
        logged = {name: value for name, value in metrics.items() if name not in MEASURED}
        self.logger.log({**logged, "epoch": float(state.epoch)}, state.step)
        self.save(state)
        # A score that is reported has a checkpoint, or a line says that it could not be written.
        self.saver.wait(is_required=has_ended(self.config.training, state))
        self.progress.evaluation_seconds = time.time() - evaluation_began
        self.progress.evaluations.append((state.epoch, metrics))
        self._show(state)
        return state

    def train_epoch(self, state: TrainState) -> tuple[TrainState, tuple[float, ...]]:
        """Take the steps from `state` to the end of its epoch.

        Returns:
            The state after them, and the sums of the epoch over all ranks, as of `no_sums`.

        Raises:
            UserError: A loss or gradient is not finite, or too many steps are bad.
            TrainingStoppedError: The ranks have agreed to stop, and a checkpoint is saved.
        """
        sums = StepSums(self.objective, self.rank_info, state.sums)
        self.optimizer_step.restore(state)
        self.engine.train()
        window = self._seek(state)
        if self.carried is not None and not state.samples:
            self.carried.begin()
        feed = Feed(
            iter(self.train_batches),
            self.config,
            self.objective,
            self.rank_info,
            self.steps_per_epoch - state.samples // self.config.training.batch_size,
            self.clock,
        )
        self.clock.begin()
        while state.samples < self.steps_per_epoch * self.config.training.batch_size:
            state = self._train_step(feed, sums, replace(state, window=window))
        return state, state.sums

    def _seek(self, state: TrainState) -> Any:
        """Set the training batches to a state, and return the window that shuffles them."""
        order = self.train_batches.state_dict()
        order |= {"epoch": state.epoch, "samples": state.samples}
        if state.window != "auto":
            order["window"] = state.window
        self.train_batches.load_state_dict(order)
        return self.train_batches.state_dict()["window"]

    def _train_step(self, feed: Feed, sums: StepSums, state: TrainState) -> TrainState:
        """Take one step, log it, and save a checkpoint, where these are due.

        Raises:
            UserError: As `train_epoch`.
            TrainingStoppedError: As `train_epoch`.
        """
        training = self.config.training
        rate = learning_rate(state.step, self.steps_per_epoch, training)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate * group.get("learning_rate_scale", 1.0)
        self._accumulate(feed, sums, state)
        feed.read_ahead()
        after = replace(
            state,
            step=state.step + 1,
            samples=state.samples + training.batch_size,
            metrics={},
            score=None,
        )
        is_last = after.samples == self.steps_per_epoch * training.batch_size
        is_logged = after.step % training.log_steps == 0
        due = not is_last and after.step % (training.checkpoint_steps or math.inf) == 0
        if is_logged:
            self.figures.before_step()
        stop = self.stop_check.agreed(now=is_last)
        reads = is_logged or due or is_last or stop is not None
        fault, after = self.optimizer_step.take(sums, after, reads=reads)
        if fault:
            after = self._left_out(after, fault)
        self.clock.step()
        after = replace(after, sums=tuple(sums.of_epoch.tolist()))
        self._profile_step(after)
        if is_logged and not fault:
            self._log(sums, rate, after)
        if is_logged:
            self.saver.check()
        if stop:
            self._stop(stop, after)
        if due:
            began = time.perf_counter()
            self.save(after)
            self.clock.leave_out(time.perf_counter() - began)
        return after

    def _accumulate(self, feed: Feed, sums: StepSums, state: TrainState) -> None:
        """Add up the gradients and the sums of the micro-batches of a step."""
        step_in_epoch = state.samples // self.config.training.batch_size
        with self.accumulation.step():
            for micro, micro_batch in enumerate(feed.step()):
                if micro:
                    self.accumulation.between()
                seed = step_seed(self.config.seed, state.epoch, step_in_epoch, micro)
                torch.manual_seed(seed + self.rank_info.rank)
                sums.add(self.micro_steps.run(micro_batch, seed, micro))
        sums.end_step(state.step + 1)

    def _log(self, sums: StepSums, rate: float, state: TrainState) -> None:
        """Log the figures of the last step, and show them."""
        assert sums.loss is not None
        figures = {"loss": sums.loss, "learning_rate": rate, **self.figures.read()}
        self.logger.log(figures | self.optimizer_step.metrics(), state.step)
        self.progress.loss = sums.loss
        self.progress.samples_per_second = figures["samples_per_second"]
        self._show(state)

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

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Return the loss and metrics of the validation split; nothing without one.

        The averaged weights are evaluated if there is an average.

        Raises:
            UserError: Too many samples cannot be read.
            TrainingStoppedError: The ranks have agreed to stop, and a checkpoint is saved.
        """
        if self.validation is None:
            return {}
        try:
            with self.average.applied() if self.average else contextlib.nullcontext():
                return self.validation.run()
        except StopAgreedError as agreed:
            self._stop(agreed.stop, state)

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
