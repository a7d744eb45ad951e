"""Values that lie in a listing's rows: where workers find them, and how they read them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.data import absolute
from pipeline.media.registered import MODALITIES
from pipeline.preprocess.sources.parts import opened
from pipeline.preprocess.sources.row_groups import group_batches
from pipeline.preprocess.sources.rows import TableFile
from pipeline.preprocess.sources.typed import TYPES, to_role
from shards.parquet_groups import open_parquet
from shards.redaction import without_secrets

MAX_ROW_GROUP_BYTES = 256 << 20
READ_ROWS = 256


@dataclass(frozen=True)
class InlineValues:
    """The columns of a listing whose values go into the samples.

    Attributes:
        table_file: The listing, reduced to these columns.
    """

    table_file: TableFile

    @property
    def path(self) -> str:
        """The path or URL of the listing, without secrets."""
        return without_secrets(absolute(self.table_file.source))

    def prepare(self, copy: Path) -> dict[str, Any]:
        """Make the values readable by row.

        A Parquet file is used in place, unless its row groups are too large to read for a few rows.
        Any other file is copied to Parquet, with the same bytes every time.

        Args:
            copy: The path of a copy.

        Returns:
            JSON that `read_row_values` needs.
        """
        columns = self.table_file.columns
        in_place = self.table_file.suffix == ".parquet" and self._has_small_groups()
        if not in_place:
            self._write(copy)
        return {
            "path": self.path if in_place else str(copy),
            "columns": [
                {
                    "name": column.name if in_place else str(index),
                    "of": column.name,
                    "role": column.role,
                    "use": column.use,
                    "separator": column.separator,
                }
                for index, column in enumerate(columns)
            ],
        }

    def _has_small_groups(self) -> bool:
        with opened(self.table_file.source) as file:
            about = open_parquet(file, self.path).metadata
            sizes = [about.row_group(n).total_byte_size for n in range(about.num_row_groups)]
        return max(sizes, default=0) <= MAX_ROW_GROUP_BYTES

    def _write(self, path: Path) -> None:
        schema = pa.schema(
            [
                (str(index), TYPES[column.role])
                for index, column in enumerate(self.table_file.columns)
            ]
        )
        with pq.ParquetWriter(path, schema) as writer:
            for batch in self.table_file.batches():
                if len(batch.arrays[0]):
                    writer.write_batch(pa.RecordBatch.from_arrays(batch.arrays, schema=schema))


def read_values(path: str, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Read some rows of a Parquet file. Memory holds these rows and one page.

    Args:
        path: The path or URL of the file.
        rows: The indices of the rows, increasing.
        columns: The names of the columns.

    Returns:
        The rows in the order of `rows`.

    Raises:
        IndexError: There is no such row.
    """
    wanted = np.asarray(rows, np.int64)
    with opened(path) as file:
        parquet = open_parquet(file, "it")
        about = parquet.metadata
        if len(wanted) and (wanted[-1] >= about.num_rows or wanted[0] < 0):
            raise IndexError(f"{path}: has {about.num_rows} rows, and no row {wanted[-1]}")
        sizes = [about.row_group(number).num_rows for number in range(about.num_row_groups)]
        starts = np.r_[0, np.cumsum(sizes)]
        groups = np.unique(np.searchsorted(starts, wanted, side="right") - 1)
        taken = []
        for number in groups.tolist():
            index = int(starts[number])
            for batch in group_batches(file, parquet, number, list(columns), READ_ROWS):
                first, last = np.searchsorted(wanted, [index, index + batch.num_rows])
                if first < last:
                    taken.append(batch.take(pa.array(wanted[first:last] - index)))
                index += batch.num_rows
        schema = pa.schema([parquet.schema_arrow.field(name) for name in columns])
    tables = [pa.Table.from_batches([batch]).select(list(columns)) for batch in taken]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def read_row_values(
    about: dict[str, Any], rows: Sequence[int]
) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """Yield what the listing holds for each row.

    Args:
        about: The description from `InlineValues.prepare`.
        rows: The indices of the rows, increasing.

    Yields:
        The values in the types of JSON: `table` (column to value) and `target`; and the bytes of
        fields that lie in the row itself.
    """
    columns = about["columns"]
    names = list(dict.fromkeys(column["name"] for column in columns))
    table = read_values(about["path"], rows, names)
    for start in range(0, table.num_rows, READ_ROWS):
        part = table.slice(start, READ_ROWS).combine_chunks()
        typed = [
            to_role(_one_array(part[column["name"]]), column["role"], column["separator"])[0]
            for column in columns
        ]
        for index in range(part.num_rows):
            yield _row(columns, [array[index].as_py() for array in typed])


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _row(columns: list[dict[str, Any]], row: list[Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    values: dict[str, Any] = {}
    inline: dict[str, bytes] = {}
    for column, value in zip(columns, row, strict=True):
        use, role = column["use"], column["role"]
        if role in ("text", "bytes"):
            if value is not None:
                inline[use] = value
        elif use in MODALITIES:  # one of the columns of a row
            values.setdefault(use, {})[column["of"]] = value
        elif role == "number":  # one of several columns that make the target
            values.setdefault(use, []).append(value)
        else:
            values[use] = value
    return values, inline
