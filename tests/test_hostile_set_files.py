"""Of a set, only regular files in its own folder are read, and no other file is changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_sets import OUTSIDE, assert_plain, put, reseal, use
from shard_server import ShardServer
from shard_sets import SPEC, upload

from pipeline.preprocess.inspect_shards import inspect_shards
from pipeline.preprocess.ledger import Ledger
from shards import (
    RemoteReading,
    ShardError,
    ShardReader,
    ShardSet,
    read_quarantine,
    rewrite_shard,
    verify,
)
from shards.rewrite import link_shard
from shards.set_files import open_file
from shards.writer import read_committed


@pytest.mark.parametrize("name", ["../outside/secret", "index/../manifest.json", "/etc/passwd",
                                  "", ".", "..", "index//00000.parquet", "a\0b"])  # fmt: skip
def test_a_file_s_name_leads_to_no_other_folder(set_copy: Path, name: str) -> None:
    with pytest.raises(ShardError, match="is no path within the set"):
        open_file(set_copy, name)


def test_a_set_over_http_cannot_name_a_path(set_copy: Path, tmp_path: Path) -> None:
    """The name of a file in the cache is the digest that the listing gives."""
    reseal(set_copy, shard_table=put(0, "sha256", OUTSIDE))
    with ShardServer(set_copy) as server, pytest.raises(ShardError, match="64 hexadecimal digits"):
        use(server.url, tmp_path / "cache")


def test_a_wrong_size_does_not_cost_another_set_its_cached_file(
    set_copy: Path, whole_set: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    use(upload(whole_set), cache)
    before = {path.name: path.read_bytes() for path in cache.iterdir() if path.is_file()}
    assert len(before) == 3
    size = (set_copy / "shard-00000.tar").stat().st_size
    with (set_copy / "shard-00000.tar").open("ab") as tar:
        tar.write(bytes(512))

    reseal(set_copy, shard_table=put(0, "bytes", size + 512), facts=put("bytes", size + 512))
    with pytest.raises(ShardError):
        use(upload(set_copy), cache)
    assert {path.name: path.read_bytes() for path in cache.iterdir() if path.is_file()} == before


def test_files_in_the_cache_folder_that_are_not_its_own_stay(
    whole_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_bytes(bytes(50_000))
    (tmp_path / "music.part").write_bytes(bytes(50_000))
    shard_set = ShardSet.open(upload(whole_set))
    remote = RemoteReading(cache_folder=tmp_path, cache_bytes=13_000, request_cost=1 << 30)
    for split in ("train", "val"):
        reader = ShardReader(shard_set, split, remote=remote)
        for number in range(len(reader)):
            reader.read(number)
    assert {"thesis.tex", "music.part"} < {path.name for path in tmp_path.iterdir()}


FILES = [
    "manifest.json",
    "shards.parquet",
    "quarantine.parquet",
    "shard-00000.tar",
    "index/00000.parquet",
    f"positions/{SPEC.digest}.npy",
]


def _link(path: Path) -> None:
    shutil.copy(path, path.parents[2] / "outside" / "copy")
    path.unlink()
    path.symlink_to(path.parents[2] / "outside" / "copy")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def use_all(folder: Path) -> None:
    """All that is done with a local set, each of it although another failed."""
    failed = []
    for attempt in (
        lambda: use(folder, folder.parent / "cache"),
        lambda: read_quarantine(folder / "quarantine.parquet"),
        lambda: rewrite_shard(folder, folder.parent / "new", 0, ()),
        lambda: link_shard(folder, folder.parent / "linked", 0),
        lambda: inspect_shards(str(folder)),
        lambda: Ledger.read(folder),
    ):
        try:
            attempt()
        except ShardError as error:
            assert_plain(str(error))
            failed.append(error)
    assert failed


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("put_instead", [_link, _pipe, _device, _folder])
def test_only_regular_files_of_the_set_itself_are_read(
    whole_set: Path, tmp_path: Path, name: str, put_instead: Callable[[Path], None]
) -> None:
    folder = tmp_path / "deep" / "set"
    shutil.copytree(whole_set, folder)
    (tmp_path / "outside").mkdir()
    target = folder / name
    shutil.copy(target, tmp_path / "outside" / "copy")
    if put_instead is _link:
        target.unlink()
        target.symlink_to(tmp_path / "outside" / "copy")
    else:
        put_instead(target)
    use_all(folder)
    try:
        assert any("regular files" in problem.what for problem in verify(folder))
    except ShardError as error:
        assert "regular files" in str(error)


def test_a_folder_within_a_set_may_be_no_link(set_copy: Path, tmp_path: Path) -> None:
    shutil.move(set_copy / "index", tmp_path / "elsewhere")
    (set_copy / "index").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ShardError, match="regular files"):
        ShardReader(ShardSet.open(set_copy), "train").read(0)
    assert read_committed(set_copy, 0) is None


def test_a_set_itself_may_lie_behind_a_link(set_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(set_copy)
    use(tmp_path / "link", tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "size"), [("manifest.json", 1 << 40), ("shards.parquet", 1 << 40)]
)
def test_a_file_of_a_size_that_it_cannot_have_is_not_read(
    set_copy: Path, name: str, size: int
) -> None:
    os.truncate(set_copy / name, size)  # takes no room
    with pytest.raises(ShardError, match="has more than"):
        ShardSet.open(set_copy)
