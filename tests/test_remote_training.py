"""Trainings with `output=s3://…`, on a real S3 server on the loopback."""

import json
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from rank_processes import join_ranks, run_ranks
from safetensors.torch import load_file
from trainings import cut_off_after, difference, evaluated_as_trained, train_and_report

import perceiver_model
from pipeline.config.folders import folder_at
from pipeline.config.load import with_values
from pipeline.config.sqlite_uri import sqlite_uri
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.registry.export import export
from pipeline.registry.predict import predict
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.runs.storage import exists, read_bytes
from pipeline.training import worker
from pipeline.training.checkpoints import last_checkpoint, list_names
from pipeline.training.ending import has_ended
from pipeline.training.rank_info import RankInfo
from pipeline.training.train import train
from pipeline.training.worker import TrainTask, open_training
from pipeline.tuning.tune import tune

MakeConfig = Callable[..., Config]
SECRET = "not-in-any-record"


@pytest.fixture
def config(
    make_config: MakeConfig,
    digit_shards: Path,
    s3_bucket: str,
    empty_database: Path,
    tmp_path: Path,
) -> Callable[..., Config]:
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())

    def make(*overrides: str, output: str = f"{s3_bucket}/{tmp_path.name}") -> Config:
        return make_config(
            output, f"shards={digit_shards}", f"tracking.uri={sqlite_uri(database)}",
            "cluster.num_workers=0", "training.checkpoint_steps=2", *overrides,
        )  # fmt: skip

    return make


def weights(config: Config) -> dict[str, torch.Tensor]:
    last = last_checkpoint(config.folder / "train" / "checkpoints")
    assert last is not None
    return last.load_model()


def objects(config: Config) -> dict[str, bytes]:
    """Everything below the output, by its key."""
    output: Any = folder_at(config.output)
    return {path: output.fs.cat_file(path) for path in output.fs.find(output.path)}


def test_a_training_from_its_first_step_to_an_export(
    config: Callable[..., Config],
    digit_images: Path,
    console: Console,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed = config(output=str(tmp_path / "here"))
    train(undisturbed, console)
    remote = config("registry.model_name=remote")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a"))
    with cut_off_after(5):
        train_and_report(remote, console)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "b"))  # resumed on another machine
    result = train_and_report(remote, console)
    assert difference(weights(remote), weights(undisturbed)) == 0
    assert result["checkpoint"].startswith(f"{remote.output}/digits/train/checkpoints/step-")
    assert result["undelivered"] is None
    assert train(remote, console)["skipped"]
    found = objects(remote)
    assert not any(SECRET.encode() in data for data in found.values())
    assert not any("mlflow" in path or "seen-by-all" in path for path in found)
    run_id = result["run_id"]
    mlflow_client = client(remote.tracking_uri)
    assert SECRET not in str(mlflow_client.get_run(run_id).to_dictionary())

    evaluated_as_trained(remote, result, console)
    assert objects(remote).keys() == found.keys()
    promoted = promote(mlflow_client, run_id, console)
    answers = predict(
        mlflow_client, promoted["model_uri"], [str(digit_images / "test" / "0")], console
    )["predictions"]
    assert len(answers) == 20

    by_folder = export(mlflow_client, str(remote.folder), console, to=str(tmp_path / "exported"))
    about = json.loads((tmp_path / "exported" / "model.json").read_text())
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    model = perceiver_model.PerceiverClassifier(
        perceiver_model.ClassifierConfig.from_dict(about["config"])
    )
    model.load_state_dict(exported)
    assert about["model"] == type(model).__name__
    assert difference(exported, weights(undisturbed)) == 0
    with pytest.raises(UserError, match="exported: exists already"):
        export(mlflow_client, run_id, console, to=str(tmp_path / "exported"))
    there = f"{remote.output}/exported"
    by_run = export(mlflow_client, run_id, console, to=there, which="last")
    assert by_run["sha256"] == by_folder["sha256"]
    assert exists(folder_at(there) / "card.json")
    with pytest.raises(UserError, match="has no checkpoint of step 99; there are those of 1"):
        export(mlflow_client, run_id, console, to=str(tmp_path / "none"), which="99")
    with pytest.raises(UserError, match="there is no such folder; name a run by"):
        export(mlflow_client, str(tmp_path / "gone"), console)

    tuned = config("name=tuned", f"model.init.from={there}", "training.epochs=1")
    init = train(tuned, console)["init"]
    assert (init["skipped"], init["new"]) == (0, 0)
    again = config("name=tuned", f"model.init.from={there}", "training.epochs=2")
    assert train(again, console)["epochs"] == 2


def ranks_train(rank: int, config: str, folder: str) -> None:
    """Train undisturbed, as one of two ranks, and keep the metrics of each epoch."""
    join_ranks(rank, 2, folder)
    info = RankInfo(rank, rank, 0, 2, torch.device("cpu"))
    worker.join = lambda: info  # which Ray Train tells a worker otherwise
    curve = []
    with open_training(TrainTask(config, folder, None)) as (loop, state):
        while not has_ended(loop.config.training, state):
            state = loop.run_epoch(state)
            curve.append(state.metrics)
    if rank == 0:
        (Path(folder) / "curve.json").write_text(json.dumps(curve))
    dist.barrier()
    dist.destroy_process_group()


def hit_workers(checkpoints: Any, told: Path) -> None:
    """Kill a worker, then all of them at once, then send SIGTERM to one, each after a checkpoint.

    Each launch says from where it resumes, and has trained when there is a later checkpoint.
    """
    hits = [("resuming", 0, signal.SIGKILL, 1), ("resuming", 1, signal.SIGKILL, 2),
            ("resuming", 2, signal.SIGTERM, 1)]  # fmt: skip
    hit: set[int] = set()
    for line, count, number, workers in hits:
        wait(lambda line=line, count=count: told.read_text().count(line) == count)
        before = {*list_names(checkpoints)}
        wait(lambda before=before: bool({*list_names(checkpoints)} - before))
        found = [
            each for each in psutil.Process().children(recursive=True)
            if "RayTrainWorker" in " ".join(each.cmdline()) and each.pid not in hit
        ]  # fmt: skip
        assert len(found) == 2
        for each in found[:workers]:
            each.send_signal(number)
        hit |= {each.pid for each in found}


def wait(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_workers_of_ray_that_are_killed_one_and_all_and_told_to_stop(
    config: Callable[..., Config], ray_cluster: None, console: Console, tmp_path: Path
) -> None:
    settings = ("cluster.num_workers=2", "cluster.max_failures=2", "training.epochs=10",
                "training.augment={shift_pixels: 2}", "model.encoder.dropout=0.1")  # fmt: skip
    (tmp_path / "undisturbed").mkdir()
    undisturbed = config(*settings, output=str(tmp_path / "here")).model_dump_json()
    run_ranks(ranks_train, (undisturbed, str(tmp_path / "undisturbed")), 2)

    remote, told = config(*settings), tmp_path / "console.txt"
    hitter = threading.Thread(target=hit_workers, args=(remote.folder / "train/checkpoints", told))
    hitter.start()
    result = train(remote, console)
    hitter.join()
    text = told.read_text()
    assert "worker 0 got SIGTERM" in text or "worker 1 got SIGTERM" in text
    # The notice is no loss, and it costs no step.
    for line in ("(1 of cluster.max_failures=2)", "(2 of cluster.max_failures=2)"):
        assert f"starting again from the last checkpoint {line}" in text
    (stopped,) = re.findall(r"stopped after step (\d+), with a checkpoint", text)
    froms = re.findall(rf"from {remote.folder}/train/checkpoints/step-(\d+)", text)
    assert len(froms) == 3 and int(froms[2]) == int(stopped)
    assert result["epochs"] == 10

    expected = last_checkpoint(tmp_path / "undisturbed" / "checkpoints")
    assert expected is not None
    assert difference(weights(remote), expected.load_model()) == 0
    curve = json.loads((tmp_path / "undisturbed" / "curve.json").read_text())
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        history = client(remote.tracking_uri).get_metric_history(result["run_id"], name)
        assert [each.value for each in history] == [metrics[name] for metrics in curve]
    assert not any("mlflow" in path or "seen-by-all" in path for path in objects(remote))
    record = json.loads(read_bytes(remote.folder / "stages" / "train.json", 1 << 20))
    assert record["done"] is True


def test_what_a_url_cannot_hold_is_refused_in_one_line(
    config: Callable[..., Config], console: Console
) -> None:
    remote = config()
    without_shards = remote.model_copy(update={"shards": None})
    without_server = remote.model_copy(update={"tracking": type(remote.tracking)()})
    space = {"training.learning_rate": {"choice": [0.1, 0.2]}}
    study = with_values(without_server, {"study": {"space": space}})
    for verb, refused, told in (
        (train, without_shards, "there is no shard set; run 'perceiver preprocess'"),
        (train, without_server, "object storage cannot hold MLflow's database; name"),
        (tune, study, "object storage cannot hold MLflow's database; name"),
    ):
        with pytest.raises(UserError, match=told) as error:
            verb(refused, console)
        assert len(str(error.value).splitlines()) == 1
    assert not exists(remote.folder)
