"""Shards behind a URL: few large requests, a bounded cache, and a clear word when all fails."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_server import ShardServer
from shard_sets import flip_bit
from torch.utils.data import DataLoader

from shards import Sample, ShardError, ShardReader, ShardSet, epoch_positions, publish, write_shard
from shards.cache import NoRoomError, ShardCache
from shards.loader import ShardLoader
from shards.location import Location, Retry
from shards.remote_tars import RemoteReading, default_cache_folder

NUM_SHARDS, SHARD_SIZE = 6, 40
QUICK = Retry(attempts=3, first_delay=0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 samples of some 20 kB in 6 shards of some 840 kB."""
    root = tmp_path_factory.mktemp("remote")
    for shard in range(NUM_SHARDS):
        numbers = range(shard * SHARD_SIZE, (shard + 1) * SHARD_SIZE)
        write_shard(root / "staging", shard, "train", map(make_sample, numbers))
    publish(
        root / "staging", root / "set", numbers=range(NUM_SHARDS), config={}, input_digest="",
        classes=(),
    )  # fmt: skip
    return root / "set"


def make_sample(number: int) -> Sample:
    pixels = np.random.default_rng(number).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    return Sample(f"s{number:03d}", {"image.jpg": pixels}, None, f"raw/{number}.jpg", "0" * 64)


@pytest.fixture
def server(folder: Path) -> Iterator[ShardServer]:
    with ShardServer(folder) as server:
        yield server


def open_reader(url: str, cache: Path, **options: Any) -> ShardReader:
    reading = RemoteReading(cache_folder=cache, **({"request_bytes": 1 << 19} | options))
    return ShardReader(ShardSet.open(Location(url, QUICK)), "train", remote=reading)


def digest_of(reader: ShardReader, number: int) -> str:
    return hashlib.sha256(reader.read(number).members["image.jpg"]).hexdigest()


def expected(number: int) -> str:
    return hashlib.sha256(make_sample(number).members["image.jpg"]).hexdigest()


def read_epoch(reader: ShardReader, **options: Any) -> list[int]:
    """Reads an epoch in batches of 16, checks every sample, and gives their order."""
    order = []
    where = {"seed": 0, "epoch": 0, "rank": 0, "world_size": 1, "batch_size": 16}
    for numbers in epoch_positions(reader, **(where | options)):
        for sample in reader.read_many(numbers):
            order.append(sample.index)
            content = hashlib.sha256(sample.members["image.jpg"]).hexdigest()
            assert content == expected(sample.index)
    return order


# --- requests ---


def test_an_epoch_by_windows_costs_a_few_large_requests_for_each_shard(
    folder: Path, server: ShardServer, tmp_path: Path
) -> None:
    order = read_epoch(open_reader(server.url, tmp_path), window=2)
    assert sorted(order) == list(range(NUM_SHARDS * SHARD_SIZE))
    assert order == read_epoch(ShardReader(ShardSet.open(folder), "train"), window=2)
    for number in range(NUM_SHARDS):
        tar = f"shard-{number:05d}.tar"
        assert server.requests[tar] == 2  # of 512 KiB at most
        assert server.bytes_sent[tar] == (folder / tar).stat().st_size
        assert server.requests[f"index/{number:05d}.parquet"] == 1


def test_the_next_window_is_fetched_while_this_one_is_read(
    server: ShardServer, tmp_path: Path
) -> None:
    reader = open_reader(server.url, tmp_path)
    options = {"seed": 0, "epoch": 0, "rank": 0, "world_size": 1, "batch_size": 16, "window": 2}
    reader.read_many(next(epoch_positions(reader, **options)))
    for _ in range(500):
        if server.tar_requests() >= 8:
            break
        threading.Event().wait(0.01)
    assert server.tar_requests() == 8  # four shards, and no more than two windows of two


def test_what_is_cached_is_not_asked_for_again(server: ShardServer, tmp_path: Path) -> None:
    read_epoch(open_reader(server.url, tmp_path), window=2)
    before = server.tar_requests()
    read_epoch(open_reader(server.url, tmp_path), window=3, epoch=1)
    assert server.tar_requests() == before


def test_samples_asked_for_together_are_fetched_in_one_request_where_they_are_near(
    server: ShardServer, tmp_path: Path
) -> None:
    reader = open_reader(server.url, tmp_path, request_cost=1)
    samples = reader.read_many(np.array([3, 85, 1, 84, 3]))
    assert [sample.index for sample in samples] == [3, 85, 1, 84, 3]
    for sample in samples:
        content = hashlib.sha256(sample.members["image.jpg"]).hexdigest()
        assert content == expected(sample.index)
    assert server.requests["shard-00000.tar"] == server.requests["shard-00002.tar"] == 1
    assert server.bytes_sent["shard-00002.tar"] == 2 * 20_992  # headers and padding, no more


def test_a_shard_read_piece_by_piece_is_soon_fetched_whole(
    server: ShardServer, tmp_path: Path
) -> None:
    reader = open_reader(server.url, tmp_path, request_cost=200_000)
    for number in range(SHARD_SIZE):
        assert digest_of(reader, number) == expected(number)
    assert server.requests["shard-00000.tar"] <= 3 + 2  # single ones, then the whole


def test_a_shard_larger_than_the_cache_is_read_by_ranges(
    server: ShardServer, tmp_path: Path
) -> None:
    reader = open_reader(server.url, tmp_path, cache_bytes=100_000)
    for number in range(SHARD_SIZE):
        assert digest_of(reader, number) == expected(number)
    assert server.requests["shard-00000.tar"] == SHARD_SIZE
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) == 0


# --- failures ---


@pytest.mark.parametrize("failure", [503, 429, 0, -1])
def test_failures_that_pass_are_tried_again(
    server: ShardServer, tmp_path: Path, failure: int
) -> None:
    reader = open_reader(server.url, tmp_path)
    server.fails = lambda path, times: failure if path.endswith("tar") and times % 3 else None
    assert len(read_epoch(reader, window=2)) == 240


def test_opening_a_set_is_tried_again(server: ShardServer, tmp_path: Path) -> None:
    server.fails = lambda path, times: 503 if times % 3 else None
    assert digest_of(open_reader(server.url, tmp_path), 3) == expected(3)


@pytest.mark.parametrize(("failure", "attempts"), [(503, 3), (0, 3), (-1, 3), (403, 1)])
@pytest.mark.parametrize("request_cost", [1, 1 << 30])
def test_failures_that_stay_name_the_url_and_the_sample(
    server: ShardServer, tmp_path: Path, failure: int, attempts: int, request_cost: int
) -> None:
    reader = open_reader(server.url, tmp_path, request_cost=request_cost)
    server.fails = lambda path, times: failure if path == "shard-00002.tar" else None
    with pytest.raises(ShardError) as caught:
        reader.read(83)
    message = str(caught.value)
    assert f"sample 's083' of {server.url}/shard-00002.tar" in message and "\n" not in message
    assert server.requests["shard-00002.tar"] == attempts
    assert (f"after {attempts} attempts" in message) == (attempts > 1)
    assert digest_of(reader, 3) == expected(3)
    server.fails = lambda path, times: None
    assert digest_of(reader, 83) == expected(83)  # and it is not given up for ever


def test_a_set_that_cannot_be_reached_says_so(folder: Path, tmp_path: Path) -> None:
    with ShardServer(folder) as server:
        reader = open_reader(server.url, tmp_path)
    for attempt in (lambda: ShardSet.open(Location(server.url, QUICK)), lambda: reader.read(0)):
        with pytest.raises(ShardError, match=r"http://127\.0\.0\.1.* cannot be read after 3 att"):
            attempt()
    with pytest.raises(ShardError, match="cannot be opened"):
        Location("nosuchscheme://bucket/set")


def test_a_tar_that_is_not_there_is_missing(server: ShardServer, tmp_path: Path) -> None:
    reader = open_reader(server.url, tmp_path)
    server.fails = lambda path, times: 404 if path.endswith("1.tar") else None
    with pytest.raises(ShardError, match=r"/shard-00001\.tar: missing, with sample 's041'"):
        reader.read(41)
    assert server.requests["shard-00001.tar"] == 1


def test_a_server_without_ranges_is_refused(server: ShardServer, tmp_path: Path) -> None:
    server.knows_ranges = False
    with pytest.raises(ShardError, match="knows no ranges; copy the set"):
        open_reader(server.url, tmp_path).read(3)


def test_a_flipped_bit_on_the_way_is_found(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "set"
    shutil.copytree(folder, damaged)
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


# --- the cache ---


def test_the_cache_stays_within_its_bytes_and_the_longest_unused_go_first(
    folder: Path, server: ShardServer, tmp_path: Path
) -> None:
    size = (folder / "shard-00000.tar").stat().st_size
    reader = open_reader(server.url, tmp_path, cache_bytes=4 * size)
    cache = ShardCache(tmp_path, 4 * size)
    for epoch in range(2):
        for numbers in epoch_positions(
            reader, seed=0, epoch=epoch, rank=0, world_size=1, batch_size=16, window=2
        ):
            reader.read_many(numbers)
            assert cache.total_bytes() <= 4 * size
    sha256s = reader.shard_set.shard_table["sha256"].to_pylist()
    del reader
    kept = [n for n in range(NUM_SHARDS) if (tmp_path / sha256s[n]).exists()]
    assert len(kept) == 4
    cache.open(sha256s[kept[0]], size)  # used last
    lost = next(n for n in range(NUM_SHARDS) if n not in kept)
    data = (folder / f"shard-{lost:05d}.tar").read_bytes()
    cache.add(sha256s[lost], size, iter([data]))
    assert (tmp_path / sha256s[kept[0]]).exists() and cache.total_bytes() == 4 * size


def blob(number: int) -> tuple[str, bytes]:
    data = bytes([number]) * 10_000
    return hashlib.sha256(data).hexdigest(), data


def test_the_least_recently_used_file_is_evicted_first(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 30_000)
    for number in range(3):
        cache.add(*stored(number))
        os.utime(tmp_path / blob(number)[0], (number, number))
    assert cache.open(blob(0)[0], 10_000) == blob(0)[1]  # so it is the last one used, by far
    for new, evicted in ((3, 1), (4, 2), (5, 0)):
        cache.add(*stored(new))
        os.utime(tmp_path / blob(new)[0], (2**32 + new, 2**32 + new))
        there = [number for number in range(new + 1) if (tmp_path / blob(number)[0]).exists()]
        assert evicted not in there and len(there) == 3, (new, there)


def stored(number: int) -> tuple[str, int, Iterator[bytes]]:
    """The arguments of `add` for a blob."""
    sha256, data = blob(number)
    return sha256, len(data), iter([data])


def test_what_is_in_use_is_not_evicted(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 25_000)
    held = []
    for number in range(2):
        sha256, data = blob(number)
        held.append(cache.add(sha256, 10_000, iter([data[:4000], data[4000:]])))
    sha256, data = blob(2)
    with pytest.raises(NoRoomError, match="full of shards in use"):
        cache.add(sha256, 10_000, iter([data]))
    del held[1]
    part = ShardCache(tmp_path, 25_000).open(blob(1)[0], 10_000)[10:20]  # another reader, say
    with pytest.raises(NoRoomError):
        cache.add(sha256, 10_000, iter([data]))
    assert bytes(part) == bytes([1]) * 10
    del part
    assert cache.add(sha256, 10_000, iter([data])) == data
    assert (
        cache.open(*[blob(0)[0], 10_000]) == blob(0)[1] and cache.open(blob(1)[0], 10_000) is None
    )


def test_wrong_content_never_appears_in_the_cache(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 25_000)
    sha256, data = blob(0)
    for wrong in (data[:-1], data + b"x", data[:-1] + b"x"):
        with pytest.raises(ShardError, match="sha256"):
            cache.add(sha256, 10_000, iter([wrong]))
    assert cache.total_bytes() == 0
    cache.add(sha256, 10_000, iter([data]))
    (tmp_path / sha256).write_bytes(data[:500])  # a crash of the machine, say
    assert cache.open(sha256, 10_000) is None
    assert bytes(cache.add(sha256, 10_000, iter([data]))) == data
    assert bytes(cache.open(sha256, 10_000) or b"") == data


def test_a_cache_that_cannot_be_written_says_so(server: ShardServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ShardError, match=r"cannot keep shards .*choose another folder"):
        open_reader(server.url, tmp_path / "file" / "cache").read(0)


def test_a_window_that_does_not_fit_is_refused(server: ShardServer, tmp_path: Path) -> None:
    reader = open_reader(server.url, tmp_path, cache_bytes=1_000_000)
    with pytest.raises(ShardError, match="a window of 2 shards takes"):
        read_epoch(reader, window=2)
    assert len(read_epoch(reader, window=1)) == 240


def _read_all(url: str, cache: Path) -> None:
    read_epoch(open_reader(url, cache), window=3)


def test_processes_share_a_cache_and_fetch_each_shard_once(
    folder: Path, server: ShardServer, tmp_path: Path
) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_read_all, args=(server.url, tmp_path)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for number in range(NUM_SHARDS):
        tar = f"shard-{number:05d}.tar"
        assert server.bytes_sent[tar] == (folder / tar).stat().st_size


def _die_while_writing(cache: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield blob(0)[1][:100]
        os.kill(os.getpid(), signal.SIGKILL)

    ShardCache(cache, 25_000).add(blob(0)[0], 10_000, chunks())


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_die_while_writing, args=(tmp_path,)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    cache = ShardCache(tmp_path, 25_000)
    assert cache.total_bytes() == 10_000
    cache.add(blob(0)[0], 10_000, iter([blob(0)[1]]))
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [blob(0)[0]]


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERCEIVER_CACHE", "/scratch/shards")
    assert default_cache_folder() == Path("/scratch/shards")
    monkeypatch.delenv("PERCEIVER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache_folder() == Path("/caches/perceiver/shards")
    for wrong in ("cache_bytes", "request_bytes", "num_threads", "request_cost"):
        with pytest.raises(ShardError, match=wrong):
            RemoteReading(**{wrong: 0})


# --- loaders ---


def _pixels(sample: Any) -> np.ndarray:
    return np.frombuffer(sample.members["image.jpg"], np.uint8)


@pytest.mark.parametrize("kind", ["alone", "forked"])
def test_a_loader_gives_what_it_gives_locally(
    folder: Path, server: ShardServer, tmp_path: Path, kind: str
) -> None:
    options: dict[str, Any] = {"batch_size": 16, "window": 2, "decode": _pixels}
    local = ShardLoader(ShardReader(ShardSet.open(folder), "train"), **options)
    remote = ShardLoader(open_reader(server.url, tmp_path), **options)
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
    assert server.tar_requests() == 2 * NUM_SHARDS


def test_workers_read_whole_shards_too(server: ShardServer, tmp_path: Path) -> None:
    loader = ShardLoader(
        open_reader(server.url, tmp_path, request_cost=1),
        batch_size=16, window=2, decode=_pixels, num_workers=2,
    )  # fmt: skip
    read = torch.cat([batch.numbers for batch in loader])
    assert sorted(read.tolist()) == list(range(240))
    assert server.tar_requests() == 2 * NUM_SHARDS
