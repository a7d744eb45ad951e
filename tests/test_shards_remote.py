"""Shards at a URL: few large requests, retries, and one line of error when a request fails."""

import hashlib
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from remote_sets import NUM_SHARDS, QUICK, SHARD_SIZE, digest_of, expected, open_reader, read_epoch
from shard_server import ShardServer
from shard_sets import flip_bit
from torch.utils.data import DataLoader

from shards import ShardError, ShardReader, ShardSet, epoch_positions
from shards.loader import ShardLoader
from shards.location import Location

# --- requests ---


def test_an_epoch_by_windows_costs_a_few_large_requests_for_each_shard(
    remote_set: Path, set_server: ShardServer, tmp_path: Path
) -> None:
    order = read_epoch(open_reader(set_server.url, tmp_path), window=2)
    assert sorted(order) == list(range(NUM_SHARDS * SHARD_SIZE))
    assert order == read_epoch(ShardReader(ShardSet.open(remote_set), "train"), window=2)
    for number in range(NUM_SHARDS):
        tar = f"shard-{number:05d}.tar"
        assert set_server.requests[tar] == 2  # of 512 KiB at most
        assert set_server.bytes_sent[tar] == (remote_set / tar).stat().st_size
        assert set_server.requests[f"index/{number:05d}.parquet"] == 1


def test_the_next_window_is_fetched_while_this_one_is_read(
    set_server: ShardServer, tmp_path: Path
) -> None:
    reader = open_reader(set_server.url, tmp_path)
    options = {"seed": 0, "epoch": 0, "rank": 0, "world_size": 1, "batch_size": 16, "window": 2}
    reader.read_many(next(epoch_positions(reader, **options)))
    for _ in range(500):
        if set_server.tar_requests() >= 8:
            break
        threading.Event().wait(0.01)
    assert set_server.tar_requests() == 8  # four shards, and no more than two windows of two


def test_what_is_cached_is_not_asked_for_again(set_server: ShardServer, tmp_path: Path) -> None:
    read_epoch(open_reader(set_server.url, tmp_path), window=2)
    before = set_server.tar_requests()
    read_epoch(open_reader(set_server.url, tmp_path), window=3, epoch=1)
    assert set_server.tar_requests() == before


def test_samples_asked_for_together_are_fetched_in_one_request_where_they_are_near(
    set_server: ShardServer, tmp_path: Path
) -> None:
    reader = open_reader(set_server.url, tmp_path, request_cost=1)
    samples = reader.read_many(np.array([3, 85, 1, 84, 3]))
    assert [sample.index for sample in samples] == [3, 85, 1, 84, 3]
    for sample in samples:
        content = hashlib.sha256(sample.members["image.jpg"]).hexdigest()
        assert content == expected(sample.index)
    assert set_server.requests["shard-00000.tar"] == set_server.requests["shard-00002.tar"] == 1
    assert set_server.bytes_sent["shard-00002.tar"] == 2 * 20_992  # headers and padding, no more


def test_a_shard_read_piece_by_piece_is_soon_fetched_whole(
    set_server: ShardServer, tmp_path: Path
) -> None:
    reader = open_reader(set_server.url, tmp_path, request_cost=200_000)
    for number in range(SHARD_SIZE):
        assert digest_of(reader, number) == expected(number)
    assert set_server.requests["shard-00000.tar"] <= 3 + 2  # single ones, then the whole


def test_a_shard_larger_than_the_cache_is_read_by_ranges(
    set_server: ShardServer, tmp_path: Path
) -> None:
    reader = open_reader(set_server.url, tmp_path, cache_bytes=100_000)
    for number in range(SHARD_SIZE):
        assert digest_of(reader, number) == expected(number)
    assert set_server.requests["shard-00000.tar"] == SHARD_SIZE
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) == 0


# --- failures ---


@pytest.mark.parametrize("failure", [503, 429, 0, -1])
def test_failures_that_pass_are_tried_again(
    set_server: ShardServer, tmp_path: Path, failure: int
) -> None:
    reader = open_reader(set_server.url, tmp_path)
    set_server.fails = lambda path, times: failure if path.endswith("tar") and times < 3 else None
    assert len(read_epoch(reader, window=2)) == 240


def test_opening_a_set_is_tried_again(set_server: ShardServer, tmp_path: Path) -> None:
    set_server.fails = lambda path, times: 503 if times < 3 else None
    assert digest_of(open_reader(set_server.url, tmp_path), 3) == expected(3)


@pytest.mark.parametrize(("failure", "attempts"), [(503, 3), (0, 3), (-1, 3), (403, 1)])
@pytest.mark.parametrize("request_cost", [1, 1 << 30])
def test_failures_that_stay_name_the_url_and_the_sample(
    set_server: ShardServer, tmp_path: Path, failure: int, attempts: int, request_cost: int
) -> None:
    reader = open_reader(set_server.url, tmp_path, request_cost=request_cost)
    set_server.fails = lambda path, times: failure if path == "shard-00002.tar" else None
    with pytest.raises(ShardError) as caught:
        reader.read(83)
    message = str(caught.value)
    assert f"sample 's083' of {set_server.url}/shard-00002.tar" in message and "\n" not in message
    parts = 1 if request_cost == 1 else 2  # a whole shard's parts are requested in parallel
    assert attempts <= set_server.requests["shard-00002.tar"] <= parts * attempts
    assert (f"after {attempts} attempts" in message) == (attempts > 1)
    assert digest_of(reader, 3) == expected(3)
    set_server.fails = lambda path, times: None
    assert digest_of(reader, 83) == expected(83)  # and it is not given up for ever


def test_a_set_that_cannot_be_reached_says_so(remote_set: Path, tmp_path: Path) -> None:
    with ShardServer(remote_set) as server:
        reader = open_reader(server.url, tmp_path)
    for attempt in (lambda: ShardSet.open(Location(server.url, QUICK)), lambda: reader.read(0)):
        with pytest.raises(ShardError, match=r"http://127\.0\.0\.1.* cannot be read after 3 att"):
            attempt()
    with pytest.raises(ShardError, match="cannot be opened"):
        Location("nosuchscheme://bucket/set")


def test_a_tar_that_is_not_there_is_missing(set_server: ShardServer, tmp_path: Path) -> None:
    reader = open_reader(set_server.url, tmp_path)
    set_server.fails = lambda path, times: 404 if path.endswith("1.tar") else None
    with pytest.raises(ShardError, match=r"/shard-00001\.tar: missing, with sample 's041'"):
        reader.read(41)
    assert set_server.requests["shard-00001.tar"] <= 2  # its parts, once each


def test_a_server_without_ranges_is_refused(set_server: ShardServer, tmp_path: Path) -> None:
    set_server.knows_ranges = False
    with pytest.raises(ShardError, match="knows no ranges; copy the set"):
        open_reader(set_server.url, tmp_path).read(3)


def test_a_flipped_bit_on_the_way_is_found(remote_set: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "set"
    shutil.copytree(remote_set, damaged)
    flip_bit(damaged / "shard-00000.tar", 50_000)  # in sample 2
    with ShardServer(damaged) as server:
        by_ranges = open_reader(server.url, tmp_path / "a", request_cost=1)
        assert digest_of(by_ranges, 1) == expected(1)
        with pytest.raises(ShardError, match=r"shard-00000\.tar: sample 's002' has another sha256"):
            by_ranges.read(2)
        whole = open_reader(server.url, tmp_path / "b")
        with pytest.raises(ShardError, match=r"sample 's001' of .*shard-00000\.tar: .*sha256"):
            whole.read(1)
        assert digest_of(whole, 41) == expected(41)
        assert len(list((tmp_path / "b").glob("?" * 64))) == 1


# --- loaders ---


def _pixels(sample: Any) -> np.ndarray:
    return np.frombuffer(sample.members["image.jpg"], np.uint8)


@pytest.mark.parametrize("kind", ["alone", "forked"])
def test_a_loader_gives_what_it_gives_locally(
    remote_set: Path, set_server: ShardServer, tmp_path: Path, kind: str
) -> None:
    options: dict[str, Any] = {"batch_size": 16, "window": 2, "decode": _pixels}
    local = ShardLoader(ShardReader(ShardSet.open(remote_set), "train"), **options)
    remote = ShardLoader(open_reader(set_server.url, tmp_path), **options)
    batches: Any = remote
    if kind == "forked":
        next(iter(remote))  # its threads are running when the workers are forked
        remote.seek(0)
        batches = DataLoader(
            remote.stream(), batch_size=None, num_workers=2, multiprocessing_context="fork"
        )
    for one, other in zip(batches, local, strict=True):
        assert torch.equal(one.fields["inputs"], other.fields["inputs"])
        assert torch.equal(one.numbers, other.numbers)
    assert set_server.tar_requests() == 2 * NUM_SHARDS


def test_workers_read_whole_shards_too(set_server: ShardServer, tmp_path: Path) -> None:
    loader = ShardLoader(
        open_reader(set_server.url, tmp_path, request_cost=1),
        batch_size=16, window=2, decode=_pixels, num_workers=2,
    )  # fmt: skip
    read = torch.cat([batch.numbers for batch in loader])
    assert sorted(read.tolist()) == list(range(240))
    assert set_server.tar_requests() == 2 * NUM_SHARDS


# --- before whole shards are there ---


def test_the_first_batch_does_not_wait_for_whole_shards(
    set_server: ShardServer, tmp_path: Path
) -> None:
    reader = open_reader(set_server.url, tmp_path, early_share=1 / 2)
    whole_shards_may_come = threading.Event()

    set_server.delays = lambda size: size > 300_000 and whole_shards_may_come.wait(30)
    options = {"seed": 0, "epoch": 0, "rank": 0, "world_size": 1, "batch_size": 4, "window": 2}
    plan = epoch_positions(reader, **options)
    first = next(plan)
    for sample in reader.read_many(first):
        content = hashlib.sha256(sample.members["image.jpg"]).hexdigest()
        assert content == expected(sample.index)
    assert list(tmp_path.glob("?" * 64)) == []
    whole_shards_may_come.set()
    rest = [sample.index for numbers in plan for sample in reader.read_many(numbers)]
    assert sorted([*first.tolist(), *rest]) == list(range(240))
    for number in range(NUM_SHARDS):
        sent = set_server.bytes_sent[f"shard-{number:05d}.tar"]
        size = SHARD_SIZE * 20_992 + 1024
        assert size <= sent <= size * (1 + 1 / 2)


def test_whole_shards_are_fetched_after_the_first_read_or_a_second_announcement(
    set_server: ShardServer, tmp_path: Path
) -> None:
    for number, goes_on in enumerate(
        (lambda reader: reader.read(0), lambda reader: reader.read_ahead([0], [1]))
    ):
        reader = open_reader(set_server.url, tmp_path / str(number), early_share=1 / 2)
        before = set_server.tar_requests()
        reader.read_ahead([0], [1])
        assert set_server.tar_requests() == before
        goes_on(reader)
        for _ in range(500):
            if len(list((tmp_path / str(number)).glob("?" * 64))) == 2:
                break
            threading.Event().wait(0.01)
        assert len(list((tmp_path / str(number)).glob("?" * 64))) == 2


def test_the_parts_of_one_shard_are_requested_in_parallel(
    set_server: ShardServer, tmp_path: Path
) -> None:
    reader = open_reader(set_server.url, tmp_path, request_bytes=100_000, num_threads=4)
    together = threading.Barrier(4)
    set_server.delays = lambda size: size > 90_000 and together.wait(10)
    reader.read_ahead([2], [])
    assert digest_of(reader, 2 * SHARD_SIZE) == expected(2 * SHARD_SIZE)
    assert set_server.requests["shard-00002.tar"] == 9  # the last part is shorter
