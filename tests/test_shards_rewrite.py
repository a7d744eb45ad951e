"""A shard is taken over from an older set as it is, or without some of its sources."""

from pathlib import Path

import pytest
from shard_sets import CLASSES, files_of, flip_bit, make_set

from shards import (
    ShardError,
    ShardReader,
    ShardSet,
    link_shard,
    publish,
    read_committed,
    rewrite_shard,
    verify,
)


def test_a_linked_shard_is_the_same_bytes_and_outlives_the_older_set(tmp_path: Path) -> None:
    make_set(tmp_path / "old")
    for number in (0, 2, 3):
        link_shard(tmp_path / "old", tmp_path / "staging", number)
        link_shard(tmp_path / "old", tmp_path / "staging", number)  # as after an interruption
    before = files_of(tmp_path / "old")
    for path in (tmp_path / "old").rglob("*.tar"):
        path.unlink()
    after = files_of(tmp_path / "staging")
    assert after == {name: before[name] for name in after} and len(after) == 6


def test_a_rewritten_shard_lacks_what_was_dropped_and_keeps_the_rest_to_the_byte(
    tmp_path: Path,
) -> None:
    make_set(tmp_path / "old")
    old = ShardReader(ShardSet.open(tmp_path / "old"), "train")
    dropped = {"raw/1.png", "raw/3.png"}
    info = rewrite_shard(tmp_path / "old", tmp_path / "staging", 0, dropped)
    assert (info.samples, info.split) == (3, "train")
    link_shard(tmp_path / "old", tmp_path / "staging", 3)
    publish(
        tmp_path / "staging", tmp_path / "new", numbers=[0, 3], config={}, input_digest="",
        classes=CLASSES,
    )  # fmt: skip
    assert verify(tmp_path / "new") == []
    new = ShardReader(ShardSet.open(tmp_path / "new"), "train")
    kept = [old.read(number) for number in range(len(old))]
    kept = [sample for sample in kept if sample.source_uri not in dropped]
    for expected, number in zip(kept, range(len(new)), strict=True):
        found = new.read(number)
        assert (found.key, found.target, found.source_uri) == (
            expected.key, expected.target, expected.source_uri,
        )  # fmt: skip
        assert {name: bytes(value) for name, value in found.members.items()} == {
            name: bytes(value) for name, value in expected.members.items()
        }


def test_a_shard_that_loses_every_sample_is_left_out_when_published(tmp_path: Path) -> None:
    make_set(tmp_path / "old")
    rewrite_shard(tmp_path / "old", tmp_path / "s", 2, [f"raw/{n}.png" for n in range(5, 8)])
    found = read_committed(tmp_path / "s", 2)
    assert found is not None and found.samples == 0


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    make_set(tmp_path / "old")
    with pytest.raises(ShardError, match=r"shard-00009\.tar: missing; run 'perceiver verify'"):
        link_shard(tmp_path / "old", tmp_path / "staging", 9)
    with pytest.raises(ShardError, match=r"shard-00009\.tar: missing or cut short"):
        rewrite_shard(tmp_path / "old", tmp_path / "staging", 9, ())


def test_damage_is_not_passed_on_as_if_it_were_whole(tmp_path: Path) -> None:
    make_set(tmp_path / "old")
    flip_bit(tmp_path / "old" / "shard-00000.tar", 1500)
    with pytest.raises(ShardError, match=r"shard-00000\.tar: damaged, it hits sample 'sample-000'"):
        rewrite_shard(tmp_path / "old", tmp_path / "staging", 0, {"raw/1.png"})
    assert not list((tmp_path / "staging").rglob("*.tar"))
