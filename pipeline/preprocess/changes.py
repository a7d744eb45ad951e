"""Finds what has changed among the sources since a shard set was made."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.preprocess.ledger import source_states


@dataclass(frozen=True)
class Changes:
    """The work that brings a set up to date with its sources.

    Attributes:
        to_decode: The sources to decode: added, changed, or tried again.
        unchanged: The URIs of the other sources.
        stale: The URI and shard of each source whose samples must be removed, because the source
            was changed, tried again or deleted.
    """

    to_decode: pa.Table
    unchanged: pa.Array
    stale: pa.Table

    def __bool__(self) -> bool:
        """Return whether there is anything to do."""
        return bool(self.to_decode.num_rows or self.stale.num_rows)


def find_changes(
    ledger: pa.Table,
    source_table: pa.Table,
    again: pa.Array,
    sha256s: Callable[[pa.Table], list[str | None]],
) -> Changes:
    """Compare the sources with the ledger.

    Sizes and times are compared first. The content is hashed only where these differ.

    Args:
        ledger: A row for each source that the set was made from.
        source_table: A row for each source that exists now.
        again: The URIs to try again, whatever their state.
        sha256s: The function that hashes the content of sources. It is called at most once, with
            all sources that may have changed. It returns None for a source that cannot be read.

    Returns:
        The changes.
    """
    known = pc.index_in(source_table["uri"], value_set=ledger["uri"].combine_chunks())
    before = ledger["sha256"].take(known)
    in_set = _true(pc.is_valid(before))
    targets = (
        pc.fill_null(table, -1) for table in (source_table["target"], ledger["target"].take(known))
    )
    # A new target makes a new sample, even if the file is unchanged.
    may_skip_hash = ~_true(pc.is_in(source_table["uri"], value_set=again))
    may_skip_hash &= ~in_set | _true(pc.equal(*targets))
    unchanged_rows = (
        _true(pc.equal(source_states(source_table), ledger["state"].take(known))) & may_skip_hash
    )
    must_hash = ~unchanged_rows & may_skip_hash & in_set
    numbers = np.flatnonzero(must_hash)
    if len(numbers):
        rows = pa.array(numbers)
        found = pa.array(sha256s(source_table.take(rows)), pa.string())
        unchanged_rows[numbers] = _true(pc.equal(found, before.take(rows)))
    unchanged = source_table["uri"].filter(pa.array(unchanged_rows)).combine_chunks()
    gone = ~_true(pc.is_in(ledger["uri"], value_set=unchanged))
    stale = gone & _true(pc.is_valid(ledger["shard"]))
    return Changes(
        to_decode=source_table.filter(pa.array(~unchanged_rows)),
        unchanged=unchanged,
        stale=ledger.select(["uri", "shard"]).filter(pa.array(stale)),
    )


def _true(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return where a nullable boolean is true."""
    return np.array(pc.fill_null(values, False), dtype=bool)
