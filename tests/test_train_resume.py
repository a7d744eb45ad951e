"""A training that is resumed, continued for more epochs, or computed in another way."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from trainings import difference, final_weights

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.ledger import ledger_path
from pipeline.runs.console import Console
from pipeline.runs.tracking import run_config
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.loop import TrainLoop
from pipeline.training.schedule import learning_rate
from pipeline.training.train import train
from pipeline.training.worker import TrainTask, open_training

MakeConfig = Callable[..., Config]


@pytest.fixture
def config(make_config: MakeConfig, digit_shards: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(*overrides: str, output: str = "out") -> Config:
        return make_config(
            tmp_path / output, f"shards={digit_shards}", "cluster.num_workers=0", *overrides
        )

    return make


COMMAND = [sys.executable, "-m", "pipeline", "train"]


def write_config(config: Config, path: Path) -> Path:
    path.write_text(json.dumps(config.tree()))
    return path


@pytest.mark.parametrize(
    ("signal_number", "optimizer"), [(signal.SIGKILL, "adamw"), (signal.SIGINT, "lamb")]
)
def test_a_killed_training_resumes_mid_epoch_and_ends_with_the_same_weights(
    config: Callable[..., Config],
    console: Console,
    tmp_path: Path,
    signal_number: int,
    optimizer: str,
) -> None:
    settings = ("training.epochs=8", "training.checkpoint_steps=3",
                "model.encoder.dropout=0.1", f"training.optimizer={optimizer}")  # fmt: skip
    whole = config(*settings, output="whole")
    reference = train(whole, console)
    cut = config(*settings, output="cut")
    path = write_config(cut, tmp_path / "cut.yaml")
    process = subprocess.Popen([*COMMAND, str(path)], stderr=subprocess.PIPE, text=True)
    checkpoints = cut.folder / "train" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*/state.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal_number)
    process.wait(60)
    kept = last_checkpoint(checkpoints)
    assert kept is not None
    assert kept.state.step < 8 * 7, "it was done before it was killed; the test shows nothing"
    client = MlflowClient(cut.tracking_uri)
    experiment = client.get_experiment_by_name("digits")
    (interrupted,) = client.search_runs([experiment.experiment_id])
    expected = "RUNNING" if signal_number == signal.SIGKILL else "KILLED"
    assert interrupted.info.status == expected
    with (tmp_path / "told.txt").open("w+") as file:
        result = train(cut, Console(file, file))
        file.seek(0)
        assert "resuming at epoch" in file.read()
    assert difference(final_weights(cut), final_weights(whole)) == 0
    exact = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    assert [result["metrics"][m] for m in exact] == [reference["metrics"][m] for m in exact]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (interrupted.info.run_id, "FINISHED")


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_goes_on_with_another_number_of_workers(
    config: Callable[..., Config], console: Console
) -> None:
    whole = config("training.epochs=2", output="whole")
    train(whole, console)
    # The first epoch alone, then two workers and another stage for the second.
    cut = config("training.epochs=2", output="cut")
    task = TrainTask(cut.model_dump_json(), str(cut.folder / "train"), None)
    (cut.folder / "train").mkdir(parents=True)
    one_epoch(task)
    train(config("training.epochs=2", "cluster.num_workers=2", output="cut"), console)
    assert difference(final_weights(cut), final_weights(whole)) < 1e-3


@pytest.mark.parametrize(
    "override",
    [
        "training.zero_stage=0",
        "training.gradient_accumulation_steps=4",
        "training.activation_checkpointing=1",
        "training.attention_path=reference",
    ],
)
def test_another_way_to_compute_the_same_training_goes_on_with_it(
    config: Callable[..., Config], console: Console, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, override: str,
) -> None:  # fmt: skip
    whole = config("training.augment={}", output="whole")
    train(whole, console)
    run_epoch = TrainLoop.run_epoch

    def first_epoch_only(loop: TrainLoop, state: TrainState) -> TrainState:
        if state.epoch:
            raise KeyboardInterrupt
        return run_epoch(loop, state)

    monkeypatch.setattr(TrainLoop, "run_epoch", first_epoch_only)
    with pytest.raises(KeyboardInterrupt):
        train(config("training.augment={}", output="cut"), console)
    monkeypatch.setattr(TrainLoop, "run_epoch", run_epoch)
    other = config("training.augment={}", override, output="cut")
    with (tmp_path / "console.txt").open("w+") as file:
        result = train(other, Console(file, file))
        file.seek(0)
        printed = file.read()
    assert override.partition("=")[0] in printed and "agree to rounding" in printed
    assert "resuming at epoch 2" in printed
    assert result["epochs"] == 2
    # Adam divides by the gradient's size, so rounding shows at the learning rate's scale.
    assert difference(final_weights(other), final_weights(whole)) < 2e-3
    assert train(config("training.augment={}", output="cut"), console)["skipped"]


def only_epochs(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Trainings are interrupted after epoch `last`."""
    run_epoch = TrainLoop.run_epoch

    def run(loop: TrainLoop, state: TrainState) -> TrainState:
        if state.epoch >= last:
            raise KeyboardInterrupt
        return run_epoch(loop, state)

    monkeypatch.setattr(TrainLoop, "run_epoch", run)


def test_a_training_that_is_done_is_continued_for_more_epochs(
    config: Callable[..., Config], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = ("training.log_steps=1", "training.schedule.warmup_epochs=1")
    first = train(config("training.epochs=2", *logged), console)
    longer = config("training.epochs=4", *logged)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        only_epochs(patch, 3)
        train(longer, console)
    with pytest.raises(UserError, match=r"training\.epochs=4, and training\.epochs is 2: .* more"):
        train(config("training.epochs=2", *logged), console)
    result = train(longer, console)
    assert (result["run_id"], result["epochs"]) == (first["run_id"], 4)
    assert result["continued"] == [{"epochs": 2, "step": 14}]
    assert train(longer, console)["skipped"]
    # The learning rate is the old schedule's before, and the one over all epochs from there on.
    client = MlflowClient(longer.tracking_uri)
    history = client.get_metric_history(result["run_id"], "learning_rate")
    old, new = config("training.epochs=2", *logged).training, longer.training
    expected = [learning_rate(step, 7, old if step < 14 else new) for step in range(28)]
    assert [metric.step for metric in history] == list(range(1, 29))
    assert [metric.value for metric in history] == pytest.approx(expected, rel=1e-12)
    run = client.get_run(result["run_id"])
    assert json.loads(run.data.tags["perceiver.continued"]) == result["continued"]
    assert run_config(client, result["run_id"]).training.epochs == 4
    # Interrupted or not, it is the same continuation.
    train(config("training.epochs=2", *logged, output="other"), console)
    other = config("training.epochs=4", *logged, output="other")
    train(other, console)
    assert difference(final_weights(other), final_weights(longer)) == 0


def test_a_training_is_not_made_shorter(config: Callable[..., Config], console: Console) -> None:
    train(config("training.epochs=2"), console)
    with pytest.raises(UserError, match=r"training\.epochs=2, and training\.epochs is 1.*--fresh"):
        train(config("training.epochs=1"), console)
    with pytest.raises(UserError, match=r"training\.learning_rate was 0\.005"):
        train(config("training.epochs=3", "training.learning_rate=1e-3"), console)


def test_a_longer_training_under_another_name_finds_the_set_of_its_data(
    make_config: MakeConfig, digit_shards: Path, tmp_path: Path, console: Console
) -> None:
    # As README has it: `train flowers.yaml training.epochs=40 name=flowers-long`.
    output = tmp_path / "runs"
    shutil.copytree(digit_shards, output / "digits" / "shards")
    ledger = ledger_path(digit_shards)
    shutil.copy(ledger, output / "digits" / ledger.name)
    long = make_config(
        output, "cluster.num_workers=0", "name=digits-long", "training.epochs=3",
        "data.samples_per_shard=100",
    )  # fmt: skip
    result = train(long, console)
    assert result["epochs"] == 3
    run = MlflowClient(long.tracking_uri).get_run(result["run_id"])
    assert run.data.tags["perceiver.shards"] == str(output / "digits" / "shards")
    assert train(long, console)["skipped"]


def one_epoch(task: TrainTask) -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop(task: Any) -> None:
        with open_training(task) as (training, state):
            training.run_epoch(state)

    TorchTrainer(loop, train_loop_config=task, scaling_config=ScalingConfig(num_workers=0)).fit()
