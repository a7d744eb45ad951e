"""CSV by blocks gives what the row-by-row parser gives, whatever the bytes."""

import io

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.preprocess.sources import csv_blocks
from pipeline.preprocess.sources.csv_blocks import csv_pieces
from pipeline.preprocess.sources.row_lines import csv_rows, skip_bom

CELLS = st.one_of(
    st.sampled_from(
        [b"", b"NA", b"nan", b"1_000", b"007", b"1e400", b" x ", b"true", b"2020-01-01T00:00:00",
         b"\xff\xfe", b"\x00", b'"a,b"', b'"a\nb"', b'a"b', b'"', b"\xef\xbb\xbfx", b"\r", b"#"]
    ),
    st.binary(max_size=6),
)  # fmt: skip
LINES = st.lists(CELLS, max_size=4).map(b",".join)
FILES = st.tuples(
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r"])), max_size=12),
    LINES,
)


def by_row(data: bytes, num_columns: int) -> tuple[list[list[bytes]], list[tuple[int, str]], str]:
    file, rows, unread, error = io.BytesIO(data), [], [], ""
    skip_bom(file)
    seen = False
    try:
        for line, values in csv_rows(file):
            if isinstance(values, str):
                unread.append((line, values))
            elif not seen:
                seen = True
            elif len(values) != num_columns:
                unread.append((line, f"{len(values)} values for {num_columns} columns"))
            else:
                rows.append(values)
    except OSError as caught:
        error = str(caught)
    return rows, unread, error


def by_block(data: bytes, num_columns: int) -> tuple[list[list[bytes]], list[tuple[int, str]], str]:
    rows, unread, error = [], [], ""
    try:
        for piece in csv_pieces(io.BytesIO(data), num_columns, range(num_columns)):
            assert all(column.type == pa.binary() for column in piece.columns)
            rows += map(list, zip(*(c.to_pylist() for c in piece.columns), strict=True))
            unread += piece.unread
    except OSError as caught:
        error = str(caught)
    return rows, unread, error


@given(file=FILES, num_columns=st.integers(1, 3), size=st.sampled_from([1, 7, 40, 1 << 20]))
@settings(max_examples=300, deadline=None)
def test_the_rows_are_the_same(file, num_columns: int, size: int) -> None:
    mark, lines, last = file
    data = mark + b"".join(line + end for line, end in lines) + last
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_blocks, "BLOCK_BYTES", size)
        found, expected = by_block(data, num_columns), by_row(data, num_columns)
    if expected[2]:  # rows before the error may be lost with it: the listing is refused as a whole
        assert found[2] == expected[2]
    else:
        assert found == expected


def test_a_plain_file_is_parsed_by_arrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_blocks, "csv_rows", None)
    monkeypatch.setattr(csv_blocks, "BLOCK_BYTES", 50)
    data = b"\xef\xbb\xbf\na,b\n" + b"".join(b"%d,x%d\r\n" % (n, n) for n in range(100))
    rows, unread, _ = by_block(data, 2)
    assert rows == [[b"%d" % n, b"x%d" % n] for n in range(100)]
    assert unread == []


def test_a_byte_order_mark_within_a_file_is_part_of_a_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(csv_blocks, "BLOCK_BYTES", 1)
    assert by_block(b"a\n\xef\xbb\xbfx\n", 1)[0] == [[b"\xef\xbb\xbfx"]]
