"""A training with a range of workers follows the machines of a cluster, on real raylets."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient
from patient_worker import FAST, patient_worker
from trainings import difference, final_weights

from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.training import launch
from pipeline.training.step_figures import MEASURED
from pipeline.training.train import train

MACHINE = """
import sys, time
from ray._private.node import Node
from ray._private.parameter import RayParams

# As `ray.cluster_utils.Cluster` does; `ray start` joins no cluster that listens only on loopback.
Node(
    RayParams(
        gcs_address=sys.argv[1], num_cpus=int(sys.argv[2]), node_ip_address="127.0.0.1",
        node_manager_port=0, min_worker_port=0, max_worker_port=0, include_log_monitor=False,
        dashboard_agent_listen_port=None, object_store_memory=150 << 20,
    ),
    head=False, shutdown_at_exit=True, spawn_reaper=False,
)
time.sleep(3600)
"""


class Machines:
    """Further machines of the session's cluster: each is a raylet with as many CPUs as the first.

    A worker that reserves all CPUs of a machine has it for itself.
    """

    def __init__(self, log: Path) -> None:
        import ray

        self.cpus = int(ray.cluster_resources()["CPU"])
        self._address = ray.get_runtime_context().gcs_address
        self._log = log
        self._nodes: list[psutil.Process] = []

    def add(self) -> None:
        """Start a machine. It is there some seconds later."""
        command = [sys.executable, "-c", MACHINE, self._address, str(self.cpus)]
        with self._log.open("a") as log:
            started = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._nodes.append(psutil.Process(started.pid))

    def wait_for(self, count: int) -> None:
        """Wait until the cluster has so many machines."""
        import ray

        wait(lambda: ray.cluster_resources()["CPU"] >= count * self.cpus)

    def lose(self) -> None:
        """Lose the last machine at once, with all that runs there."""
        node = self._nodes.pop()
        for process in [*node.children(recursive=True), node]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait(30)


@pytest.fixture
def machines(ray_cluster: None, tmp_path: Path) -> Iterator[Machines]:
    found = Machines(tmp_path / "machines.log")
    yield found
    while found._nodes:
        found.lose()
    import ray

    wait(lambda: ray.cluster_resources()["CPU"] == found.cpus)


def wait(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.skipif(
    "PERCEIVER_SLOW_TESTS" not in os.environ,
    reason="starts and kills raylets for minutes; PERCEIVER_SLOW_TESTS=1 runs it",
)
def test_a_lost_machine_shrinks_the_training_and_a_returned_one_grows_it(
    machines: Machines, make_config: Callable[..., Config], digit_shards: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = (f"shards={digit_shards}", "training.epochs=9", "training.checkpoint_steps=2",
                "training.log_steps=1")  # fmt: skip
    whole = make_config(tmp_path / "whole", *settings, "cluster.num_workers=0")
    with (tmp_path / "whole.txt").open("w") as file:
        reference = train(whole, Console(file, file))
    config = make_config(
        tmp_path / "out", *settings, "cluster.num_workers={min: 1, max: 2, resize_seconds: 1}",
        f"cluster.cpus_per_worker={machines.cpus}",
    )  # fmt: skip
    folder, text = config.folder / "train", tmp_path / "told.txt"
    machines.add()
    machines.wait_for(2)

    def last_step() -> int:
        found = folder.glob("checkpoints/step-*/state.json")
        return max((int(path.parent.name[5:]) for path in found), default=0)

    def trained_by() -> list[str]:
        """The numbers of workers that have trained, in order."""
        lines = text.read_text().splitlines()
        return [line.split()[0] for line in lines if "workers train" in line]

    def follow() -> None:
        # It may begin with one worker, if the second machine is not ready at once.
        wait(lambda: trained_by()[-1:] == ["2"] and last_step() >= 2)
        machines.lose()
        wait(lambda: trained_by()[-1:] == ["1"])
        machines.add()
        wait(lambda: trained_by()[-1:] == ["2"])
        (folder / FAST).touch()

    monkeypatch.setattr(launch, "train_worker", patient_worker)
    monkeypatch.setattr(launch, "START_SECONDS", 15.0)
    text.touch()
    follower = threading.Thread(target=follow)
    follower.start()
    with text.open("w", buffering=1) as file:
        result = train(config, Console(file, file))
    follower.join()
    assert trained_by()[-3:] == ["2", "1", "2"]

    client = MlflowClient(config.tracking_uri), MlflowClient(whole.tracking_uri)
    runs = client[0].get_run(result["run_id"]), client[1].get_run(reference["run_id"])
    names = {*runs[1].data.metrics} - MEASURED
    assert names == {*runs[0].data.metrics} - MEASURED
    worst = {}
    for name in sorted(names):
        ours, theirs = (
            {m.step: m.value for m in each.get_metric_history(run.info.run_id, name)}
            for each, run in zip(client, runs, strict=True)
        )
        assert ours.keys() == theirs.keys(), name
        worst[name] = max(abs(ours[s] - theirs[s]) / max(abs(theirs[s]), 1e-3) for s in ours)
    # The same batches in the same order: what differs is the order of sums.
    assert worst.pop("gradient_norm") < 1e-2
    assert max(worst.values()) < 1e-3, worst
    assert difference(final_weights(config), final_weights(whole)) < 5e-3
