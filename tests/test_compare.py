"""A comparison and a ledger in many partitions are the same as in one."""

import hashlib
import os
from pathlib import Path

import pyarrow as pa
import pytest
from shard_sets import make_set
from source_trees import data_config, listed, make_files
from test_changes import ledger_of

from pipeline.preprocess.compare import SetChanges, compare
from pipeline.preprocess.ledger import Ledger, write_ledger
from pipeline.preprocess.sources import SourceTable, TableStore, partitions, stored_tables
from pipeline.preprocess.sources.listing import list_sources

QUARANTINED = pa.chunked_array([["train/a/003.png", "train/a/013.png", "elsewhere"]])


@pytest.fixture(params=[False, True], ids=["one partition", "many partitions"])
def _in_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(partitions, "ROWS", 11)
        monkeypatch.setattr(partitions, "MANY_PARTITIONS", 1 << 40)
        monkeypatch.setattr(stored_tables, "BYTES_IN_MEMORY", 0)


def compared(before: SourceTable, hashes: list[str | None], now: SourceTable) -> SetChanges:
    store = now.store
    ledger = Ledger((store.put(ledger_of(before, hashes)),))
    return compare(ledger, now, pa.array([b"train/b/001.png"], pa.binary()), QUARANTINED)


@pytest.mark.usefixtures("_in_parts")
def test_what_is_new_changed_or_gone_is_found_in_the_order_of_the_sources(tmp_path: Path) -> None:
    root = make_files(tmp_path / "f", {"a": 60, "b": 40})
    before = listed(root)
    hashes = ["0" * 64] * before.num_rows
    for number in range(10, 20):
        (root / "a" / f"{number:03d}.png").write_bytes(b"another")
    for number in range(30, 37):
        (root / "a" / f"{number:03d}.png").unlink()
    make_files(root, {"b": 5}, start=500)
    now = listed(root)
    changes = compared(before, hashes, now)
    changed = {f"train/a/{n:03d}.png".encode() for n in range(10, 20)} | {b"train/b/001.png"}
    gone = {f"train/a/{n:03d}.png".encode() for n in range(30, 37)}
    new = {f"train/b/{n:03d}.png".encode() for n in range(500, 505)}
    to_decode = now.with_chunks(changes.to_decode).table["uri"].to_pylist()
    assert set(to_decode) == changed | new
    assert to_decode == [uri for uri in now.table["uri"].to_pylist() if uri in changed | new]
    stale = [uri for table in changes.stale for uri in table.load()["uri"].to_pylist()]
    assert set(stale) == changed | gone and len(stale) == len(set(stale))
    assert changes.num_unchanged == 100 - 7 - 11
    assert set(changes.named.to_pylist()) == {b"train/a/003.png", b"train/a/013.png"}
    assert changes.named_unchanged.to_pylist() == [b"train/a/003.png"]
    assert changes.stale_shards().to_pylist() == [0]


@pytest.mark.usefixtures("_in_parts")
def test_touched_files_are_hashed_and_their_own_content_is_no_change(tmp_path: Path) -> None:
    root = make_files(tmp_path / "f", {"a": 60, "b": 40})
    before = listed(root)
    paths = [root / os.fsdecode(uri)[len("train/") :] for uri in before.table["uri"].to_pylist()]
    hashes: list[str | None] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    for path in paths:
        os.utime(path, (1, 1))
    changes = compared(before, hashes, listed(root))
    assert changes.num_unchanged == 99 and changes.num_to_decode == 1  # it is tried again


@pytest.mark.usefixtures("_in_parts")
def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    root = make_files(tmp_path / "raw", {"a": 60, "b": 40})
    make_set(tmp_path / "set")
    with TableStore() as store:
        sources = list_sources(data_config(root), store=store)
        made = ledger_of(sources, ["1" * 64] * sources.num_rows)
        write_ledger(
            tmp_path / "set",
            sources,
            made=[store.put(made)],
            seconds=3.5,
            addresses={"train": "/x"},
        )
        found = Ledger.read(tmp_path / "set", store)
        assert (found.seconds, found.addresses) == (3.5, {"train": "/x"})
        assert found.table.sort_by("uri").to_pylist() == made.sort_by("uri").to_pylist()
