"""A shard set appears whole or not at all, says what it is, and opens at the cost of two files."""

import json
import mmap
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_sets import (
    CLASSES,
    PLAN,
    SPEC,
    files_of,
    make_set,
    publish_staged,
    stage,
    upload,
    write_synthetic,
)

from shards import (
    PositionSpec,
    Quarantined,
    ShardError,
    ShardSet,
    publish,
    quarantine_table,
    read_position_table,
    read_quarantine,
    recover,
    verify,
    write_position_table,
    write_quarantine,
)
from shards.census import Census, ShardFacts
from shards.digests import canonical_json, sha256_hex
from shards.staging import FolderStaging


def test_a_set_says_what_it_is(tmp_path: Path) -> None:
    manifest = make_set(tmp_path / "set")
    shard_set = ShardSet.open(tmp_path / "set")
    assert shard_set.manifest == manifest
    assert manifest.counts == {"train": 9, "val": 3}
    assert manifest.class_counts == {
        "train": {"cat": 3, "dog": 3, "owl": 3},
        "val": {"cat": 1, "dog": 1, "owl": 1},
    }
    assert manifest.classes == CLASSES
    assert manifest.members == ("audio.npy", "cls", "image.npy", "json")
    assert manifest.quarantined == len(PLAN)
    assert manifest.positions == {SPEC.digest: SPEC}
    assert shard_set.digest == sha256_hex((tmp_path / "set" / "manifest.json").read_bytes())


def test_with_a_census_no_index_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_set(tmp_path / "set")
    staging = FolderStaging(tmp_path / "staging", tmp_path / "other")
    stage(staging.folder)
    # In another order, as tasks end, and from other processes.
    facts = [staging.facts(number) for number in reversed(range(len(PLAN)))]
    census = Census(CLASSES)
    for each in facts:
        assert each is not None
        census.add(ShardFacts.from_json(each.to_json()))
    monkeypatch.setattr(sys.modules["shards.publish"], "read_index", None)
    again = publish_staged(
        staging.folder,
        tmp_path / "other",
        census=census,
        quarantine=pa.concat_tables(staging.quarantined()),
    )
    assert again.digest == manifest.digest
    with pytest.raises(ShardError, match="shard 0 of the plan is not finished"):
        stage(tmp_path / "third")
        publish_staged(tmp_path / "third", tmp_path / "new", census=Census(CLASSES))


def test_shards_keep_their_numbers_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    make_set(tmp_path / "set")
    assert set(files_of(tmp_path / "set")) == {
        *(f"shard-0000{number}.tar" for number in (0, 2, 3)),
        *(f"index/0000{number}.parquet" for number in (0, 2, 3)),
        f"positions/{SPEC.digest}.npy",
        "shards.parquet",
        "quarantine.parquet",
        "manifest.json",
    }
    shard_set = ShardSet.open(tmp_path / "set")
    assert shard_set.shards("train")["name"].to_pylist() == ["shard-00000.tar", "shard-00003.tar"]
    assert shard_set.num_samples("val") == 3
    with pytest.raises(ShardError, match="no split 'test'; it has train, val"):
        shard_set.shards("test")
    assert verify(tmp_path / "set") == []


def test_the_same_input_gives_the_same_digest(tmp_path: Path) -> None:
    first, second = make_set(tmp_path / "a"), make_set(tmp_path / "b")
    assert first.digest == second.digest
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert make_set(tmp_path / "c", seed=1).digest != first.digest


def test_an_unfinished_plan_is_not_published(tmp_path: Path) -> None:
    stage(tmp_path / "staging")
    (tmp_path / "staging" / "index" / "00002.parquet").unlink()
    with pytest.raises(ShardError, match="shard 2 of the plan is not finished"):
        publish_staged(tmp_path / "staging", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    with pytest.raises(ShardError, match="unfinished shard set; run 'perceiver preprocess' again"):
        ShardSet.open(tmp_path / "staging")


def test_a_set_without_its_position_table_is_not_published(tmp_path: Path) -> None:
    stage(tmp_path / "staging")
    (tmp_path / "staging" / "positions" / f"{SPEC.digest}.npy").unlink()
    with pytest.raises(ShardError, match="write the position table"):
        publish_staged(tmp_path / "staging", tmp_path / "set")


def test_a_target_beyond_the_classes_is_refused(tmp_path: Path) -> None:
    stage(tmp_path / "staging")
    with pytest.raises(ShardError, match=r"shard-00000\.tar: target 2 with 2 classes"):
        publish(
            tmp_path / "staging",
            tmp_path / "set",
            numbers=range(len(PLAN)),
            config={},
            input_digest="",
            classes=["cat", "dog"],
        )


def test_an_older_set_is_replaced_only_when_asked(tmp_path: Path) -> None:
    old = make_set(tmp_path / "set")
    stage(tmp_path / "staging", seed=1)
    with pytest.raises(ShardError, match="holds a shard set already"):
        publish_staged(tmp_path / "staging", tmp_path / "set")
    assert ShardSet.open(tmp_path / "set").digest == old.digest

    new = publish_staged(tmp_path / "staging", tmp_path / "set", replace=True)
    assert ShardSet.open(tmp_path / "set").digest == new.digest != old.digest
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_is_not_a_shard_set_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "only-copy.png").write_bytes(b"...")
    stage(tmp_path / "staging")
    with pytest.raises(ShardError, match="is not a shard set; choose another path"):
        publish_staged(tmp_path / "staging", tmp_path / "photos", replace=True)
    assert set(files_of(tmp_path / "photos")) == {"only-copy.png"}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def publish_killed(staging: Path, final: Path, at_step: int) -> bool:
    """Publishes until just before the given rename or removal; false if there are fewer."""
    steps = iter(range(1000))

    def killing(function):
        def call(*args, **options):
            if next(steps) == at_step:
                raise Killed
            return function(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in [(Path, "rename"), (Path, "unlink"), (shutil, "rmtree")]:
            patch.setattr(owner, name, killing(getattr(owner, name)))
        try:
            publish_staged(staging, final, replace=True)
        except Killed:
            return True
    return False


def test_killed_at_any_step_a_whole_set_is_left_and_the_same_call_finishes(tmp_path: Path) -> None:
    new = make_set(tmp_path / "new", seed=1)
    step = 0
    while True:
        folder = tmp_path / str(step)
        old = make_set(folder / "set")
        stage(folder / "staging", seed=1)
        if not publish_killed(folder / "staging", folder / "set", step):
            break
        left = folder / "set" if (folder / "set").exists() else folder / ".set.replaced"
        assert verify(left) == []
        assert ShardSet.open(left).digest in (old.digest, new.digest)
        if (folder / "staging").exists():
            publish_staged(folder / "staging", folder / "set", replace=True)
        assert files_of(folder / "set") == files_of(tmp_path / "new")
        step += 1
    assert step >= 8


def test_a_set_put_aside_is_put_back_or_removed(tmp_path: Path) -> None:
    old = make_set(tmp_path / ".set.replaced")
    recover(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert ShardSet.open(tmp_path / "set").digest == old.digest

    make_set(tmp_path / ".set.replaced", seed=1)
    recover(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert ShardSet.open(tmp_path / "set").digest == old.digest


def test_opening_says_what_is_there_instead_of_a_set(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="there is nothing here; check the path"):
        ShardSet.open(tmp_path / "nowhere")
    (tmp_path / "cat.png").write_bytes(b"...")
    with pytest.raises(ShardError, match="if these are raw media, run 'perceiver preprocess'"):
        ShardSet.open(tmp_path)


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    make_set(tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    whole = path.read_bytes()
    content = json.loads(whole)
    garbage = [b"", b"{", b"[]", b"\xff", b"null", whole[:-1], whole.replace(b"owl", b"own")]
    garbage += [canonical_json({k: v for k, v in content.items() if k != key}) for key in content]
    garbage += [canonical_json(content | {key: 7}) for key in content]
    for data in garbage:
        path.write_bytes(data)
        with pytest.raises(ShardError) as caught:
            ShardSet.open(tmp_path / "set")
        assert "manifest.json" in str(caught.value) and "\n" not in str(caught.value)


def test_another_format_version_is_named(tmp_path: Path) -> None:
    manifest = make_set(tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    path.write_bytes(replace(manifest, format_version=2).encode())
    with pytest.raises(ShardError, match="format version 2"):
        ShardSet.open(tmp_path / "set")


def test_opening_a_hundred_thousand_shards_is_quick_and_reads_no_index(tmp_path: Path) -> None:
    write_synthetic(tmp_path, 100_000, 1000)
    begun = time.perf_counter()
    shard_set = ShardSet.open(tmp_path)  # there is no index to read
    assert len(shard_set.shards("train")) == 100_000
    assert time.perf_counter() - begun < 2


def test_a_position_table_comes_back_memory_mapped(tmp_path: Path) -> None:
    table = np.arange(24 * 14, dtype=np.float32).reshape(24, 14)
    path = write_position_table(tmp_path, SPEC, table)
    assert path == tmp_path / "positions" / f"{SPEC.digest}.npy"
    for spec in (SPEC, SPEC.digest):
        read = read_position_table(tmp_path, spec)
        assert isinstance(read.base.base, mmap.mmap) and not read.flags.writeable
        np.testing.assert_array_equal(read, table)
    np.testing.assert_array_equal(np.load(path), table)


def test_a_position_table_of_another_shape_or_dtype_is_refused(tmp_path: Path) -> None:
    for table in (np.zeros((24, 13), np.float32), np.zeros((24, 14), np.float64)):
        with pytest.raises(ShardError, match=r"instead of float32 \[24, 14\]"):
            write_position_table(tmp_path, SPEC, table)
    path = write_position_table(tmp_path, SPEC, np.zeros((24, 14), np.float32))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ShardError, match="damaged"):
        read_position_table(tmp_path, SPEC)


def test_a_position_spec_is_named_by_what_it_says() -> None:
    assert PositionSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC
    assert PositionSpec((4, 6), 3, (4.0, 6.0)).digest == SPEC.digest
    others = [
        PositionSpec((6, 4), 3, (4, 6)),
        PositionSpec((4, 6), 4, (4, 6)),
        PositionSpec((4, 6), 3, (6, 4)),
        PositionSpec((4, 6), 3, (4, 6), layout="sin-cos-pos"),
    ]
    assert len({spec.digest for spec in [SPEC, *others]}) == 5
    for shape, num_bands, resolution in [((4,), 3, (4, 6)), ((0, 6), 3, (4, 6)), ((), 3, ())]:
        with pytest.raises(ShardError):
            PositionSpec(shape, num_bands, resolution)


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_set_made_with_other_fourier_features_says_so(tmp_path: Path, scheme: str) -> None:
    make_set(tmp_path / "set")
    path = upload(tmp_path / "set") if scheme else str(tmp_path / "set")
    shard_set = ShardSet.open(path)
    table = read_position_table(tmp_path / "set", SPEC)
    np.testing.assert_array_equal(shard_set.position_table(SPEC), table)
    with pytest.raises(ShardError) as caught:
        shard_set.position_table(PositionSpec((4, 6), 8, (4, 6)))
    for part in ("num_bands=8", "num_bands=3", "run 'perceiver preprocess' again with the model's"):
        assert part in str(caught.value)


def test_quarantine_comes_back_sorted_whatever_the_names(tmp_path: Path) -> None:
    rows = [
        Quarantined("raw/b\n.png", "train", "truncated", "Traceback\n  line"),
        Quarantined("../a.png", "val", "outside", ""),
        Quarantined("raw/b\n.png", "train", "again", ""),
    ]
    for order in (rows, rows[::-1]):
        write_quarantine(tmp_path / "q.parquet", iter(order))
        assert read_quarantine(tmp_path / "q.parquet") == [rows[1], rows[2], rows[0]]
    write_quarantine(tmp_path / "odd.parquet", [Quarantined("raw/\udcff", "train", "odd", "")])
    assert read_quarantine(tmp_path / "odd.parquet")[0].source_uri == "raw/\\udcff"


def test_an_empty_quarantine_has_its_columns(tmp_path: Path) -> None:
    write_quarantine(tmp_path / "q.parquet", [])
    assert read_quarantine(tmp_path / "q.parquet") == []
    assert pq.read_table(tmp_path / "q.parquet").schema.names == [
        "source_uri",
        "split",
        "reason",
        "traceback",
    ]


def test_what_each_shard_set_aside_reaches_the_published_quarantine(tmp_path: Path) -> None:
    stage(tmp_path / "staging")
    beside = Quarantined("raw/a-link.png", "train", "a symlink out of the tree", "")
    publish_staged(tmp_path / "staging", tmp_path / "set", quarantine=quarantine_table([beside]))
    rows = read_quarantine(tmp_path / "set" / "quarantine.parquet")
    bad = [f"raw/bad-{number}.png" for number in range(len(PLAN))]
    assert [row.source_uri for row in rows] == ["raw/a-link.png", *bad]
