"""Every verb on machines without a common folder: all that lasts lies in object storage."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train.torch
from mlflow_server import Server
from nodes import Nodes, on_each, wait
from placed_worker import placed_worker
from rank_processes import run_ranks
from test_remote_training import ranks_train
from trainings import difference

from cluster.errors import ClusterError
from cluster.placement import capacity
from pipeline.config.folders import folder_at
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import evaluate
from pipeline.plan.plan import plan
from pipeline.plan.request import Request
from pipeline.preprocess.preprocess import preprocess
from pipeline.registry.export import export
from pipeline.registry.predict import predict
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.runs.storage import exists, read_bytes
from pipeline.training.checkpoints import last_checkpoint, list_names
from pipeline.training.launch import fit_workers
from pipeline.training.placing import check_room, worker_placement
from pipeline.training.train import train
from pipeline.tuning.journal import Report, StudyJournal
from pipeline.tuning.journal_lines import has_journal
from pipeline.tuning.tune import tune
from shards import verify
from shards.object_store import ObjectStore

NAMES = ("first", "second", "third")
pytestmark = pytest.mark.timeout(1800)
GPU_MACHINE: dict[str, Any] = {
    "num_cpus": 4,
    "num_gpus": 1,  # made up: nothing computes on it
    "labels": {"kind": "gpu"},
    "resources": {"accelerator_type:H100": 1, "link": 2},
}
SLOW = "PERCEIVER_SLOW_TESTS" in os.environ
slow = pytest.mark.skipif(not SLOW, reason="takes minutes; PERCEIVER_SLOW_TESTS=1 runs it")


@pytest.fixture(scope="module")
def nodes(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    found = Nodes(tmp_path_factory.mktemp("nodes") / "log")
    found.add("first", **GPU_MACHINE)
    found.add("second", **GPU_MACHINE)
    found.add("third", num_cpus=4, labels={"kind": "cpu"})
    yield found
    found.close()


@pytest.fixture(scope="module")
def server(
    empty_database: Path, s3_bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """An MLflow whose artifacts lie in object storage."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "server.db")
    os.environ["MLFLOW_S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
    server = Server(folder, f"{s3_bucket}/{folder.name}/artifacts")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def config(
    make_config: Callable[..., Config], digit_images: Path, nodes: Nodes, server: Server,
    s3_bucket: str, tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Config]:  # fmt: skip
    """Configurations of digits in object storage.

    Samples are decoded on the third machine, and training is done on the two others.
    """
    home = f"{s3_bucket}/{tmp_path_factory.mktemp('home').name}"
    raw: Any = folder_at(f"{home}/raw")
    raw.fs.put(str(digit_images / "train"), raw.path, recursive=True)
    server.wait()
    nodes.wait_for(*NAMES)

    def make(*overrides: str) -> Config:
        return make_config(
            f"{home}/runs", f"data.train={home}/raw", f"tracking.uri={server.uri}",
            "data.samples_per_shard=30", "cluster.preprocess.labels={kind: cpu}",
            "cluster.labels={kind: gpu}", *overrides,
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def made(config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The set of the digits in object storage, made on the third machine."""
    with (tmp_path_factory.mktemp("made") / "told.txt").open("w") as file:
        return preprocess(config(), Console(file, file))


def study(made: dict[str, Any], *fields: str) -> tuple[str, ...]:
    """The overrides of a study on a set."""
    space = "space: {training.learning_rate: {choice: [3e-3]}}"
    return (
        "name=tuned", f"shards={made['shards']}", "training.epochs=1",
        f"study={{{', '.join(['search: grid', 'num_workers: 1', *fields, space])}}}",
    )  # fmt: skip


def local_paths(config: Config) -> list[str]:
    """The lines of a run's records and notes that name a folder of this machine."""
    output: Any = folder_at(config.output)
    found = [path for path in output.fs.find(output.path) if path.endswith((".json", ".jsonl"))]
    lines = [line for path in found for line in output.fs.cat_file(path).decode().splitlines()]
    return [line for line in lines if "/tmp/" in line]


def node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def tasks_of(name: str) -> list[Any]:
    """The tasks of Ray Data that ran a function."""
    from ray.util.state import list_tasks

    return [each for each in list_tasks(limit=1000, detail=True) if name in each.name]


@slow
def test_each_verb_with_all_in_object_storage(
    config: Callable[..., Config], nodes: Nodes, made: dict[str, Any], console: Console,
    tmp_path: Path,
) -> None:  # fmt: skip
    kept = tmp_path / "console.txt"
    assert kept.exists()
    if nodes.are_hidden:
        assert on_each(NAMES, lambda: kept.exists()) == [False] * len(NAMES)
    assert made["shards"].startswith("s3://") and sum(made["counts"].values()) == 300
    (ran,) = {each.node_id for each in tasks_of("ShardTask")}
    assert ran == on_each(NAMES, node_id)[2]
    trained = config(
        "cluster.num_workers=2", "cluster.workers_per_node=1", "training.epochs=1",
        "cluster.decode={workers: 1, labels: {kind: cpu}}",
    )  # fmt: skip
    result = train(trained, console)
    assert result["epochs"] == 1 and result["checkpoint"].startswith("s3://")

    searched = config(*study(made))
    best = tune(searched, console)["best"]
    assert best["checkpoint"].startswith(f"{searched.folder}/tune/trials/0000")
    again = tune(searched, console)
    assert (again["skipped"], again["best"], again["undelivered"]) == (True, best, None)
    with pytest.raises(UserError, match=r"study\.grace_epochs was 1, is 2"):
        tune(config(*study(made, "grace_epochs: 2")), console)
    mlflow_client = client(searched.tracking_uri)
    artifacts = {each.path for each in mlflow_client.list_artifacts(again["run_id"])}
    assert {"accuracy_vs_flops.png", "study.json"} <= artifacts

    promoted = promote(mlflow_client, again["run_id"], console)
    assert promoted["run_id"] == best["run_id"]
    files = folder_at(f"{searched.data.train}/0")
    answers = predict(
        mlflow_client, promoted["model_uri"], [str(files)], console,
        output=f"{searched.output}/answers.jsonl",
    )["predictions"]  # fmt: skip
    assert len(answers) == 100 and answers[0]["source"].startswith(f"{files}/")
    written = read_bytes(folder_at(f"{searched.output}/answers.jsonl"), 1 << 20)
    assert len(written.splitlines()) == 100
    found = evaluate(
        mlflow_client, str(searched.folder), console,
        overrides=() if SLOW else ["cluster.num_workers=0"],
    )  # fmt: skip
    assert found["metrics"]["accuracy"] == pytest.approx(best["accuracy"])
    exported = export(mlflow_client, str(searched.folder), console, to=f"{searched.output}/model")
    assert exported["run_id"] == best["run_id"]
    assert exists(folder_at(exported["weights"]))
    planned = plan(trained, console, Request())
    assert planned["problems"] == []
    assert local_paths(searched) == []


def placed(config: Config, monkeypatch: pytest.MonkeyPatch, *variables: str) -> list[Any]:
    """Where the workers of a training run, by rank, and what they have."""
    # The GPUs are made up, so NCCL finds none.
    gloo = functools.partial(ray.train.torch.TorchConfig, backend="gloo")
    monkeypatch.setattr(ray.train.torch, "TorchConfig", gloo)
    folder = config.folder / "train"
    found: list[Any] = fit_workers(config.cluster, placed_worker, list(variables), folder)
    return found


@slow
def test_workers_run_where_the_configuration_says(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = on_each(NAMES, node_id)
    spread = config(
        "cluster.num_workers=3", "cluster.workers_per_node=2", "cluster.resources={link: 1}",
        "cluster.accelerator_type=H100", "cluster.timeout_seconds=77",
        "cluster.environment={GLOO_SOCKET_IFNAME: lo}",
    )  # fmt: skip
    workers = placed(spread, monkeypatch, "GLOO_SOCKET_IFNAME")
    nodes = [each["node"] for each in workers]
    assert sorted(map(nodes.count, {*nodes})) == [1, 2] and {*nodes} == {first, second}
    for each in workers:
        assert each["resources"] == {"CPU": 1, "link": 1, "accelerator_type:H100": 0.001}
        assert (each["variables"], each["timeout"]) == ({"GLOO_SOCKET_IFNAME": "lo"}, 77)


def test_trials_share_a_gpu(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    one = ("cluster.num_workers=1", "cluster.use_gpu=true")
    quarter = config(*one, "cluster.gpus_per_worker=0.25")
    if SLOW:
        (worker,) = placed(quarter, monkeypatch, "CUDA_VISIBLE_DEVICES")
        assert worker["resources"] == {"CPU": 1, "GPU": 0.25}
        assert worker["variables"]["CUDA_VISIBLE_DEVICES"] == "0"
    # 4 CPUs and one GPU on each of two machines.
    assert capacity(worker_placement(quarter.cluster).place) == 8
    half = config(*one, "cluster.gpus_per_worker=0.5")
    assert capacity(worker_placement(half.cluster).place) == 4


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["use_gpu=true", "num_workers=3"],
         "needs 3 GPUs (3 workers x 1), but the cluster has 2"),
        (
            ["accelerator_type=B200"],
            "needs machines with the accelerator B200, but none of 4 has it; there are H100",
        ),
        (["resources={link: 3}", "num_workers=2"],
         "needs 6 of link (2 workers x 3), but the cluster has 4"),
        (["labels={kind: tpu}"],
         "needs machines with the labels kind=tpu, but none of 4 has them"),
        (["resources={link: 2}", "cpus_per_worker=3", "num_workers=2", "labels={kind: cpu}"],
         "needs room for 2 workers of 3 CPU and 2 link, but the cluster's 1 machines of 4 with the "
         "labels have room for 0, since each must fit on one machine"),
        (["num_workers=3", "workers_per_node=1"],
         "needs 3 machines for 3 workers of 1 CPU, 1 on each (cluster.workers_per_node), but 2 "
         "machines have room for as many"),
        (["num_workers=3", "placement=strict_spread"],
         "needs 3 machines for 3 workers of 1 CPU (cluster.placement: strict_spread), but 2 have "
         "room for one"),
        (["num_workers=5", "placement=strict_pack"],
         "needs one machine for 5 workers of 1 CPU (cluster.placement: strict_pack), but the "
         "largest has room for 4"),
        (["decode={workers: 5, cpus: 4}", "num_workers=1"],
         "needs 20 CPUs (5 processes x 4), but the cluster has"),
        (["decode={workers: 1, labels: {kind: tpu}}"],
         "needs machines with the labels kind=tpu, but none of 4 has them"),
    ],
)  # fmt: skip
def test_what_the_machines_cannot_hold_is_refused_in_one_line(
    overrides: list[str], told: str, config: Callable[..., Config]
) -> None:
    chosen = config(*(f"cluster.{each}" for each in overrides))
    with pytest.raises(ClusterError) as caught:
        check_room(chosen.cluster)
    assert told in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_preprocessing_that_no_machine_can_do_is_refused(
    config: Callable[..., Config], console: Console
) -> None:
    chosen = config("name=none", "cluster.preprocess={cpus: 8, labels: {kind: '!gpu'}}")
    with pytest.raises(ClusterError, match=r"preprocessing needs room for 1 task of 8 CPU, but"):
        preprocess(chosen, console)


@contextlib.contextmanager
def losing(nodes: Nodes, name: str, when: Callable[[], bool]) -> Iterator[None]:
    """Lose a machine of the gpu kind as soon as something is so. Another one takes its place."""
    lost = threading.Event()

    def lose() -> None:
        wait(when)
        nodes.lose(name)
        lost.set()
        nodes.add(name, **GPU_MACHINE)

    thread = threading.Thread(target=lose)
    thread.start()
    yield
    assert lost.is_set(), "the work has ended before the machine was lost"
    thread.join()
    nodes.wait_for(name)


@slow
def test_a_machine_that_is_lost_while_preprocessing_costs_nothing(
    config: Callable[..., Config], nodes: Nodes, console: Console
) -> None:
    on = "cluster.preprocess={cpus: 4, labels: {kind: gpu}}"
    small = "data.samples_per_shard=3"
    undisturbed = preprocess(config("name=whole", small, on), console)
    hurt = config("name=hurt", small, on)
    store = ObjectStore(hurt.shards_folder)
    with losing(nodes, "second", lambda: any(name.endswith(".tar") for name in store.sizes())):
        made = preprocess(hurt, console)
    assert made["digest"] == undisturbed["digest"]
    assert verify(made["shards"]) == []


@slow
def test_a_machine_that_is_lost_while_training_costs_nothing(
    config: Callable[..., Config], nodes: Nodes, made: dict[str, Any], tmp_path: Path
) -> None:
    settings = (f"shards={made['shards']}", "training.epochs=10", "training.checkpoint_steps=2",
                "model.encoder.dropout=0.1", "cluster.num_workers=2")  # fmt: skip
    (tmp_path / "whole").mkdir()
    whole = config("name=whole", *settings).model_dump_json()
    run_ranks(ranks_train, (whole, str(tmp_path / "whole")), 2)
    expected = last_checkpoint(tmp_path / "whole" / "checkpoints")
    hurt = config("name=hurt", *settings, "cluster.workers_per_node=1", "cluster.max_failures=1",
                  "cluster.decode={workers: 1, labels: {kind: cpu}}")  # fmt: skip
    checkpoints = hurt.folder / "train" / "checkpoints"
    with (tmp_path / "told.txt").open("w+") as file:
        with losing(nodes, "second", lambda: bool(list_names(checkpoints))):
            train(hurt, Console(file, file))
        file.seek(0)
        told = " ".join(file.read().split())
    assert "starting again from the last checkpoint (1 of cluster.max_failures=1)" in told
    found = last_checkpoint(checkpoints)
    assert expected is not None and found is not None
    assert difference(found.load_model(), expected.load_model()) == 0


@slow
def test_a_machine_that_is_lost_in_a_study_and_the_loss_of_its_command_cost_nothing(
    config: Callable[..., Config], nodes: Nodes, made: dict[str, Any], console: Console,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    grid = (
        "name=searched", f"shards={made['shards']}", "training.epochs=6",
        "training.checkpoint_steps=2", "cluster.max_failures=1", "cluster.cpus_per_worker=2",
        "study={search: grid, num_workers: 1, grace_epochs: 6, space: "
        "{training.learning_rate: {choice: [3e-3, 1e-3, 1e-4]}}}",
    )  # fmt: skip
    searched = config(*grid)
    # The command begins on a machine of its own, which is lost with it.
    path = tmp_path / "study.yaml"
    alone = config(*grid, "cluster.labels={}", "study.max_concurrent_trials=1")
    path.write_text(json.dumps(alone.tree()))
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "elsewhere")}
    for name in ("RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS"):
        environment.pop(name, None)
    folder = searched.folder / "tune"
    with subprocess.Popen([sys.executable, "-m", "pipeline", "tune", str(path)],
                          env=environment) as command:  # fmt: skip
        wait(lambda: command.poll() is not None or len(reports(folder)) >= 2)
        assert command.poll() is None
        command.kill()
    before = reports(folder)
    with losing(nodes, "second", lambda: len(reports(folder)) > len(before)):
        result = tune(searched, console)
    after = StudyJournal(folder)
    assert after.reports[: len(before)] == before
    assert len({(each.trial, each.epoch) for each in after.reports}) == len(after.reports) == 18
    for trial in result["trials"]:
        rate = trial["params"]["training.learning_rate"]
        same = config(
            f"name=rate-{rate}", f"shards={made['shards']}", "training.epochs=6",
            f"training.learning_rate={rate}", "cluster.num_workers=0",
        )  # fmt: skip
        assert train(same, console)["score"] == trial["accuracy"]
    assert result["undelivered"] is None


def reports(folder: Any) -> list[Report]:
    return StudyJournal(folder).reports if has_journal(folder) else []
