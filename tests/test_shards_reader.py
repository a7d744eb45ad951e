"""Any sample by its number, locally and behind a URL, and a clear word where it cannot be read."""

import pickle
from pathlib import Path

import fsspec
import pytest
from shard_sets import files_of, flip_bit, make_sample, make_set

from shards import RawSample, ShardError, ShardReader, ShardSet, decode_npy, verify

TRAIN = [0, 1, 2, 3, 4, 8, 9, 10, 11]


@pytest.fixture(params=["local", "memory"])
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A set in a local folder, and in fsspec's memory file system."""
    make_set(tmp_path / "set")
    if request.param == "local":
        return str(tmp_path / "set")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for name, data in files_of(tmp_path / "set").items():
        memory.pipe(f"/bucket/set/{name}", data)
    return "memory://bucket/set"


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
    reader = ShardReader(ShardSet.open(url), "train", max_open_tars=1, max_cached_indexes=1)
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
