"""The study of feature maps: its networks, their weights, and what an arm trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.studies.data import make_set
from pipeline.studies.image_data import PLAIN
from pipeline.studies.planning import base_config
from pipeline.studies.positions import add_tables
from pipeline.studies.questions import features as question
from pipeline.studies.request import Request
from pipeline.studies.study import Arm
from pipeline.studies.works.backbones import DigitsResNet, ImageNetResNet, calibrate
from pipeline.studies.works.features import fit_linear, train_on_maps
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.loaders import steps_per_epoch
from pipeline.training.open_shards import open_shards
from shards import ShardSet

HALF = torch.tensor([0.5])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("features")
    small = ("data.image.height=8", "data.image.width=8", "training.batch_size=64")
    request = Request("features", scale="tiny", output=str(folder), overrides=small)
    return base_config(request, question.STUDY.scales["tiny"])


@pytest.fixture(scope="module")
def shard_set(base: Config, digit_images: Path, ray_cluster: None) -> ShardSet:
    folder = Path(str(base.folder)) / "data"
    with (base.folder.parent / "console.txt").open("w") as file:
        made = make_set(base, PLAIN, 0, folder, digit_images, Console(file, file))
    for arm in question.STUDY.arms:
        add_tables(made, PLAIN, arm.config(base))
    return made


def arm_named(label: str) -> Arm:
    return next(arm for arm in question.STUDY.arms if arm.label == label)


def test_every_arm_can_be_planned(base: Config, shard_set: ShardSet) -> None:
    for arm in question.STUDY.arms:
        config = arm.config(base, {"shards": str(shard_set.location)})
        assert steps_per_epoch(config, open_shards(config)) > 0


def test_the_maps_are_those_of_the_network() -> None:
    network = DigitsResNet(width=4).eval()
    images = torch.randn(2, 1, 16, 16)
    maps = network(images)
    assert {name: tuple(each.shape[1:]) for name, each in maps.items()} == {
        "pixels": (1, 16, 16), "early": (4, 16, 16), "middle": (8, 8, 8), "late": (16, 4, 4),
    }  # fmt: skip
    torch.testing.assert_close(network.net.head(maps["late"].mean(dim=(2, 3))), network.net(images))


def test_the_maps_of_a_resnet_50_are_those_of_its_last_stages() -> None:
    network = ImageNetResNet().eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = network(images)
        whole = network.net(images, output_hidden_states=True)
    assert [tuple(each.shape[1:]) for each in maps.values()] == [
        (3, 64, 64), (512, 8, 8), (1024, 4, 4), (2048, 2, 2),
    ]  # fmt: skip
    for own, theirs in zip(list(maps.values())[1:], whole.hidden_states[2:], strict=True):
        torch.testing.assert_close(own, theirs)


def test_calibrated_norms_know_the_statistics_of_the_batches() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    batches = [torch.randn(50, 1, 8, 8) * 3 + 2 for _ in range(4)]
    calibrate(network, batches)
    norm: Any = network[1]
    assert norm.momentum == 0.1 and not network.training
    with torch.no_grad():
        normalised = torch.cat([network(each) for each in batches])
    torch.testing.assert_close(normalised.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std(dim=(0, 2, 3)), torch.ones(3), atol=0.05, rtol=0)


def test_pretraining_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.studies.works.backbones._EPOCHS", 1)

    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        network = DigitsResNet(width=4)
        network.pretrain(seed, 8, HALF, HALF)
        assert not network.training
        return network.net.head.weight.detach()

    assert torch.equal(weights(3), weights(3)) and not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("label", [question.BOTH, f"{question.ALL}, {question.TRAINED}"])
def test_an_arm_trains_its_resnet_only_if_it_says_so(
    base: Config, shard_set: ShardSet, console: Console, label: str
) -> None:
    arm = arm_named(label)
    places = {"shards": str(shard_set.location), "output": f"{base.folder}/{len(label)}"}
    config = arm.config(base, places)
    config.folder.mkdir(parents=True)
    found = train_on_maps(config, arm.options, console)
    before = load_file(str(config.folder / "backbone.safetensors"))
    checkpoint = last_checkpoint(config.folder / "train" / "checkpoints")
    assert checkpoint is not None
    after = {
        name.partition("adapter.module.")[2]: tensor
        for name, tensor in checkpoint.load_model().items()
        if "adapter.module." in name
    }
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if label == question.BOTH:
        assert not changed
    else:
        # The statistics stay, and no map depends on the head.
        assert changed == {
            name for name in before
            if name.endswith(("weight", "bias")) and "head" not in name
        }  # fmt: skip
    assert 0 <= found["accuracy"] <= 1 and found["run_id"]


def test_a_pretrained_map_tells_digits_apart(base: Config, shard_set: ShardSet) -> None:
    """The digits 0, 1 and 7, after a training on other people's digits."""
    config = with_values(base, {"shards": str(shard_set.location)})
    with (base.folder.parent / "linear.txt").open("w") as file:
        found = fit_linear(config, {}, Console(file, file))
    assert found["accuracy"] > 0.9 and found["parameters"] == 3 * (64 + 1)
