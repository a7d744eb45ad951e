"""`perceiver bench shards`: its readers, and the link in front of the S3 server."""

import sys
import time
import urllib.request
from pathlib import Path

import pytest
from shard_server import ShardServer

from benchmarks import first_batch, readers
from benchmarks.first_batch import bench_first_batch
from benchmarks.loopback_store import LoopbackStore, child, proxy_command
from benchmarks.readers import Task
from benchmarks.reading import Row, make_set, measure, summary
from benchmarks.shards import RAW
from pipeline.cli.main import main
from pipeline.runs.console import Console

NUM_SAMPLES, PER_SHARD = 150, 40


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "set"
    make_set(folder, NUM_SAMPLES, PER_SHARD)
    return folder


def task(folder: Path, reader: str, decoder: str) -> Task:
    return Task(
        reader=reader, decoder=decoder, place=str(folder), copy="", cache="",
        num_samples=NUM_SAMPLES, limit=NUM_SAMPLES, per_shard=PER_SHARD,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reader", "decoder"), [("ours", "copies"), ("ours", "turbo"), ("webdataset", "pillow")]
)
def test_a_reader_reads_every_sample_and_is_timed(
    photographs: Path, reader: str, decoder: str
) -> None:
    found = readers.measure(task(photographs, reader, decoder))
    assert found["samples"] == NUM_SAMPLES
    assert 0 < found["first_batch_seconds"] <= found["seconds"]
    row = summary(Row(RAW, reader, task(photographs, reader, decoder)), [found])
    assert row["decoder"] == decoder and row["cpu_microseconds"] > 0


def test_the_row_of_a_peer_that_is_not_installed_says_so(photographs: Path) -> None:
    row = Row(RAW, "wids", task(photographs, "wids", "bytes"))
    found = measure(row, sys.executable, {})
    assert "wids cannot be imported" in found["missing"]
    assert "missing" in summary(row, [found]) and "rates" not in summary(row, [found])


def test_the_first_batch_is_timed_for_each_number_of_shards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(first_batch, "NUM_SHARDS", (1, 3))
    monkeypatch.setattr(first_batch, "SAMPLES_PER_SHARD", 70)
    monkeypatch.setattr(first_batch, "_READERS", {"ours": "ours", "wids": "wids"})
    rows = bench_first_batch(Console(), rounds=1, peers_python=None)["rows"]
    assert [(row["shards"], row["label"], "missing" in row) for row in rows] == [
        (1, "ours", False), (1, "wids", True), (3, "ours", False), (3, "wids", True),
    ]  # fmt: skip
    assert all(row["cpu_seconds"] > 0 < row["seconds"] for row in rows if row["label"] == "ours")


def test_the_link_delays_and_counts(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(100_000))
    with (
        ShardServer(tmp_path) as server,
        child(proxy_command(int(server.url.rpartition(":")[2]), 0.2, 1.0)) as port,
    ):
        started = time.perf_counter()
        for _ in range(2):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/a.tar") as answer:
                assert answer.read() == bytes(100_000)
        assert time.perf_counter() - started >= 2 * (0.2 + 0.1)  # 1 MB/s
        store = LoopbackStore(port, 0)
        assert store.counts() == (2, 200_000)
        assert store.counts() == (0, 0)


def test_the_servers_of_the_benchmark_end_with_it() -> None:
    with child(proxy_command(1, 0, 0)) as port:
        pass
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)


@pytest.mark.parametrize(
    ("words", "option", "measured"),
    [
        (["--first-batch", "--samples", "9"], "--samples", "--first-batch"),
        (["--first-batch", "--latency", "9"], "--latency", "--first-batch"),
        (["--remote", "--decoded", "9"], "--decoded", "--remote"),
        (["--link", "0"], "--link", "reading from a disk"),
    ],
)
def test_an_option_of_something_else_is_refused(
    words: list[str], option: str, measured: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "shards", *words]) == 2
    assert f"{option} changes nothing about {measured}; leave it out" in capsys.readouterr().err
