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

import psutil
import pytest
from mlflow.tracking import MlflowClient
from rank_processes import train_on_ranks
from trainings import difference, final_weights

from cluster.interrupts import Terminated
from cluster.notices import Notice, keep
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.ledger import ledger_path
from pipeline.runs.console import Console
from pipeline.runs.tracking import run_config
from pipeline.training.checkpoint_files import TrainState
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


def test_a_training_that_is_hit_within_epochs_ends_with_the_same_weights_and_metrics(
    config: Callable[..., Config], console: Console, tmp_path: Path
) -> None:
    """Killed, then interrupted, then told to stop as before a preemption."""
    settings = ("training.epochs=40", "training.checkpoint_steps=3",
                "model.encoder.dropout=0.1", "training.optimizer=lamb")  # fmt: skip
    whole = config(*settings, output="whole")
    reference = train(whole, console)
    cut = config(*settings, output="cut")
    path = write_config(cut, tmp_path / "cut.yaml")
    checkpoints, before = cut.folder / "train" / "checkpoints", 0
    ends = {signal.SIGKILL: ("RUNNING", -9), signal.SIGINT: ("KILLED", 130),
            signal.SIGTERM: ("KILLED", 143)}  # fmt: skip
    for number, (status, code) in ends.items():
        process = subprocess.Popen([*COMMAND, str(path)], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while last_step(checkpoints) <= before and time.monotonic() < deadline:
            time.sleep(0.02)
        hit = [psutil.Process(process.pid)]
        if number == signal.SIGTERM:  # as `ray job stop` sends it, to each process of the command
            hit += hit[0].children(recursive=True)
            assert len(hit) > 1
        for each in hit:
            each.send_signal(number)
        line = process.communicate(timeout=60)[1].strip().rpartition("\n")[2]
        assert process.returncode == code
        assert before < last_step(checkpoints) < 40 * 7, "it was not hit; the test shows nothing"
        before = last_step(checkpoints)
        client = MlflowClient(cut.tracking_uri)
        experiment = client.get_experiment_by_name("digits")
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == status
    assert line == (
        f"perceiver train: terminated (SIGTERM): stopped after step {before}, with a checkpoint; "
        "the same command goes on from the last checkpoint"
    )
    with (tmp_path / "told.txt").open("w+") as file:
        result = train(cut, Console(file, file))
        file.seek(0)
        assert f"step {before}, from" in file.read()
    assert difference(final_weights(cut), final_weights(whole)) == 0
    exact = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    assert [result["metrics"][m] for m in exact] == [reference["metrics"][m] for m in exact]
    (after,) = client.search_runs([experiment.experiment_id])
    assert (after.info.run_id, after.info.status) == (run.info.run_id, "FINISHED")


def test_a_training_that_is_hit_right_after_the_checkpoint_of_an_epoch_keeps_its_metrics(
    config: Callable[..., Config], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = config("training.epochs=2")
    save = TrainLoop.save

    def hit(loop: TrainLoop, state: TrainState) -> None:
        save(loop, state)
        if not state.samples:
            loop.saver.wait(is_required=True)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainLoop, "save", hit)
        with pytest.raises(KeyboardInterrupt):
            train(cut, console)
    assert last_step(cut.folder / "train" / "checkpoints") == 7
    result = train(cut, console)
    for name in ("train_loss", "val_loss", "val_accuracy"):
        history = MlflowClient(cut.tracking_uri).get_metric_history(result["run_id"], name)
        assert [each.step for each in history] == [7, 14]


def last_step(checkpoints: Path) -> int:
    steps = [int(path.parent.name[5:]) for path in checkpoints.glob("step-*/state.json")]
    return max(steps, default=0)


def test_a_notice_within_an_evaluation_stops_before_it_and_costs_nothing(
    config: Callable[..., Config], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = config("training.ema_decay=0.5", output="whole")
    reference = train(whole, console)
    cut = config("training.ema_decay=0.5", output="cut")
    evaluate = TrainLoop.evaluate

    def told(loop: TrainLoop, state: TrainState) -> dict[str, float]:
        keep(Notice.COMMAND)
        return evaluate(loop, state)

    with monkeypatch.context() as patch:
        patch.setattr(TrainLoop, "evaluate", told)
        with pytest.raises(Terminated, match="stopped after step 7, with a checkpoint"):
            train(cut, console)
    result = train(cut, console)
    assert difference(final_weights(cut), final_weights(whole)) == 0
    assert result["metrics"]["val_loss"] == reference["metrics"]["val_loss"]
    assert result["metrics"]["train_loss"] == reference["metrics"]["train_loss"]


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
    assert last_step(cut.folder / "train" / "checkpoints") == 7
    train_on_ranks(config("training.epochs=2", "cluster.num_workers=2", output="cut"), 2)
    assert last_step(cut.folder / "train" / "checkpoints") == 14
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
