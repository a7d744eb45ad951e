"""Trainings on documents in parts, whose class or number only their first part tells.

A document begins with 32 bytes of the names of time zones, of builtin functions or of Python's
manual, and goes on with passages of the manual.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deepspeed.utils import safe_get_full_grad
from documents_in_parts import LENGTH, write_counts, write_documents
from gate_runs import track
from rank_processes import train_on_ranks
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from trainings import config_here, difference, evaluated_as_trained, final_weights, train_and_report
from whole_state import gather_state

from perceiver_model import PerceiverClassifier
from perceiver_model.adapters.text import encode_bytes
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.preprocess import preprocess
from pipeline.registry.predict import predict
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoints import last_checkpoint, read_checkpoint
from pipeline.training.feed import MicroBatch
from pipeline.training.loop import TrainLoop
from pipeline.training.objectives import objective_of
from pipeline.training.step_figures import MEASURED
from pipeline.training.step_sums import StepSums
from pipeline.training.train import train
from pipeline.training.worker import TrainTask, open_training
from shards import (
    PADDING,
    RawSample,
    ShardReader,
    ShardSet,
    decode_npy,
)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A folder of the documents, and the shards of their parts."""
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder / "raw")
    with (folder / "console.txt").open("w") as file:
        preprocess(config_of(folder), Console(file, file))
    return folder


def config_of(
    folder: Path, name: str = "documents", target: dict[str, Any] | None = None, **training: Any
) -> Config:
    sections = {
        "shards": str(folder / "shards"),
        "data": {
            "train": str(folder / "raw"),
            "validation": 0.2,
            "text": {"max_length": LENGTH, "cut": "all"},
            "target": target or {"kind": "class"},
            "samples_per_shard": 100,
        },
        "model": {
            "adapter": {"kind": "token_embedding", "num_channels": 32},
            "encoder": {
                "num_latents": 8, "latent_dim": 32, "num_blocks": 1, "num_cross_attends": 1,
                "num_self_attends": 1, "num_self_heads": 4, "latent_init_std": 1.0,
            },
        },
    }  # fmt: skip
    return config_here(
        name, folder, sections, **{"epochs": 6, "batch_size": 64, "learning_rate": 4e-3, **training}
    )


@pytest.fixture(scope="module")
def trained(documents: Path) -> tuple[Config, dict[str, Any]]:
    """A training with carried latents, and its result."""
    config = config_of(documents, "carried", stream={"parts_per_step": 2})
    with (documents / "console.txt").open("w") as file:
        return config, train_and_report(config, Console(file, file))


def test_what_the_first_part_tells_is_known_after_the_last(
    documents: Path, trained: tuple[Config, dict[str, Any]], console: Console
) -> None:
    carried = trained[1]["metrics"]
    alone = train(config_of(documents, "alone"), console)["metrics"]
    assert carried["val_accuracy"] >= 0.85 and carried["val_recording_accuracy"] >= 0.85
    assert alone["val_accuracy"] < 0.6 and "val_recording_accuracy" not in alone


def test_the_answers_of_recordings_are_those_after_their_last_parts(
    documents: Path, trained: tuple[Config, dict[str, Any]]
) -> None:
    """The metrics of an evaluation are counted again, document by document."""
    config, result = trained
    model, shard_set = model_of(config, result["checkpoint"])
    reader = ShardReader(shard_set, "validation")
    rights: dict[str, list[bool]] = {}
    state = None
    with torch.no_grad():
        for sample in map(reader.read, range(len(reader))):
            before = state if sample.source_uri in rights else None
            logits, state = read_alone(model, sample, before)
            right = int(logits.argmax()) == sample.target
            rights.setdefault(sample.source_uri, []).append(right)
    metrics = result["metrics"]
    parts = [right for rights_of in rights.values() for right in rights_of]
    assert metrics["val_accuracy"] == pytest.approx(np.mean(parts), abs=1e-9)
    lasts = [rights_of[-1] for rights_of in rights.values()]
    assert metrics["val_recording_accuracy"] == pytest.approx(np.mean(lasts), abs=1e-9)


def model_of(config: Config, checkpoint: str) -> tuple[PerceiverClassifier, ShardSet]:
    """The model of a checkpoint, and the shards."""
    shard_set = ShardSet.open(config.shards_folder)
    model = objective_of(config, shard_set).build_model()
    model.load_state_dict(read_checkpoint(Path(checkpoint)).load_model())
    return model.eval(), shard_set


def read_alone(
    model: PerceiverClassifier, sample: RawSample, state: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits and the latents after one part of one document."""
    part = decode_npy(sample.members["text.npy"])
    return model.forward_state(encode_bytes(part.tobytes())[None], state=state)


def test_a_registered_model_reads_whole_files(
    documents: Path, trained: tuple[Config, dict[str, Any]], console: Console
) -> None:
    config, result = trained
    worst = evaluated_as_trained(config, result, console)["worst"][0]
    assert "carried from part to part" in worst["attention"]["text"]["reason"]
    mlflow_client = client(config.tracking_uri)
    track(config.tracking_uri)
    promoted = promote(mlflow_client, result["run_id"], console)
    assert promoted["accuracy"] == pytest.approx(result["metrics"]["val_accuracy"], abs=1e-9)
    files = sorted((documents / "raw").glob("*/*.txt"))[::17]
    damaged = documents / "damaged.txt"
    damaged.write_bytes(files[0].read_bytes() + b"\xff")
    found = predict(mlflow_client, promoted["model_uri"], [*map(str, files), str(damaged)], console)
    model, shard_set = model_of(config, result["checkpoint"])
    samples = {}
    for split in ("train", "validation"):
        reader = ShardReader(shard_set, split)
        for sample in map(reader.read, range(len(reader))):
            samples.setdefault(sample.source_uri.partition("/")[2], []).append(sample)
    with torch.no_grad():
        for file, answer in zip(files, found["predictions"], strict=False):
            state = None
            for sample in samples[str(file.relative_to(documents / "raw"))]:
                logits, state = read_alone(model, sample, state)
            expected = logits[0].softmax(dim=0).tolist()
            assert [*answer["probabilities"].values()] == pytest.approx(expected, abs=1e-5)
    assert "not UTF-8" in found["predictions"][-1]["error"]


class CheckedLoop:
    """Compares the gradients of every step with those of a loop in plain torch.

    It reads the documents of each lane alone, one after another.
    """

    def __init__(self, loop: TrainLoop, lanes: int, patch: pytest.MonkeyPatch) -> None:
        self.loop, self.steps = loop, 0
        self.model = objective_of(loop.config, loop.shard_set).build_model()
        self.carried: list[torch.Tensor | None] = [None] * lanes
        self.read: list[Any] = []
        self.micro_step = loop.micro_steps.run
        patch.setattr(loop.micro_steps, "run", self.micro)
        patch.setattr(loop.optimizer_step, "take", self.step)

    def micro(self, micro_batch: MicroBatch, seed: int, number: int) -> torch.Tensor:
        self.read.append(micro_batch.batches)
        return self.micro_step(micro_batch, seed, number)

    def step(self, sums: StepSums, after: TrainState, *, reads: bool) -> tuple[None, TrainState]:
        """Compare the gradients of all micro-batches together, and take the step."""
        (found,) = sums.read()
        sums.count(found)
        weights, _ = gather_state(self.loop.engine)
        self.model.load_state_dict(weights)
        self.model.zero_grad()
        expected = sum(
            reference_loss(self.loop, self.model, batches, self.carried, group) / len(self.read)
            for group, batches in enumerate(self.read)
        )
        assert found.loss == pytest.approx(expected, abs=1e-5)
        own = dict(self.model.named_parameters())
        for name, parameter in self.loop.engine.module.named_parameters():
            gradient = own[name].grad
            if gradient is None:  # no document of this step begins
                gradient = torch.zeros_like(own[name])
            own_gradient = safe_get_full_grad(parameter)
            torch.testing.assert_close(own_gradient, gradient, rtol=1e-6, atol=1e-6)
        self.steps += 1
        self.read.clear()
        self.loop.engine.step()
        return None, after


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_are_those_of_truncated_backpropagation(
    documents: Path, monkeypatch: pytest.MonkeyPatch, parts: int, stage: int
) -> None:
    lanes, steps = 8, 6
    config = config_of(
        documents, f"gradients-{parts}-{stage}", stream={"parts_per_step": parts},
        batch_size=lanes * parts, zero_stage=stage, gradient_accumulation_steps=2, epochs=1,
        gradient_clipping=None,
    )  # fmt: skip
    (config.folder / "train").mkdir(parents=True)
    checked = []

    def run(task: TrainTask) -> None:
        with open_training(task) as (loop, state):
            checked.append(CheckedLoop(loop, lanes, monkeypatch))
            loop.steps_per_epoch = steps
            loop.train_epoch(state)

    task = TrainTask(config.model_dump_json(), str(config.folder / "train"), None)
    TorchTrainer(run, train_loop_config=task, scaling_config=ScalingConfig(num_workers=0)).fit()
    assert checked[0].steps == steps


def reference_loss(
    loop: TrainLoop, model: PerceiverClassifier, batches: Any, carried: list, group: int
) -> float:
    """The mean loss of a micro-batch. Its gradient is added to the model's."""
    recordings = loop.train_batches.recordings
    assert recordings is not None
    width = len(batches[0].numbers)
    count = sum(float(batch.weights.sum()) for batch in batches)
    total = 0.0
    for row in range(width):
        lane = group * width + row
        state = carried[lane]
        loss = torch.zeros(())
        for batch in batches:
            number = int(batch.numbers[row])
            if number == PADDING:
                continue
            if number in recordings.firsts:
                state = None
            text = batch.fields["text"][row, : batch.lengths["text"][row]].numpy().tobytes()
            logits, state = model.forward_state(encode_bytes(text)[None], state=state)
            loss = loss + F.cross_entropy(logits, batch.targets[row : row + 1])
        carried[lane] = None if state is None else state.detach()
        if loss.requires_grad:
            (loss / count / 2).backward()
        total += float(loss.detach()) / count
    return total


def test_numbers_that_the_first_part_tells_are_known_after_the_last(
    tmp_path: Path, console: Console
) -> None:
    target = {"kind": "regression", "column": "digits"}
    config = config_of(tmp_path, target=target, stream={"parts_per_step": 4}, epochs=10)
    write_counts(tmp_path, config)
    metrics = train(config, console)["metrics"]
    spread = LENGTH / 4  # the mean absolute error of the mean
    assert metrics["val_mae"] < spread / 2
    assert metrics["val_recording_mae"] < spread / 2
    assert metrics["val_recording_r2"] > 0.6


def end_after_saving(patch: pytest.MonkeyPatch) -> None:
    """Trainings end as soon as they have saved a checkpoint within an epoch."""
    save = TrainLoop.save

    def save_and_end(loop: TrainLoop, state: TrainState) -> None:
        save(loop, state)
        raise KeyboardInterrupt

    patch.setattr(TrainLoop, "save", save_and_end)


def test_an_interrupted_training_ends_with_the_same_weights(
    documents: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "epochs": 2, "stream": {"parts_per_step": 2}, "checkpoint_steps": 5,
    }  # fmt: skip
    whole = config_of(documents, "whole", **settings)
    expected = train(whole, console)["metrics"]
    cut = config_of(documents, "cut", **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        end_after_saving(patch)
        train(cut, console)
    last = last_checkpoint(cut.folder / "train" / "checkpoints")
    assert last is not None and last.state.samples == 5 * 64
    found = train(cut, console)["metrics"]
    assert difference(final_weights(cut), final_weights(whole)) == 0
    assert {n: found[n] for n in found.keys() - MEASURED} == {
        n: expected[n] for n in expected.keys() - MEASURED
    }


def test_two_workers_go_on_where_one_stopped(
    documents: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a large `eps`, weights differ by as little as gradients do.
    settings: dict[str, Any] = {
        "epochs": 1, "stream": {"parts_per_step": 2}, "checkpoint_steps": 5, "eps": 1.0,
        "learning_rate": 1.0,
    }  # fmt: skip
    whole = config_of(documents, "one", **settings)
    train(whole, console)
    cut = config_of(documents, "two", **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        end_after_saving(patch)
        train(cut, console)
    two = cut.model_copy(update={"cluster": cut.cluster.model_copy(update={"num_workers": 2})})
    train_on_ranks(two, 2)
    assert last_step(cut) == last_step(whole)
    assert difference(final_weights(cut), final_weights(whole)) < 1e-5


def last_step(config: Config) -> int:
    last = last_checkpoint(config.folder / "train" / "checkpoints")
    assert last is not None
    return last.state.step


def test_more_lanes_than_recordings_are_refused(documents: Path, console: Console) -> None:
    config = config_of(documents, "wide", stream={"parts_per_step": 1}, batch_size=512)
    with pytest.raises(UserError, match="512 recordings at once, but the shard set has only 288"):
        train(config, console)
