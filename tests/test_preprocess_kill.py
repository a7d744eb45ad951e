"""Preprocessing survives kill -9 of anything at any moment: the same digest, little done twice."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.config.tree import Config
from pipeline.preprocess.preprocess import preprocess
from pipeline.runs.console import Console
from shards import ShardSet, verify

MakeConfig = Callable[..., Config]


def start(config: Config, log: Path) -> subprocess.Popen[bytes]:
    """The command line, as a user starts it, with Ray of its own."""
    path = config.folder.with_name(f"{config.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.model_dump_json())
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", "preprocess", str(path)],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def shards_committed(config: Config) -> dict[str, int]:
    """Time of change of each shard that lies whole in the staging folder, by name."""
    staging = config.folder / "shards.partial"
    return {
        path.name: path.stat().st_mtime_ns
        for index in staging.glob("index/*.parquet")
        for path in staging.glob(f"shard-{index.stem}.tar")
    }


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.02)


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def end(processes: list[psutil.Process]) -> None:
    """What a killed driver leaves of its own Ray."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


@pytest.mark.usefixtures("ray_cluster")
def test_whatever_is_killed_the_same_command_ends_with_the_same_digest(
    make_config: MakeConfig, tmp_path: Path, console: Console
) -> None:
    log = tmp_path / "log.txt"
    config = make_config(tmp_path / "killed", "data.samples_per_shard=5")
    kept: dict[str, int] = {}
    for victim in ("driver", "raylet"):
        process = start(config, log)
        if victim == "raylet":  # a worker before it: the command goes on without that one
            more = len(kept) + 1
            wait_for(lambda more=more: len(shards_committed(config)) >= more, process, log)
            os.kill(of_name(descendants(process.pid), "ray::MapBatches"), signal.SIGKILL)
            kept = shards_committed(config)
        more = len(kept) + 3
        wait_for(lambda more=more: len(shards_committed(config)) >= more, process, log)
        time.sleep(random.Random(victim).uniform(0.0, 0.3))
        assert kept.items() <= shards_committed(config).items(), "a shard was made again"
        started = descendants(process.pid)
        os.kill(process.pid if victim == "driver" else of_name(started, "raylet"), signal.SIGKILL)
        assert process.wait(timeout=120) != 0
        end(started)
        kept = shards_committed(config)
        assert not (config.folder / "shards").exists()

    assert not preprocess(config, console)["skipped"]
    done = {name: (config.folder / "shards" / name).stat().st_mtime_ns for name in kept}
    assert done == kept, "a shard was made again"

    whole = make_config(tmp_path / "whole", "data.samples_per_shard=5")
    assert ShardSet.open(config.folder / "shards").digest == preprocess(whole, console)["digest"]
    assert verify(config.folder / "shards") == []
    assert sorted(path.name for path in config.folder.iterdir()) == [
        "logs", "shards", "shards.sources.parquet", "stages",
    ]  # fmt: skip


def of_name(processes: list[psutil.Process], name: str) -> int:
    """The first that is called so; Ray's workers name themselves after their task."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == name or (process.cmdline()[:1] and name in process.cmdline()[0]):
                return process.pid
    raise AssertionError(f"no {name} among {processes}")
