"""A shard set is made in object storage: the same set as in a folder, whole or not there."""

import pickle
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from shard_sets import CLASSES, PLAN, SPEC, files_of, make_samples, make_set

from shards import (
    Quarantined,
    ShardError,
    ShardReader,
    ShardSet,
    link_shard,
    publish,
    quarantine_table,
    rewrite_shard,
    verify,
)
from shards.census import Census, ShardFacts
from shards.names import BY_CONTENT, BY_NUMBER
from shards.object_staging import ObjectStaging, read_manifest
from shards.object_store import ObjectStore


@pytest.fixture
def url(s3_bucket: str, tmp_path: Path) -> str:
    return f"{s3_bucket}/{tmp_path.name}/set"


def begun(url: str, name: str = "a") -> ObjectStaging:
    """A build at a URL, which begins now."""
    staging = ObjectStaging(url, name * 64, read_manifest(url))
    staging.prepare()
    return staging


def fill(staging: ObjectStaging, numbers: Collection[int] = range(4), seed: int = 0) -> None:
    """Write shards as `shard_sets.stage` does, each in another process's copy of the staging."""
    first = 100 * seed
    for number, (split, size) in enumerate(PLAN):
        if number in numbers:
            bad = Quarantined(f"raw/bad-{number}.png", split, "truncated", "Traceback ...")
            worker = pickle.loads(pickle.dumps(staging))
            worker.write(number, split, [bad, *make_samples(first, first + size)])
        first += size


def finish(
    staging: ObjectStaging,
    numbers: Collection[int] = range(4),
    seed: int = 0,
    kept: Collection[int] = (),
) -> str:
    """Publish the shards as `shard_sets.publish_staged` does, and return the digest."""
    table = np.random.default_rng(seed).normal(size=(SPEC.num_tokens, SPEC.num_channels))
    census = Census(CLASSES)
    for number in numbers:
        facts = staging.facts(number)
        if number in kept:
            facts = staging.facts_kept(staging.url, number)
        if facts is not None:
            census.add(ShardFacts.from_json(facts.to_json()))
    return staging.publish(
        numbers=numbers,
        census=census,
        config={"image_size": 7},
        input_digest="0" * 64,
        positions={SPEC: table.astype(np.float32)},
        quarantine=pa.concat_tables([*staging.quarantined(), quarantine_table([])]),
    ).digest


def test_a_set_in_object_storage_is_the_set_in_a_folder(url: str, tmp_path: Path) -> None:
    expected = make_set(tmp_path / "set")
    staging = begun(url)
    fill(staging)
    assert read_manifest(url) is None, "there is no set before all of it is there"
    assert finish(staging) == expected.digest
    assert verify(url) == [], "and nothing is left of the build"
    remote, local = ShardSet.open(url), ShardSet.open(tmp_path / "set")
    assert (remote.names, local.names) == (BY_CONTENT, BY_NUMBER)
    assert np.array_equal(remote.position_table(SPEC), local.position_table(SPEC))
    for split in ("train", "val"):
        ours, theirs = ShardReader(remote, split), ShardReader(local, split)
        for number in range(len(theirs)):
            assert {k: bytes(v) for k, v in ours.read(number).members.items()} == {
                k: bytes(v) for k, v in theirs.read(number).members.items()
            }


def test_a_build_that_was_cut_off_continues_and_another_build_starts_anew(url: str) -> None:
    staging = begun(url)
    fill(staging, [0, 3])
    assert [begun(url).facts(number) is not None for number in range(4)] == [
        True,
        False,
        False,
        True,
    ]
    with pytest.raises(ShardError, match="shard 1 of the plan is not finished; run 'perceiver pre"):
        finish(staging)
    assert begun(url, "b").facts(0) is None
    fill(again := begun(url))
    finish(again)
    assert verify(url) == []


def test_a_new_set_replaces_the_old_one_at_once_and_nothing_old_is_left(url: str) -> None:
    fill(first := begun(url))
    old = finish(first)
    fill(second := begun(url, "b"), seed=1)
    reader = ShardReader(ShardSet.open(url), "train")
    assert ShardSet.open(url).digest == old and len(reader.read_many(np.arange(9))) == 9
    new = finish(second, seed=1)
    assert ShardSet.open(url).digest == new != old
    assert verify(url) == []


def test_of_two_builds_one_wins_and_the_other_says_so(url: str) -> None:
    first, second = begun(url), begun(url)
    fill(first)
    won = finish(first)
    fill(second, seed=1)
    with pytest.raises(ShardError, match="another command has made or replaced this set"):
        finish(second, seed=1)
    assert ShardSet.open(url).digest == won
    late, early = begun(url, "c"), begun(url, "c")
    fill(early, seed=1)
    won = finish(early, seed=1)
    fill(late, seed=2)
    with pytest.raises(ShardError, match="another command has made or replaced this set"):
        finish(late, seed=2)
    assert ShardSet.open(url).digest == won


@pytest.mark.parametrize("copied", [False, True])
def test_shards_are_kept_and_rewritten_as_in_a_folder(
    url: str, tmp_path: Path, *, copied: bool
) -> None:
    make_set(tmp_path / "old")
    if copied:  # by hand, under the names of a folder
        store = ObjectStore(url)
        for name, data in files_of(tmp_path / "old").items():
            store.write(name, data)
    else:
        fill(first := begun(url))
        finish(first)
    without = {"raw/1.png", "raw/3.png"}
    staging = begun(url, "b")
    staging.keep(ShardSet.open(url), [2, 3])
    staging.rewrite(url, 0, without)
    found = finish(staging, [0, 2, 3], kept=[2, 3])
    rewrite_shard(tmp_path / "old", tmp_path / "staging", 0, without)
    for number in (2, 3):
        link_shard(tmp_path / "old", tmp_path / "staging", number)
    shutil.copytree(tmp_path / "old" / "positions", tmp_path / "staging" / "positions")
    assert found == publish(
        tmp_path / "staging", tmp_path / "new", numbers=[0, 2, 3], config={"image_size": 7},
        input_digest="0" * 64, classes=CLASSES, positions=[SPEC],
    ).digest  # fmt: skip
    assert verify(url) == []


def test_what_is_not_of_a_set_stays(url: str) -> None:
    store = ObjectStore(url)
    store.write("notes/readme.txt", b"mine")
    fill(staging := begun(url))
    finish(staging)
    assert store.read("notes/readme.txt", 9) == b"mine"
    begun(url, "b").remove()
    assert store.read("notes/readme.txt", 9) == b"mine"
    assert [problem.file for problem in verify(url)] == ["notes/readme.txt"]


def test_a_build_that_is_given_up_leaves_nothing(url: str) -> None:
    fill(staging := begun(url), [0, 1])
    assert staging.has_shards()
    staging.remove()
    assert ObjectStore(url).sizes() == {}


def test_a_shard_that_was_damaged_before_it_was_published_is_found(url: str) -> None:
    fill(staging := begun(url))
    store = ObjectStore(url)
    tar = next(name for name in store.sizes() if name.endswith(".tar"))
    store.write(tar, b"short")
    with pytest.raises(ShardError, match=r"shard-\d+-\w+\.tar: is missing or has another size"):
        finish(staging)
    assert read_manifest(url) is None


def test_a_set_that_was_copied_from_object_storage_to_a_folder_is_read(
    url: str, tmp_path: Path
) -> None:
    fill(staging := begun(url))
    digest = finish(staging)
    store = ObjectStore(url)
    for name, size in store.sizes().items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(store.read(name, size))
    copy = ShardSet.open(tmp_path / "copy")
    assert copy.digest == digest
    assert len(ShardReader(copy, "val").read_many(np.arange(3))) == 3
    assert verify(tmp_path / "copy") == []


def test_storage_that_refuses_is_told_in_one_line(s3_bucket: str) -> None:
    staging = ObjectStaging("s3://missing-bucket/set", "a" * 64)
    with pytest.raises(ShardError, match=r"^s3://missing-bucket/set/\S+: cannot be written \(.*\); "
                                         r"check the address, the connection"):  # fmt: skip
        staging.write(0, "train", make_samples(0, 2))
