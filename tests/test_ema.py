"""`training.ema_decay`: the moving average of the weights is evaluated, saved and resumed."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_runs import some_rows, table_config, track, write_table_set
from saved_checkpoints import load, part_of, save_as_before, sha256_of
from trainings import cut_off_after
from whole_state import gather_state

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.registry.champions import weights_of
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training import optimizer_step
from pipeline.training import train as train_module
from pipeline.training.checkpoint_files import Checkpoint
from pipeline.training.checkpoints import TrainState, last_checkpoint, read_checkpoint
from pipeline.training.ema import lagging_average
from pipeline.training.launch import run_training
from pipeline.training.loop import TrainLoop
from pipeline.training.optimizer_step import OptimizerStep
from pipeline.training.train import train
from pipeline.training.validation import Validation
from shards import ShardSet

DECAY = 0.75


def config_of(folder: Path, stage: int, decay: float | None = DECAY) -> Config:
    config = with_values(
        table_config(folder, "ema"),
        {
            "training.batch_size": 8, "training.epochs": 2, "training.learning_rate": 1e-2,
            "training.schedule.warmup_epochs": 0, "training.checkpoint_steps": 4,
            "training.zero_stage": stage, "training.ema_decay": decay,
        },
    )  # fmt: skip
    if not Path(config.shards_folder).exists():
        write_table_set(config, some_rows(0, 48), some_rows(48, 60))
    return config


def average_of(loop: TrainLoop) -> dict[str, torch.Tensor]:
    assert loop.average is not None
    with loop.average.fragments() as fragments:
        return {each.name: each.load().reshape(each.shape).clone() for each in fragments}


def trained(config: Config, folder: Path) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    run_training(config, folder, None)
    last = last_checkpoint(folder / "checkpoints")
    assert last is not None
    return last


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_average_is_that_of_the_weights_after_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    evaluated: list[dict[str, torch.Tensor]] = []
    take, run = OptimizerStep.take, Validation.run

    def gathered(own: Any) -> dict[str, torch.Tensor]:
        return gather_state(own._engine)[0]

    def noting(own: OptimizerStep, *arguments: Any, **options: bool) -> Any:
        if not seen:
            seen.append(gathered(own))
        found = take(own, *arguments, **options)
        seen.append(gathered(own))
        return found

    def noting_evaluation(own: Validation) -> dict[str, float]:
        evaluated.append(gathered(own))
        return run(own)

    monkeypatch.setattr(OptimizerStep, "take", noting)
    monkeypatch.setattr(Validation, "run", noting_evaluation)
    last = trained(config_of(tmp_path, stage), tmp_path / "run")
    assert len(seen) == 13
    expected = seen[0]
    for weights in seen[1:]:
        expected = {n: DECAY * e + (1 - DECAY) * weights[n] for n, e in expected.items()}
    found = last.load_model()
    assert last.model_kind == "ema"
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
        assert torch.equal(evaluated[-1][name], found[name])
    plain = load(last, "weights")
    assert all(torch.equal(plain[name], tensor) for name, tensor in seen[-1].items())
    assert any(not torch.equal(plain[name], found[name]) for name in plain)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_average_changes_no_weight_and_resumes_to_the_bit(tmp_path: Path, stage: int) -> None:
    plain = trained(config_of(tmp_path, stage, None), tmp_path / "plain")
    config = config_of(tmp_path, stage)
    whole = trained(config, tmp_path / "whole")
    assert plain.model_kind == "weights"
    weights = [load(each, "weights") for each in (plain, whole)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())

    with cut_off_after(6):
        trained(config, tmp_path / "cut")
    assert sha256_of(trained(config, tmp_path / "cut")) == sha256_of(whole)


def test_a_checkpoint_of_an_older_version_resumes_to_the_bit(tmp_path: Path) -> None:
    config = config_of(tmp_path, 2)
    whole = trained(config, tmp_path / "whole")
    with cut_off_after(8):
        trained(config, tmp_path / "cut")
    last = last_checkpoint(tmp_path / "cut" / "checkpoints")
    assert last is not None and last.state.step == 8
    weights, moments, averaged = (load(last, kind) for kind in ("weights", "optimizer", "ema"))
    shutil.rmtree(last.path)
    old = {"model": weights, "optimizer": moments, "ema": weights | averaged}
    save_as_before(tmp_path / "cut" / "checkpoints", last.state, **old)
    assert sha256_of(trained(config, tmp_path / "cut")) == sha256_of(whole)


def test_a_rollback_returns_the_average_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 5 is lost: the average is the one of the checkpoint after step 4."""
    returned: list[dict[str, torch.Tensor]] = []
    saved: list[dict[str, torch.Tensor]] = []
    left_out = TrainLoop._left_out

    def spoiled(training: object, loss: float, losses: object, step: int) -> str | None:
        return "bad; bad" if step == 6 else None

    def noting(loop: TrainLoop, state: TrainState, fault: str) -> TrainState:
        loop.saver.wait()
        last = last_checkpoint(loop.folder / "checkpoints")
        assert last is not None and last.state.step == 4 and loop.average is not None
        saved.append(load(last, "ema"))
        before = average_of(loop)
        assert any(not torch.equal(before[name], saved[0][name]) for name in before)
        state = left_out(loop, state, fault)
        returned.append(average_of(loop))
        return state

    monkeypatch.setattr(optimizer_step, "bad_loss", spoiled)
    monkeypatch.setattr(TrainLoop, "_left_out", noting)
    config = with_values(config_of(tmp_path, 2), {"training.on_bad_step": "rollback"})
    trained(config, tmp_path / "run")
    assert len(returned) == 1
    assert all(torch.equal(returned[0][name], tensor) for name, tensor in saved[0].items())


def test_the_average_is_registered(
    make_config: Callable[..., Config], digit_shards: Path, tmp_path: Path, console: Console
) -> None:
    config = make_config(
        tmp_path, f"shards={digit_shards}", "cluster.num_workers=0", "training.ema_decay=0.9",
        "registry.model_name=ema",
    )  # fmt: skip
    result = train(config, console)
    mlflow_client = client(config.tracking_uri)
    track(config.tracking_uri)
    promoted = promote(mlflow_client, result["run_id"], console)
    version = mlflow_client.get_model_version("ema", promoted["version"])
    checkpoint = read_checkpoint(Path(result["checkpoint"]))
    assert checkpoint.model_kind == "ema"
    assert weights_of(mlflow_client, version) == checkpoint.model_sha256()
    assert promoted["accuracy"] == pytest.approx(result["metrics"]["val_accuracy"])


def test_a_damaged_average_is_refused(tmp_path: Path) -> None:
    last = trained(config_of(tmp_path, 0), tmp_path / "run")
    path = part_of(last, "ema")
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match=r"ema-.*\.safetensors: sha256 differs"):
        read_checkpoint(last.path).load_model()


def test_a_training_that_is_too_short_for_its_average_is_told_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = lagging_average(0.998, 1000)
    assert note and "holds 14% of the first weights; 0.99 would not" in note
    assert lagging_average(0.99, 1000) is None and lagging_average(None, 10) is None
    assert lagging_average(0.995, 100) and not lagging_average(0.9, 100)
    said = io.StringIO()
    monkeypatch.setattr(train_module, "_train", lambda *_, **__: {})
    monkeypatch.setattr(train_module, "open_shards", lambda c: ShardSet.open(c.shards_folder))
    train(config_of(tmp_path, 0), Console(progress=said))  # 12 steps
    assert "training.ema_decay is 0.75, and the training has 12 steps" in said.getvalue()
    said.truncate(0)
    train(config_of(tmp_path, 0, 0.5), Console(progress=said))
    assert "ema_decay" not in said.getvalue()
