"""Shards of every modality to batches, and models that learn from them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from modality_samples import FORMATS, POINTS, make_config, make_shards, raw_media
from saved_checkpoints import load

from perceiver_model.families.classifier import PerceiverClassifier
from pipeline.config.tree import Config
from pipeline.inputs.batches import inputs_on, media_loader
from pipeline.inputs.collate import collate
from pipeline.media import decode
from pipeline.training.augmentation.batch import augment_batch
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.worker import TrainTask, open_training
from shards import ShardReader


@pytest.mark.parametrize("kind", FORMATS)
def test_batches_come_from_shards_as_from_raw_media(kind, tmp_path):
    config = make_config(kind, tmp_path)
    reader = ShardReader(make_shards(kind, tmp_path, config), "train")
    formats, size = config.data.formats, len(reader) + 1
    (batch,) = media_loader(reader, formats, batch_size=size, shuffle=False)
    found, found_mask = inputs_on(batch, formats, torch.device("cpu"))
    arrays = [decode(raw_media(kind, number), FORMATS[kind]) for number in range(size - 1)]
    expected, mask = collate([*arrays, None], FORMATS[kind])
    tables = kind == "table"
    for one, other in zip(
        found if tables else [found], expected if tables else [expected], strict=True
    ):
        assert torch.equal(one.nan_to_num(nan=-9), other.nan_to_num(nan=-9))
    assert (found_mask is None and mask is None) or torch.equal(found_mask, mask)
    assert batch.weights.tolist() == [1] * (size - 1) + [0]
    assert batch.targets.tolist() == [number % 2 for number in range(size - 1)] + [-1]


def trained(
    config: Config, folder: Path, start: TrainState | None = None, until: int | None = None
) -> TrainState:
    """The state after the last epoch, or after epoch `until`, trained in this process."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    states = []

    def loop(task: TrainTask) -> None:
        with open_training(task) as (training, state):
            states.append(start or state)
            while states[-1].epoch < (until or config.training.epochs):
                states.append(training.run_epoch(states[-1]))

    folder.mkdir(exist_ok=True)
    task = TrainTask(config.model_dump_json(), str(folder), None)
    TorchTrainer(loop, train_loop_config=task, scaling_config=ScalingConfig(num_workers=0)).fit()
    return states[-1]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_of_every_modality_learns(kind, tmp_path):
    config = make_config(kind, tmp_path, epochs=15, learning_rate=1e-2)
    make_shards(kind, tmp_path, config)
    metrics = trained(config, tmp_path / "train").metrics
    assert metrics["bad_samples"] == 0
    assert metrics["val_accuracy"] >= 0.75


@pytest.mark.parametrize("kind", ["table", "text", "points"])
@pytest.mark.parametrize("training", [{"zero_stage": 3}, {"precision": "bf16"}], ids=str)
def test_engines_take_such_inputs(kind, training, tmp_path):
    config = make_config(kind, tmp_path, **training)
    make_shards(kind, tmp_path, config)
    metrics = trained(config, tmp_path / "train").metrics
    assert np.isfinite(metrics["train_loss"])
    # What comes next in this process computes with torch's own again, to the last bit.
    assert torch.nn.functional.linear is torch._C._nn.linear


def test_a_training_keeps_its_order_where_the_set_lies_elsewhere_by_then(tmp_path):
    # A set that is not local is shuffled by windows; its place must not change a run's order.
    config = make_config("text", tmp_path, epochs=2)
    make_shards("text", tmp_path, config)
    assert trained(config, tmp_path / "local").window is None
    assert trained(config, tmp_path / "begun-elsewhere", TrainState(window=2)).window == 2


@pytest.mark.skipif(
    shutil.which("gcc") is None and shutil.which("g++") is None,
    reason="inductor writes C++, and there is no compiler for it here",
)
def test_a_compiled_training_repeats_its_bits_and_those_of_one_that_was_stopped(tmp_path):
    """Of texts: their batches differ in length, and several threads add their gradients."""
    from torch._dynamo.utils import counters  # takes a second, which a collection need not spend

    config = make_config("text", tmp_path, epochs=2, compile="default")
    make_shards("text", tmp_path, config)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        counters.clear()
        compiled = trained(config, tmp_path / "whole")
        assert counters["stats"]["unique_graphs"] == 2  # of training and of evaluation
        assert not counters["graph_break"]
        torch.compiler.reset()
        trained(config, tmp_path / "stopped", until=1)
        torch.compiler.reset()  # as in another process
        trained(config, tmp_path / "stopped")
        plain = trained(make_config("text", tmp_path, epochs=2), tmp_path / "plain")
    finally:
        torch.set_num_threads(threads)
    for name in ("train_loss", "val_loss"):
        assert compiled.metrics[name] == pytest.approx(plain.metrics[name], rel=1e-5)
    assert not torch.are_deterministic_algorithms_enabled()
    whole, stopped = (last_weights(tmp_path / name) for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    for name, weights in whole.items():
        assert torch.equal(weights, stopped[name]), name


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    found = last_checkpoint(folder / "checkpoints")
    assert found is not None
    return load(found, "weights")


def test_every_step_draws_anew_and_evaluation_takes_the_data_as_they_are(tmp_path, monkeypatch):
    config = make_config(
        "points", tmp_path, augment={"jitter": 0.1}, epochs=2, gradient_accumulation_steps=2
    )
    make_shards("points", tmp_path, config, count=24)
    seeds, seen = [], []
    forward = PerceiverClassifier.forward

    def noted(inputs, mask, formats, augment, **share):
        seeds.append(share["seed"])
        return augment_batch(inputs, mask, formats, augment, **share)

    def watched(model, inputs, mask=None):
        if not model.training:
            seen.append(inputs.shape[-1])
        return forward(model, inputs, mask)

    monkeypatch.setattr("pipeline.training.augmentation.samples.augment_batch", noted)
    monkeypatch.setattr(PerceiverClassifier, "forward", watched)
    trained(config, tmp_path / "train")
    # Two epochs of three steps, each in two parts.
    assert len(seeds) == 12 == len({*seeds})
    # Stored clouds have their features; changed ones are coordinates.
    assert {*seen} == {POINTS.fourier.channels}
