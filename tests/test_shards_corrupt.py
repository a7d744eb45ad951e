"""A sample that is not as it was written is never taken for data, wherever it is read from."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from shard_server import ShardServer
from shard_sets import SPEC, flip_bit, make_set, make_sized_set, upload

from pipeline.media import ImageFormat
from pipeline.registry.reading import Reading
from shards import RemoteReading, ShardError, ShardReader, ShardSet
from shards.loader import ShardLoader

WRONG = r"shard-00000\.tar: sample 'sample-002' has another sha256 than its index says"


def spoil(folder: Path, row: int, member: int = -1) -> None:
    """Changes one bit in the middle of a member's payload."""
    members = pq.read_table(folder / "index" / "00000.parquet")["members"][row].as_py()
    span = members[member]
    flip_bit(folder / "shard-00000.tar", span["offset"] + span["length"] // 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set whose third training sample has one bit that was changed."""
    make_set(tmp_path / "set")
    spoil(tmp_path / "set", 2)
    return tmp_path / "set"


def test_a_changed_bit_of_a_local_sample_names_it(folder: Path) -> None:
    reader = ShardReader(ShardSet.open(folder), "train")
    for _ in range(2):  # also when it was read before
        with pytest.raises(ShardError, match=WRONG):
            reader.read(2)
        with pytest.raises(ShardError, match=WRONG):
            reader.read_many(np.arange(len(reader)))
    assert reader.read(1).key == "sample-001" and reader.read(3).key == "sample-003"


def test_every_byte_of_a_sample_counts(tmp_path: Path) -> None:
    make_set(tmp_path / "set")
    rows = pq.read_table(tmp_path / "set" / "index" / "00000.parquet").to_pylist()
    start = rows[2]["members"][0]["offset"] - 512
    stop = rows[3]["members"][0]["offset"] - 512
    for offset in range(start, stop, 97):  # headers, payloads and padding
        flip_bit(tmp_path / "set" / "shard-00000.tar", offset)
        reader = ShardReader(ShardSet.open(tmp_path / "set"), "train")
        with pytest.raises(ShardError, match=WRONG):
            reader.read(2)
        flip_bit(tmp_path / "set" / "shard-00000.tar", offset)
        assert reader.read(2).key == "sample-002"


def test_samples_that_are_copied_are_compared_too(folder: Path) -> None:
    reader = ShardReader(ShardSet.open(folder), "train", max_open_tars=1)
    held = reader.read(8)  # in another tar, whose map is all that may be open
    with pytest.raises(ShardError, match=WRONG):
        reader.read(2)
    assert held.key == "sample-011"


def test_a_reader_that_is_told_not_to_compare_gives_what_is_there(folder: Path) -> None:
    reader = ShardReader(ShardSet.open(folder), "train", verify_samples=False)
    assert reader.read(2).key == "sample-002"


def test_a_damaged_file_in_the_cache_is_found(tmp_path: Path) -> None:
    """It was whole when it was fetched; disks forget."""
    make_set(tmp_path / "set")
    reading = RemoteReading(cache_folder=tmp_path / "cache", request_cost=1 << 30)
    url = upload(tmp_path / "set")
    shard_set = ShardSet.open(url)
    ShardReader(shard_set, "train", remote=reading).read(2)
    sha256 = shard_set.shards("train")["sha256"][0].as_py()
    spans = pq.read_table(tmp_path / "set" / "index" / "00000.parquet")["members"][2].as_py()
    flip_bit(tmp_path / "cache" / sha256, spans[0]["offset"])
    with pytest.raises(ShardError, match=WRONG):
        ShardReader(ShardSet.open(url), "train", remote=reading).read(2)


def test_a_changed_bit_of_a_sample_on_a_server_names_it(folder: Path, tmp_path: Path) -> None:
    with ShardServer(folder) as server:
        reading = RemoteReading(cache_folder=tmp_path / "cache", request_cost=1)
        reader = ShardReader(ShardSet.open(server.url), "train", remote=reading)
        with pytest.raises(ShardError, match=WRONG):
            reader.read(2)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_names_a_corrupt_sample_and_skips_it_or_ends(
    tmp_path: Path, num_workers: int
) -> None:
    make_sized_set(tmp_path / "set", [4, 4])
    spoil(tmp_path / "set", 2, 0)
    reader = ShardReader(ShardSet.open(tmp_path / "set"), "train")
    loader = functools.partial(
        ShardLoader, reader, batch_size=4, shuffle=False, num_workers=num_workers
    )

    first, second = loader(skip_bad=True)
    assert first.weights.tolist() == [1, 1, 0, 1] and second.weights.tolist() == [1] * 4
    ((source, reason),) = first.bad
    assert source == "raw/2.wav"
    assert "sample 'sample-00002' has another sha256 than its index says" in reason
    assert first.fields["number.npy"][2].tolist() == [0, 0]

    with pytest.raises(ShardError, match="'sample-00002' has another sha256"):
        list(loader(skip_bad=True, skip_corrupt=False))
    with pytest.raises(ShardError, match="'sample-00002' has another sha256"):
        list(loader())


def test_a_changed_bit_of_a_position_table_is_found(tmp_path: Path) -> None:
    make_set(tmp_path / "set")
    path = tmp_path / "set" / "positions" / f"{SPEC.digest}.npy"
    flip_bit(path, path.stat().st_size - 1)
    for address in (tmp_path / "set", upload(tmp_path / "set")):
        with pytest.raises(ShardError, match="sha256 differs from the manifest's"):
            ShardSet.open(address).position_table(SPEC)


def test_a_shard_that_is_cut_short_in_padding_is_found(tmp_path: Path) -> None:
    make_set(tmp_path / "set")
    tar = tmp_path / "set" / "shard-00000.tar"
    rows = pq.read_table(tmp_path / "set" / "index" / "00000.parquet").to_pylist()
    last = rows[2]["members"][-1]
    shutil.copy(tar, tmp_path / "whole")
    tar.write_bytes(tar.read_bytes()[: last["offset"] + last["length"]])
    with pytest.raises(ShardError, match="cut short"):
        ShardReader(ShardSet.open(tmp_path / "set"), "train").read(2)


def test_what_judges_a_model_compares_and_skips_or_ends_too(folder: Path) -> None:
    """`perceiver promote` reads so; of these samples, which are no such images, none is decoded."""
    fmt = ImageFormat(height=7, width=7)

    def read(**options: bool) -> dict[str, str]:
        batches = Reading(fmt, fmt, **options).batches(ShardSet.open(folder), "train")
        return dict(bad for batch in batches for bad in batch.bad)

    assert "another sha256" in read()["raw/2.png"]
    assert "another sha256" not in read()["raw/1.png"]
    assert "another sha256" not in read(verify_samples=False)["raw/2.png"]
    with pytest.raises(ShardError, match=WRONG):
        read(skip_corrupt=False)
