"""Verification finds any changed bit, missing or extra file, and says which sample it hits."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from shard_sets import SPEC, flip_bit, make_set

from shards import Problem, ShardError, verify


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole set."""
    make_set(tmp_path / "set")
    return tmp_path / "set"


def test_a_whole_set_has_no_problems_and_every_file_is_read(path: Path) -> None:
    checked: list[str] = []
    assert verify(path, checked.append) == []
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert files - set(checked) == {"manifest.json", "shards.parquet"}


def test_any_flipped_bit_of_a_tar_names_the_sample_it_hits(path: Path) -> None:
    tar = path / "shard-00000.tar"
    rows = pq.read_table(path / "index" / "00000.parquet").to_pylist()
    starts = np.array([row["members"][0]["offset"] - 512 for row in rows])
    size = tar.stat().st_size
    for offset in [*range(0, size, 331), size - 1]:
        hit = repr(rows[int(np.searchsorted(starts, offset, side="right")) - 1]["key"])
        if offset >= size - 1024:
            hit = "none, the damage is in the end of the archive"
        flip_bit(tar, offset)
        what = f"sha256 differs from shards.parquet; samples hit: {hit}"
        assert verify(path) == [Problem("shard-00000.tar", what)]
        flip_bit(tar, offset)
    assert verify(path) == []


def test_a_tar_cut_short_names_all_samples_behind_the_cut(path: Path) -> None:
    tar = path / "shard-00002.tar"
    rows = pq.read_table(path / "index" / "00002.parquet").to_pylist()
    tar.write_bytes(tar.read_bytes()[: rows[1]["members"][0]["offset"]])
    (problem,) = verify(path)
    assert problem.what.endswith("samples hit: 'sample-006', 'sample-007'")


@pytest.mark.parametrize(
    "name",
    ["index/00000.parquet", "quarantine.parquet", f"positions/{SPEC.digest}.npy"],
)
def test_any_other_file_with_a_flipped_bit_is_named(path: Path, name: str) -> None:
    for offset in (0, 100, (path / name).stat().st_size - 1):
        flip_bit(path / name, offset)
        (problem,) = verify(path)
        assert problem.file == name and "sha256 differs" in problem.what
        flip_bit(path / name, offset)


def test_without_an_index_the_samples_of_a_damaged_tar_are_not_known(path: Path) -> None:
    flip_bit(path / "shard-00003.tar", 600)
    flip_bit(path / "index" / "00003.parquet", 60)
    index, tar = verify(path)
    assert index.file == "index/00003.parquet"
    assert tar.file == "shard-00003.tar" and tar.what.endswith("samples hit: not known")


@pytest.mark.parametrize("name", ["manifest.json", "shards.parquet"])
def test_any_flipped_bit_of_the_two_files_behind_all_others_is_refused(
    path: Path, name: str
) -> None:
    for offset in range(0, (path / name).stat().st_size, 17):
        flip_bit(path / name, offset)
        with pytest.raises(ShardError, match=name):
            verify(path)
        flip_bit(path / name, offset)


def test_missing_and_extra_files_are_named(path: Path) -> None:
    missing = [
        "quarantine.parquet",
        f"positions/{SPEC.digest}.npy",
        "index/00000.parquet",
        "shard-00002.tar",
    ]
    for name in missing:
        (path / name).unlink()
    (path / "index" / "00001.parquet").write_bytes(b"")
    (path / ".hidden").write_bytes(b"")
    (path / "more" / "empty").mkdir(parents=True)
    (path / "positions").rmdir()
    (path / "link").symlink_to(path / "index", target_is_directory=True)
    problems = [Problem(name, "missing") for name in missing]
    problems += [
        Problem(name, "not part of the set")
        for name in (".hidden", "index/00001.parquet", "link", "more/empty")
    ]
    assert verify(path) == problems
