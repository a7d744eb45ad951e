"""Hashes the content of sources whose sizes or times differ from those of the earlier set."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.media.errors import MediaError
from pipeline.preprocess.shard_task import read_contents, source_sha256
from pipeline.preprocess.sources import (
    Reach,
    SourceRow,
    SourceTable,
    TableStore,
    read_plan,
    shard_addresses,
    write_plan,
)
from pipeline.preprocess.sources.tables import REFUSED_SCHEMA
from pipeline.preprocess.sources.values import InlineValues

HASHED_AT_ONCE = 1000


@dataclass(frozen=True)
class SourceHasher:
    """Hashes sources, in this process or in a task.

    Attributes:
        reaches: What the sources of each split may read.
        values: For each split whose rows hold values, where these lie.
    """

    reaches: Mapping[str, Reach]
    values: Mapping[str, InlineValues]

    @classmethod
    def of(cls, source_table: SourceTable) -> "SourceHasher":
        """Make one for the sources of a table."""
        return cls(source_table.reaches, source_table.values)

    def __call__(self, sources: pa.Table) -> list[str | None]:
        """Hash some sources.

        Args:
            sources: Rows of a source table.

        Returns:
            For each row 64 hexadecimal digits, or None if the source cannot be read.
        """
        with (
            TableStore() as store,
            tempfile.TemporaryDirectory(prefix="perceiver-plan-") as folder,
        ):
            empty = SourceTable(
                (), (), dict(self.reaches), REFUSED_SCHEMA.empty_table(), store, dict(self.values)
            )
            part = empty.with_table(sources)
            plan = Path(folder) / "doubtful.parquet"
            shards = write_plan(part, plan, HASHED_AT_ONCE)
            addresses = shard_addresses(part, HASHED_AT_ONCE)
            rows = (
                row
                for shard in range(shards)
                for row in read_plan(
                    plan, shard, addresses[shard] if addresses else None, part.value_addresses
                )
            )
            return [_sha256(row, self.reaches[row.split]) for row in rows]


def _sha256(row: SourceRow, reach: Reach) -> str | None:
    try:
        return source_sha256(row, read_contents(row, reach))
    except (MediaError, OSError):
        return None
