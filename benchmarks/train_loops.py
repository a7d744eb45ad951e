"""The training loops that `perceiver bench train` compares, over the same model and batches.

Each contestant takes the steps of one epoch at a time: the same batches from the same reader, the
same loss, clipping, optimizer and schedule.
"""

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from pipeline.inputs.batches import inputs_on
from pipeline.inputs.positions import load_positions
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.loaders import train_loader
from pipeline.training.loop import TrainLoop
from pipeline.training.objectives import Batch
from pipeline.training.optimizer import make_optimizer
from pipeline.training.precision import compute_as, products_in
from pipeline.training.samples import batch_of
from pipeline.training.schedule import learning_rate
from pipeline.training.worker import TrainTask, open_training
from shards.loader import ShardBatch

OURS, BARE, LIGHTNING = "ours", "bare torch", "Lightning"
DELIVERY_SECONDS = 60.0
Seconds = dict[str, list[float]]


class Contestant(Protocol):
    """A training loop."""

    def epoch(self, number: int) -> float:
        """Take the steps of an epoch, counted from 0, and return their seconds."""


@dataclass(frozen=True)
class BenchTask:
    """What the driver gives to every worker.

    Attributes:
        train: The training, with the run that it logs to.
        rounds: The number of rounds that are timed. One more comes before them.
        contestants: The names of the contestants.
        answer: The file that rank 0 writes the times of the rounds to, as JSON.
    """

    train: TrainTask
    rounds: int
    contestants: tuple[str, ...]
    answer: str


def measure(task: BenchTask) -> None:
    """Time all contestants in turn in each round, in this worker. Rank 0 writes the answer."""
    with open_training(task.train) as (loop, _):
        made: dict[str, Callable[[TrainLoop], Contestant]] = {
            OURS: OursLoop, BARE: BareLoop, LIGHTNING: LightningLoop
        }  # fmt: skip
        contestants = {name: made[name](loop) for name in task.contestants}
        seconds: Seconds = {name: [] for name in contestants}
        names = list(contestants)
        for number in range(task.rounds + 1):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                dist.barrier()
                found = contestants[name].epoch(number)
                if number:  # the first round allocates memory and chooses kernels
                    seconds[name].append(found)
        if loop.rank_info.rank == 0:
            answer = {
                "seconds": seconds,
                "steps": loop.steps_per_epoch,
                "parameters": loop.objective.num_parameters(),
                "threads": torch.get_num_threads(),
            }
            Path(task.answer).write_text(json.dumps(answer))


class OursLoop:
    """The loop of `perceiver train`, with its logging to MLflow, without the epoch's evaluation."""

    def __init__(self, loop: TrainLoop) -> None:
        self._loop, self._state = loop, TrainState()

    def epoch(self, number: int) -> float:
        self._state = replace(self._state, epoch=number, samples=0, sums=())
        with _timed(self._loop) as seconds:
            self._state, _ = self._loop.train_epoch(self._state)
        return seconds[0]


class _Plain:
    """A model, an optimizer and batches like those of a loop, without DeepSpeed.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: TrainLoop) -> None:
        self.loop, self.device = loop, loop.rank_info.device
        self.training, self.objective = loop.config.training, loop.objective
        torch.manual_seed(loop.config.seed)
        positions = load_positions(loop.shard_set, self.objective.model_config)
        self.model: Any = self.objective.build_model(positions).to(self.device)
        compute_as(self.model, self.training.precision, self.training.attention_path)
        self.optimizer = make_optimizer(self.model, self.training)
        self.batches = train_loader(loop.config, self.objective, loop.shard_set, loop.rank_info)
        self.step = 0

    def samples_of(self, batch: ShardBatch) -> Batch:
        """Return a batch on the device, as the objective takes it."""
        inputs, mask = inputs_on(batch, self.loop.config.data.formats, self.device)
        return batch_of(batch, inputs, mask, self.objective.target, self.device)

    def loss_of(self, model: Any, samples: Batch) -> torch.Tensor:
        """Return the mean loss of the samples."""
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=products_in(self.training.precision) == "bf16"
        ):
            outputs = self.objective.outputs(model, samples, training=True)
            return self.objective.losses(outputs, samples, training=True).mean()

    def set_rate(self) -> None:
        """Set the learning rate of the next step."""
        rate = learning_rate(self.step, self.loop.steps_per_epoch, self.training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.step += 1


class BareLoop(_Plain):
    """Plain torch: DistributedDataParallel with several workers, and a loss printed to a file."""

    def __init__(self, loop: TrainLoop) -> None:
        super().__init__(loop)
        self._model = self.model
        if loop.rank_info.world_size > 1:
            self._model = torch.nn.parallel.DistributedDataParallel(self.model)
        self._log = (Path(str(loop.folder)) / f"bare-{loop.rank_info.rank}.log").open("w")

    def epoch(self, number: int) -> float:
        self.model.train()
        with _timed(self.loop) as seconds:
            self.batches.seek(number)
            for batch in self.batches:
                self.set_rate()
                loss = self.loss_of(self._model, self.samples_of(batch))
                loss.backward()
                if self.training.gradient_clipping is not None:
                    clip = torch.nn.utils.clip_grad_norm_
                    clip(self.model.parameters(), self.training.gradient_clipping)
                self.optimizer.step()
                self.optimizer.zero_grad()
                if self.step % self.training.log_steps == 0:
                    print(self.step, loss.item(), file=self._log, flush=True)
        return seconds[0]


class LightningLoop(_Plain):
    """Lightning's Trainer on one worker, with its CSV logger."""

    def __init__(self, loop: TrainLoop) -> None:
        super().__init__(loop)
        import lightning

        plain = self

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = plain.model

            def training_step(self, batch: ShardBatch, _: int) -> torch.Tensor:
                plain.set_rate()
                loss = plain.loss_of(self.model, plain.samples_of(batch))
                self.log("loss", loss)
                return loss

            def transfer_batch_to_device(self, batch: ShardBatch, *_: Any) -> ShardBatch:
                return batch

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return plain.optimizer

        class Clock(lightning.Callback):
            def on_train_epoch_start(self, *_: Any) -> None:
                self.timing = _timed(loop)
                self.seconds = self.timing.__enter__()

            def on_train_epoch_end(self, *_: Any) -> None:
                self.timing.__exit__(None, None, None)

        self._module, self._clock, self._trainer = Module(), Clock(), lightning.Trainer

    def epoch(self, number: int) -> float:
        from lightning.pytorch.loggers import CSVLogger

        self.batches.seek(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = self._trainer(
                max_epochs=1,
                accelerator="gpu" if self.device.type == "cuda" else "cpu",
                devices=1,
                precision="32-true",  # `loss_of` has the autocast
                logger=CSVLogger(str(self.loop.folder), "lightning", str(number)),
                log_every_n_steps=self.training.log_steps,
                gradient_clip_val=self.training.gradient_clipping,
                callbacks=[self._clock],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(self._module, self.batches)
        return self._clock.seconds[0]


@contextlib.contextmanager
def _timed(loop: TrainLoop) -> Iterator[list[float]]:
    """Time the body until the device has done its work, and what was logged has been delivered."""
    seconds: list[float] = []
    began = time.perf_counter()
    yield seconds
    if loop.rank_info.device.type == "cuda":
        torch.cuda.synchronize()
    _wait_for_delivery(Path(str(loop.folder)).parent / "outbox")
    seconds.append(time.perf_counter() - began)


def _wait_for_delivery(outbox: Path) -> None:
    """Wait until MLflow has what was logged, so that its delivery counts for who logged it."""
    deadline = time.perf_counter() + DELIVERY_SECONDS
    while any(_undelivered(path) for path in outbox.glob("*.metrics.jsonl")):
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{outbox}: MLflow takes nothing")
        time.sleep(0.001)


def _undelivered(path: Path) -> bool:
    sent = path.with_name(path.name.removesuffix(".jsonl") + ".sent")
    return not sent.exists() or int(sent.read_text() or 0) < path.stat().st_size
