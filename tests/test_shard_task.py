"""Shards from files that a disk or a network gives, gives late, or does not give at all."""

import errno
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from photos import encoded
from PIL import Image
from shard_server import ShardServer
from source_trees import data_config, make_tar

from pipeline.config.tree import Config
from pipeline.media import MediaError
from pipeline.preprocess import shard_task
from pipeline.preprocess.identity import sandbox_settings
from pipeline.preprocess.shard_task import READ_AHEAD, READ_AHEAD_BYTES, TOGETHER_BYTES, ShardTask
from pipeline.preprocess.sources import Reach, SourceRow, list_sources, write_plan
from pipeline.preprocess.sources.parts import SourceFile
from shards import Quarantined, read_committed, read_quarantine
from shards.retries import Retry
from shards.staging import FolderStaging
from shards.writer import read_index


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        "pipeline.preprocess.sources.parts.RETRY", Retry(attempts=3, first_delay=0.01)
    )
    close_sandboxes()
    yield
    close_sandboxes()


def close_sandboxes() -> None:
    for sandbox in shard_task._sandboxes.values():
        sandbox.close()
    shard_task._sandboxes.clear()


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(Image.new("RGB", (8, 8), (90, 40, 10)), "PNG"))
    return path


def of_files(folder: Path, *files: str, allow: tuple[str, ...] = ()) -> Config:
    """A configuration of a listing that names these files, in two classes."""
    lines = [f"{name},{'xy'[number % 2]}\n" for number, name in enumerate(files)]
    (folder / "rows.csv").write_text("".join(["file,kind\n", *lines]))
    return data_config(
        folder / "rows.csv", columns={"image": "file"}, target={"column": "kind"}, allow=allow
    )


def planned(config: Config, folder: Path) -> ShardTask:
    """The task that makes all of it one shard."""
    source_table = list_sources(config)
    plan = folder / "work" / "plan.parquet"
    return ShardTask(
        num_new=write_plan(source_table, plan, 100),
        plan=str(plan),
        staging=FolderStaging(plan.with_name("staging"), plan.with_name("set")),
        reaches=source_table.reaches,
        media=sandbox_settings(config.data, source_table.classes, {}),
        limits={"seconds": 60.0, "memory_bytes": 2 << 30},
    )


def made(task: ShardTask) -> tuple[set[str], dict[str, Quarantined]]:
    """The sources that gave samples, and those that gave none."""
    assert task({"id": np.array([0])})["error"] == [None]
    staging = task.staging.folder
    index = read_index(staging, 0)
    assert index is not None
    aside = staging / "quarantine" / "00000.parquet"
    rows = read_quarantine(aside) if aside.exists() else []
    return set(index.source_uris.to_pylist()), {row.source_uri: row for row in rows}


def test_what_a_network_does_not_give_is_set_aside_with_a_reason_that_names_no_place(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    picture(tmp_path / "web" / "c.png")
    picture(tmp_path / "web" / "broken.png")
    with ShardServer(tmp_path / "web") as server:
        server.fails = lambda path, times: 500 if path == "broken.png" else None
        names = [
            "a.png", "b.png", f"{server.url}/c.png", f"{server.url}/broken.png",
            f"{server.url}/none.png", "memory://shard-task/none.png",
        ]  # fmt: skip
        allow = (server.url, "memory://shard-task")
        good, bad = made(planned(of_files(tmp_path, *names, allow=allow), tmp_path))
    assert good == {f"train/{name}" for name in names[:3]}
    assert {uri: row.reason for uri, row in bad.items()} == {
        f"train/{names[3]}": "cannot be read (ClientResponseError)",
        f"train/{names[4]}": "no such file",
        f"train/{names[5]}": "no such file",
    }
    assert all("/" not in row.traceback for row in bad.values())


def test_what_a_network_gives_late_is_in_the_set(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "web" / "b.png")
    with ShardServer(tmp_path / "web") as server:
        server.fails = lambda path, times: {1: 503, 2: 0}.get(times)
        good, bad = made(
            planned(
                of_files(tmp_path, "a.png", f"{server.url}/b.png", allow=(server.url,)), tmp_path
            )
        )
    assert good == {"train/a.png", f"train/{server.url}/b.png"} and bad == {}


def tar_at(server: ShardServer, folder: Path) -> ShardTask:
    """The task of a tar of two samples, read over the network."""
    data = picture(folder / "a.png").read_bytes()
    members = {"0.png": data, "0.cls": b"0", "1.png": data, "1.cls": b"1"}
    task = planned(data_config(make_tar(folder / "web" / "a.tar", members)), folder)
    return replace(task, reaches={"train": Reach(server.url, confined=False)})


def test_a_range_of_a_tar_that_is_cut_short_is_asked_for_again(tmp_path):
    with ShardServer(tmp_path / "web") as server:
        server.fails = lambda path, times: -1 if times == 1 else None
        good, bad = made(tar_at(server, tmp_path))
        assert server.requests["a.tar"] == 3
    assert good == {"train/a.tar/0", "train/a.tar/1"} and bad == {}


def test_a_range_that_stays_short_is_set_aside(tmp_path):
    with ShardServer(tmp_path / "web") as server:
        server.fails = lambda path, times: -1
        good, bad = made(tar_at(server, tmp_path))
    size = (tmp_path / "a.png").stat().st_size
    assert good == set() and bad.keys() == {"train/a.tar/0", "train/a.tar/1"}
    reasons = {row.reason for row in bad.values()}
    assert reasons == {f"{size // 2} bytes came where {size} of a tar were asked for"}


def test_a_file_that_went_since_it_was_listed_is_told_in_the_systems_words(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    task = planned(of_files(tmp_path, "a.png", "b.png", "c.png"), tmp_path)
    (tmp_path / "b.png").unlink()
    good, bad = made(task)
    assert good == {"train/a.png", "train/c.png"}
    assert bad["train/b.png"].reason == os.strerror(errno.ENOENT)


def test_a_machine_that_starts_no_decoder_ends_the_run_and_blames_no_file(tmp_path, monkeypatch):
    def no_memory(*args, **options):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    task = planned(of_files(tmp_path, "a.png", "b.png"), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", no_memory)
        (message,) = task({"id": np.array([0])})["error"]
    assert (
        message.endswith(f": no child started: {os.strerror(errno.ENOMEM)}") and "\n" not in message
    )
    assert read_committed(task.staging.folder, 0) is None
    assert len(made(task)[0]) == 2


@pytest.mark.parametrize(
    ("root", "size", "at_once"),
    [
        ("/data", 1000, {1}),  # all in one go
        ("/data", TOGETHER_BYTES, {2}),
        ("/data", TOGETHER_BYTES // 20, {2}),
        ("http://data", 1000, set(range(3, READ_AHEAD + 1))),
        ("http://data", READ_AHEAD_BYTES, {1}),
        ("http://data", -1, {2, 3, 4}),
    ],
)
def test_sources_are_read_ahead_in_order_and_within_bounds(root, size, at_once, monkeypatch):
    rows = [
        SourceRow(
            "train", f"train/{n}", None, None, (SourceFile("image", f"{n}", None, None, size, ""),)
        )
        for n in range(40)
    ]
    reading: set[str] = set()
    most = 0

    def read(row, root):
        nonlocal most
        reading.add(row.uri)
        most = max(most, len(reading))
        time.sleep(0.01)
        reading.remove(row.uri)
        return {}, row.uri

    monkeypatch.setattr(shard_task, "_read", read)
    found = list(shard_task.read_ahead(rows, {"train": Reach(root)}))
    assert [(row, source) for row, source in found] == [(row, ({}, row.uri)) for row in rows]
    assert most in at_once


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's layers are Linux's")
@pytest.mark.parametrize("required", [False, True])
def test_a_machine_without_a_layer_says_so_with_its_shards_or_refuses(tmp_path, required):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    task = planned(of_files(tmp_path, "a.png", "b.png"), tmp_path)
    task = replace(task, limits={**task.limits, "required": required})
    program = f"""
import json
import pickle
import numpy as np
from sandbox_parent import block
block(["landlock", "namespaces"])
task = pickle.loads({pickle.dumps(task)!r})
result = task({{"id": np.array([0])}})
print(json.dumps({{name: result[name] for name in ("error", "lacking")}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (error,), (lacking,) = result["error"], result["lacking"]
    assert lacking.startswith(f"{socket.gethostname()}: reading (Landlock: Function not impl")
    if required:
        assert error.startswith("the sandbox of decoders is required, but") and "reading" in error
        assert not list((tmp_path / "work" / "staging").glob("*.tar"))
    else:
        assert error is None and len(read_index(task.staging.folder, 0).source_uris) == 2


def test_files_of_a_shard_that_an_interrupted_run_finished_are_not_counted_as_read(
    tmp_path: Path,
) -> None:
    # They would make the rate of the resumed run's bar a false one.
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    task = planned(of_files(tmp_path, "a.png", "b.png", "c.png"), tmp_path)
    first = task({"id": np.array([0])})
    again = task({"id": np.array([0])})
    assert (first["files"], first["kept"]) == ([3], [0])
    assert (again["files"], again["kept"]) == ([0], [3])


def test_a_source_that_fails_after_its_first_samples_keeps_them_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutFilm:
        """A decoder that finds the damage only after two samples."""

        known_protections = None

        def run(self, contents: object, values: object) -> Iterator[dict[str, bytes]]:
            yield {"image.npy": b"1"}
            yield {"image.npy": b"2"}
            raise MediaError("the film is cut short")

    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    task = planned(of_files(tmp_path, "a.png", "b.png"), tmp_path)
    monkeypatch.setattr(shard_task, "_sandbox", lambda *_: CutFilm())
    there, aside = made(task)
    assert there == {"train/a.png", "train/b.png"}
    assert {row.reason for row in aside.values()} == {
        "the film is cut short (after 2 samples, which are in the set)"
    }
