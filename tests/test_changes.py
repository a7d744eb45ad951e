"""What is decoded again: what has other bytes, not what has other times."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_trees import IMAGE_ROWS, every_suffix, listed, make_tree, write_listing

from pipeline.preprocess.changes import Changes, find_changes
from pipeline.preprocess.ledger import source_states
from pipeline.preprocess.shard_task import read_contents, source_sha256
from pipeline.preprocess.sources import SourceTable, read_plan, write_plan

NONE = pa.array([], pa.binary())


def rows_listing(path: Path, images: list[bytes], mtime: int) -> SourceTable:
    """A Parquet listing that holds these images, written at a time."""
    kinds = ["x", "y"] * (len(images) // 2)
    pq.write_table(pa.table({"file": images, "kind": kinds}), path, compression="none")
    os.utime(path, (mtime, mtime))
    return listed(path, columns={"image": "file"}, target={"column": "kind"})


def sha256s(source_table: SourceTable, sources: pa.Table, folder: Path) -> list[str | None]:
    """The sha256 of each source's content."""
    plan = folder / "plan.parquet"
    count = write_plan(source_table.with_table(sources), plan, 1000)
    planned = [row for number in range(count) for row in read_plan(plan, number)]
    return [
        source_sha256(row, read_contents(row, source_table.roots[row.split])) for row in planned
    ]


def ledger_of(source_table: SourceTable, hashes: list[str | None]) -> pa.Table:
    """As if a set had been made of the listing."""
    table = source_table.table
    return pa.table(
        {
            "uri": table["uri"],
            "split": table["split"],
            "state": source_states(table),
            "sha256": pa.array(hashes, pa.string()),
            "target": table["target"],
            "shard": pa.array([0] * table.num_rows, pa.int64()),
        }
    )


def test_a_parquet_listing_that_was_touched_is_hashed_and_no_row_is_decoded_again(tmp_path):
    images = [os.urandom(50) for _ in range(8)]
    path = tmp_path / "rows.parquet"
    before = rows_listing(path, images, mtime=1_000)
    ledger = ledger_of(before, sha256s(before, before.table, tmp_path))
    asked: list[int] = []

    def hashes(sources: pa.Table) -> list[str | None]:
        asked.append(sources.num_rows)
        return sha256s(now, sources, tmp_path)

    now = rows_listing(path, images, mtime=2_000)
    assert now.content_digest == before.content_digest
    changes = find_changes(ledger, now.table, NONE, hashes)
    assert not changes and len(changes.unchanged) == 8 and asked == [8]


def test_rows_whose_bytes_changed_are_decoded_again_and_no_others(tmp_path):
    # Of the same length, and neither first nor last by order: the footer stays the same.
    images = [bytes([number]) * 50 for number in range(8)]
    path = tmp_path / "rows.parquet"
    before = rows_listing(path, images, mtime=1_000)
    ledger = ledger_of(before, sha256s(before, before.table, tmp_path))
    changed = [*images[:4], b"\x04" * 49 + b"\x05", *images[5:]]
    now = rows_listing(path, changed, mtime=2_000)
    changes = find_changes(ledger, now.table, NONE, lambda sources: sha256s(now, sources, tmp_path))
    assert changes.to_decode["uri"].to_pylist() == [b"train/rows.parquet#4"]
    assert changes.stale["uri"].to_pylist() == [b"train/rows.parquet#4"]
    assert len(changes.unchanged) == 7


def test_sources_that_may_have_changed_are_asked_for_at_once(tmp_path):
    (tmp_path / "rows.csv").write_text("words,kind\n" + "a,x\nb,y\n" * 1250)
    source_table = listed(
        tmp_path / "rows.csv", ("text",), columns={"text": "words"}, target={"column": "kind"}
    )
    names = [uri.decode() for uri in source_table.table["uri"].to_pylist()]
    ledger = ledger_of(source_table, names)
    index = ledger.schema.get_field_index("state")
    ledger = ledger.set_column(index, "state", pa.nulls(2500, pa.string()))
    asked: list[int] = []

    def hashes(sources: pa.Table) -> list[str | None]:
        asked.append(sources.num_rows)
        return [uri.decode() for uri in sources["uri"].to_pylist()]

    assert not find_changes(ledger, source_table.table, NONE, hashes)
    assert asked == [2500]


def never_hashed(sources: pa.Table) -> list[str | None]:
    pytest.fail(f"{sources['uri'].to_pylist()} need not be hashed")


def same_hashes(sources: pa.Table) -> list[str | None]:
    return [uri.decode() for uri in sources["uri"].to_pylist()]


def image_rows(folder: Path, suffix: str, kinds: dict[str, str]) -> SourceTable:
    """A listing of images in a folder, by name, and their classes."""
    columns = {"file": list(kinds), "kind": list(kinds.values())}
    return listed(write_listing(folder, suffix, columns), **IMAGE_ROWS)


def of_uris(changes: Changes) -> tuple[list[bytes], list[bytes]]:
    """What is to be decoded, and what goes."""
    return changes.to_decode["uri"].to_pylist(), changes.stale["uri"].to_pylist()


@every_suffix
def test_a_row_whose_class_changed_is_decoded_again(tmp_path, suffix):
    make_tree(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    before = image_rows(tmp_path, suffix, {"1.jpg": "x", "2.jpg": "y", "3.jpg": "x"})
    ledger = ledger_of(before, same_hashes(before.table))
    now = image_rows(tmp_path, suffix, {"1.jpg": "x", "2.jpg": "y", "3.jpg": "y"})
    changes = find_changes(ledger, now.table, NONE, never_hashed)
    assert of_uris(changes) == ([b"train/3.jpg"], [b"train/3.jpg"])
    assert sorted(changes.unchanged.to_pylist()) == [b"train/1.jpg", b"train/2.jpg"]
    assert changes.to_decode["target"].to_pylist() == [1]


def test_a_touched_file_is_decoded_again_only_if_its_content_differs(tmp_path):
    make_tree(tmp_path, "1.jpg", "2.jpg")
    before = image_rows(tmp_path, ".csv", {"1.jpg": "x", "2.jpg": "y"})
    ledger = ledger_of(before, same_hashes(before.table))
    os.utime(tmp_path / "2.jpg", (1, 1))
    now = image_rows(tmp_path, ".csv", {"1.jpg": "x", "2.jpg": "y"}).table
    assert not find_changes(ledger, now, NONE, same_hashes)
    for found in ("another", None):  # None: it cannot be read
        changes = find_changes(ledger, now, NONE, lambda rows, found=found: [found] * rows.num_rows)
        assert of_uris(changes) == ([b"train/2.jpg"], [b"train/2.jpg"])


def test_a_new_row_is_decoded_and_a_row_that_is_gone_is_stale(tmp_path):
    make_tree(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    before = image_rows(tmp_path, ".csv", {"1.jpg": "x", "2.jpg": "y"})
    ledger = ledger_of(before, same_hashes(before.table))
    now = image_rows(tmp_path, ".csv", {"2.jpg": "y", "3.jpg": "x"}).table
    changes = find_changes(ledger, now, NONE, never_hashed)
    assert of_uris(changes) == ([b"train/3.jpg"], [b"train/1.jpg"])
    again = find_changes(ledger, now, pa.array([b"train/2.jpg"], pa.binary()), never_hashed)
    assert sorted(of_uris(again)[0]) == [b"train/2.jpg", b"train/3.jpg"]
    assert sorted(of_uris(again)[1]) == [b"train/1.jpg", b"train/2.jpg"]
