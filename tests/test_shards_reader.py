"""Any sample by its number, locally and behind a URL, and a clear word where it cannot be read."""

import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from shard_sets import (
    flip_bit,
    make_sample,
    make_set,
    make_sized_set,
    publish_staged,
    stage,
    upload,
)

from shards import (
    RawSample,
    Sample,
    ShardError,
    ShardReader,
    ShardSet,
    decode_npy,
    epoch_positions,
    publish,
    verify,
    write_shard,
)
from shards.location import Location

TRAIN = [0, 1, 2, 3, 4, 8, 9, 10, 11]


@pytest.fixture(params=["local", "memory"])
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A set in a local folder, and in fsspec's memory file system."""
    make_set(tmp_path / "set")
    return upload(tmp_path / "set") if request.param == "memory" else str(tmp_path / "set")


def assert_is(read: RawSample, index: int, number: int) -> None:
    written = make_sample(number)
    assert {name: bytes(member) for name, member in read.members.items()} == written.members
    assert (read.key, read.target, read.source_uri) == (
        written.key,
        written.target,
        written.source_uri,
    )
    assert read.index == index


def test_every_sample_comes_back_as_it_was_written(url: str) -> None:
    reader = ShardReader(ShardSet.open(url), "train")
    assert len(reader) == len(TRAIN)
    for index in reversed(range(len(reader))):
        assert_is(reader.read(index), index, TRAIN[index])
    for outside in (-1, len(reader)):
        with pytest.raises(IndexError):
            reader.read(outside)


def test_a_set_behind_a_url_verifies(url: str) -> None:
    assert verify(url) == []


def test_samples_stay_valid_when_their_tar_is_let_go(url: str) -> None:
    reader = ShardReader(ShardSet.open(url), "train", max_open_tars=1, max_index_bytes=1)
    held = [reader.read(index) for index in (0, 8, 1, 7)]
    for sample, index in zip(held, (0, 8, 1, 7), strict=True):
        assert_is(sample, index, TRAIN[index])


def test_local_members_are_views_of_the_tar(tmp_path: Path) -> None:
    make_set(tmp_path / "set")
    reader = ShardReader(ShardSet.open(tmp_path / "set"), "train")
    image = decode_npy(reader.read(2).members["image.npy"])
    again = decode_npy(reader.read(2).members["image.npy"])
    assert image.ctypes.data == again.ctypes.data
    assert not image.flags.writeable


def test_a_reader_crosses_to_a_worker_process(url: str) -> None:
    reader = ShardReader(ShardSet.open(url), "train", max_open_tars=2)
    reader.read(0)
    copy = pickle.loads(pickle.dumps(reader))
    assert_is(copy.read(8), 8, 11)


def test_a_lost_tar_names_shard_and_sample_and_the_rest_is_read(tmp_path: Path) -> None:
    make_set(tmp_path / "set")
    (tmp_path / "set" / "shard-00000.tar").unlink()
    reader = ShardReader(ShardSet.open(tmp_path / "set"), "train")
    with pytest.raises(ShardError, match=r"shard-00000\.tar: missing, with sample 'sample-001'"):
        reader.read(1)
    assert_is(reader.read(5), 5, 8)


def test_a_tar_cut_short_loses_only_what_was_cut(tmp_path: Path) -> None:
    make_set(tmp_path / "set")
    tar = tmp_path / "set" / "shard-00000.tar"
    tar.write_bytes(tar.read_bytes()[:6000])
    reader = ShardReader(ShardSet.open(tmp_path / "set"), "train")
    assert_is(reader.read(0), 0, 0)
    with pytest.raises(ShardError, match=r"shard-00000\.tar: cut short, sample 'sample-004'"):
        reader.read(4)
    tar.write_bytes(b"")
    with pytest.raises(ShardError, match="cut short"):
        ShardReader(ShardSet.open(tmp_path / "set"), "train").read(0)


def test_a_damaged_or_lost_index_is_never_believed(tmp_path: Path) -> None:
    make_set(tmp_path / "set")
    index = tmp_path / "set" / "index" / "00000.parquet"
    flip_bit(index, 200)
    reader = ShardReader(ShardSet.open(tmp_path / "set"), "train")
    with pytest.raises(ShardError, match=r"index/00000\.parquet: sha256 differs"):
        reader.read(0)
    index.unlink()
    with pytest.raises(ShardError, match=r"index/00000\.parquet: missing"):
        reader.read(0)


def test_many_samples_come_in_the_order_asked_for(url: str) -> None:
    reader = ShardReader(ShardSet.open(url), "train")
    wanted = [8, 0, 5, 0, 3, 4]
    read = reader.read_many(np.array(wanted))
    for sample, index in zip(read, wanted, strict=True):
        assert_is(sample, index, TRAIN[index])
    assert list(reader.read_many(np.array([], dtype=np.int64))) == []
    for outside in (-1, 9):
        with pytest.raises(IndexError, match=f"sample {outside} of 9"):
            reader.read_many(np.array([1, outside]))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_open_files_are_bounded_even_when_all_samples_are_held(tmp_path: Path) -> None:
    reader = make_sized_set(tmp_path / "set", [2] * 40)
    reader = ShardReader(reader.shard_set, "train", max_open_tars=8, max_index_bytes=1000)
    before = open_files()
    for _ in range(3):
        held = reader.read_many(np.arange(80))
        assert open_files() - before <= 8
        assert [decode_npy(sample.members["number.npy"])[0] for sample in held] == list(range(80))
        assert [sample.key for sample in held] == [f"sample-{number:05d}" for number in range(80)]
        del held
        for number in range(79, -1, -1):
            reader.read(number)
            assert open_files() - before <= 8
    del reader
    assert open_files() <= before


def test_indexes_are_held_up_to_their_bytes_and_read_once_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set = make_sized_set(tmp_path / "set", [100] * 6).shard_set
    reads = []
    read = Location.read
    monkeypatch.setattr(Location, "read", lambda *args: reads.append(args[1]) or read(*args))
    for max_bytes, expected in ((100_000, 6), (25_000, 18)):
        reader = ShardReader(shard_set, "train", max_index_bytes=max_bytes)
        reads.clear()
        for number in [*range(0, 600, 50)] * 3:
            reader.read(number)
        assert len(reads) == expected


def test_limits_that_are_not_positive_are_refused(tmp_path: Path) -> None:
    shard_set = make_sized_set(tmp_path / "set", [2]).shard_set
    for limit in ("max_open_tars", "max_index_bytes"):
        with pytest.raises(ShardError, match=f"{limit} 0"):
            ShardReader(shard_set, "train", **{limit: 0})


def test_a_reader_crosses_without_the_listing_and_notices_another_set(tmp_path: Path) -> None:
    reader = make_sized_set(tmp_path / "set", [1] * 60)
    crossing = pickle.dumps(reader)
    assert len(crossing) < 1000
    make_sized_set(tmp_path / "other", [1] * 61)
    (tmp_path / "set").rename(tmp_path / "old")
    (tmp_path / "other").rename(tmp_path / "set")
    with pytest.raises(ShardError, match="replaced by the set"):
        pickle.loads(crossing)


def test_splits_may_lie_among_each_other(tmp_path: Path) -> None:
    stage(tmp_path / "staging")
    publish_staged(tmp_path / "staging", tmp_path / "set")
    shard_set = ShardSet.open(tmp_path / "set")
    assert shard_set.shards("train")["number"].to_pylist() == [0, 3]
    assert_is(ShardReader(shard_set, "val").read(2), 2, 7)


def test_a_tar_that_is_no_file_says_so(tmp_path: Path) -> None:
    make_set(tmp_path / "set")
    tar = tmp_path / "set" / "shard-00000.tar"
    tar.unlink()
    tar.mkdir()
    reader = ShardReader(ShardSet.open(tmp_path / "set"), "train")
    with pytest.raises(ShardError, match=r"sample 'sample-000' of .*shard-00000\.tar: is a folder"):
        reader.read(0)


def test_samples_of_the_size_of_a_photograph_are_read_at_speed(
    tmp_path: Path,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 87_000, dtype=np.uint8).tobytes()
    for shard in range(4):
        samples = [
            Sample(f"s{number}", {"jpg": pixels, "cls": b"0"}, 0, "raw", "0" * 64)
            for number in range(100)
        ]
        write_shard(tmp_path / "staging", shard, "train", samples)
    publish(
        tmp_path / "staging", tmp_path / "set", numbers=range(4), config={}, input_digest="",
        classes=("one",),
    )  # fmt: skip
    reader = ShardReader(ShardSet.open(tmp_path / "set"), "train", verify_samples=False)
    speeds = []
    for epoch in range(20):
        begun = time.perf_counter()
        positions = epoch_positions(
            reader, seed=0, epoch=epoch, rank=0, world_size=1, batch_size=200
        )
        for numbers in positions:
            assert all(len(s.members["jpg"]) == 87_000 for s in reader.read_many(numbers))
        speeds.append(len(reader) / (time.perf_counter() - begun))
    assert max(speeds) > 25_000, "half of what is promised, for a machine that does other things"


def test_an_open_reader_gives_no_bytes_of_a_set_that_replaced_its_own(tmp_path):
    make_set(tmp_path / "set")
    reader = ShardReader(ShardSet.open(tmp_path / "set"), "train", max_open_tars=1)
    first = [bytes(reader.read(number).members["image.npy"]) for number in range(9)]
    assert first[-1] != first[0]
    stage(tmp_path / "staging", seed=1)
    publish_staged(tmp_path / "staging", tmp_path / "set", replace=True)
    assert bytes(reader.read(8).members["image.npy"]) == first[8], "its tar is still mapped"
    for number in range(5):  # their tar was closed for the second one's
        with pytest.raises(ShardError, match="replaced by another set"):
            reader.read(number)


def test_the_first_batch_does_not_wait_for_an_import_of_pandas(tmp_path: Path) -> None:
    make_set(tmp_path / "set")
    code = (
        "import sys; from shards import ShardReader, ShardSet, epoch_positions\n"
        f"reader = ShardReader(ShardSet.open({str(tmp_path / 'set')!r}), 'train')\n"
        "batches = epoch_positions(reader, seed=0, epoch=0, rank=0, world_size=1, batch_size=4)\n"
        "print(len(reader.read_many(next(batches))), 'pandas' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "4 False\n"


def test_copies_are_no_views_and_stay_while_they_are_referenced(url: str) -> None:
    reader = ShardReader(ShardSet.open(url), "train")
    numbers = np.array([8, 0, 3, 0])
    kept = reader.read_many(numbers, copy=True)
    views = reader.read_many(numbers)
    member = kept[0].members
    for _ in range(20):  # each takes the memory of the one before it, and none that of `kept`
        reader.read_many(numbers[::-1], copy=True)
    for copied, view in zip(kept, views, strict=True):
        assert copied.members == view.members and copied.key == view.key
        assert all(content.readonly for content in copied.members.values())
    del kept, copied
    again = reader.read_many(numbers[::-1], copy=True)
    assert member == views[0].members and again[0].members == views[3].members
