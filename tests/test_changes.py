"""What is decoded again: what has other bytes, not what has other times."""

import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from source_trees import listed

from pipeline.preprocess.changes import find_changes
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


def sha256s(listing: SourceTable, sources: pa.Table, folder: Path) -> list[str | None]:
    """The sha256 of each source's content."""
    plan = folder / "plan.parquet"
    count = write_plan(replace(listing, table=sources), plan, 1000)
    planned = [row for number in range(count) for row in read_plan(plan, number)]
    return [source_sha256(row, read_contents(row, listing.roots[row.split])) for row in planned]


def ledger_of(listing: SourceTable, hashes: list[str | None]) -> pa.Table:
    """As if a set had been made of the listing."""
    table = listing.table
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
    listing = listed(
        tmp_path / "rows.csv", ("text",), columns={"text": "words"}, target={"column": "kind"}
    )
    names = [uri.decode() for uri in listing.table["uri"].to_pylist()]
    ledger = ledger_of(listing, names)
    place = ledger.schema.get_field_index("state")
    ledger = ledger.set_column(place, "state", pa.nulls(2500, pa.string()))
    asked: list[int] = []

    def hashes(sources: pa.Table) -> list[str | None]:
        asked.append(sources.num_rows)
        return [uri.decode() for uri in sources["uri"].to_pylist()]

    assert not find_changes(ledger, listing.table, NONE, hashes)
    assert asked == [2500]
