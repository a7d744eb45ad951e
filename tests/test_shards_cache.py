"""The cache of remote shards: its size, eviction, damaged files, and several processes."""

import hashlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from remote_sets import NUM_SHARDS, open_reader, read_epoch
from shard_server import ShardServer

from pipeline.config.data import DataConfig
from pipeline.media.image.decode import ImageFormat
from shards import ShardError, ShardReader, ShardSet, epoch_positions
from shards.cache import NoRoomError, ShardCache
from shards.remote_tars import RemoteReading, default_cache_folder


def test_the_cache_stays_within_its_bytes_and_the_longest_unused_go_first(
    remote_set: Path, set_server: ShardServer, tmp_path: Path
) -> None:
    size = (remote_set / "shard-00000.tar").stat().st_size
    reader = open_reader(set_server.url, tmp_path, cache_bytes=4 * size)
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
    data = (remote_set / f"shard-{lost:05d}.tar").read_bytes()
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


def test_threads_that_write_at_once_keep_within_the_bytes(tmp_path: Path) -> None:
    """A listing of the folder may miss a file that another thread renames meanwhile."""
    cache = ShardCache(tmp_path, 20_000)

    def write(thread: int) -> None:
        for number in range(200):
            data = f"{thread} {number}".encode().ljust(1_000)
            with suppress(NoRoomError):
                cache.add(hashlib.sha256(data).hexdigest(), len(data), iter([data]))

    most = 0
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, thread) for thread in range(4)]
        while not all(each.done() for each in writing):
            if (tmp_path / "locks" / "evict").exists():
                most = max(most, cache.total_bytes())
        for each in writing:
            each.result()
    assert most == 20_000


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


def test_a_cache_that_cannot_be_written_says_so(set_server: ShardServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ShardError, match=r"cannot keep shards .*choose another folder"):
        open_reader(set_server.url, tmp_path / "file" / "cache").read(0)


def test_a_window_that_does_not_fit_is_refused(set_server: ShardServer, tmp_path: Path) -> None:
    reader = open_reader(set_server.url, tmp_path, cache_bytes=1_000_000)
    with pytest.raises(ShardError, match="a window of 2 shards takes"):
        read_epoch(reader, window=2)
    assert len(read_epoch(reader, window=1)) == 240


def _read_all(url: str, cache: Path) -> None:
    read_epoch(open_reader(url, cache), window=3)


def test_processes_share_a_cache_and_fetch_each_shard_once(
    remote_set: Path, set_server: ShardServer, tmp_path: Path
) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_read_all, args=(set_server.url, tmp_path)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for number in range(NUM_SHARDS):
        tar = f"shard-{number:05d}.tar"
        assert set_server.bytes_sent[tar] == (remote_set / tar).stat().st_size


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


def test_the_cache_of_a_training_is_that_of_its_configuration(
    remote_set: Path, set_server: ShardServer, tmp_path: Path
) -> None:
    data = DataConfig(
        train="photos",
        image=ImageFormat(height=8, width=8),
        cache_folder=str(tmp_path),
        cache_gigabytes=0.01,
    )
    reading = replace(data.remote_reading, early_share=0.0)
    shard_set = ShardSet.open(set_server.url, reading)
    elsewhere = pickle.loads(pickle.dumps(shard_set))  # as another process opens it
    reader = ShardReader(elsewhere, "train")
    reader.read_ahead([0], [])
    reader.read(0)
    assert (tmp_path / elsewhere.shard_table["sha256"][0].as_py()).exists()
    reader = ShardReader(ShardSet.open(set_server.url, replace(reading, cache_bytes=9)), "train")
    with pytest.raises(ShardError, match="allow it more"):
        reader.read_ahead([0], [])
