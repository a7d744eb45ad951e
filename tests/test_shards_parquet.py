"""Parquet files that would unpack into far more than they are."""

import io
import struct
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import ShardError
from shards.parquet import decode_parquet, encode_parquet
from shards.parquet_pages import check_parquet, dictionary_columns, unpacked_bytes
from shards.thrift_compact import CompactReader

SCHEMA = pa.schema([("name", pa.string()), ("size", pa.int64())])
MANY = 1 << 40


def table(num_rows: int, name: str = "a") -> pa.Table:
    return pa.table({"name": [name] * num_rows, "size": list(range(num_rows))}, schema=SCHEMA)


def written(content: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(content, file, **options)
    return file.getvalue()


def zigzag(value: int) -> bytes:
    value, data = value << 1, bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes(data) + bytes([value])


def bomb(declared: int | None) -> bytes:
    """A small file whose one page says that it unpacks into `declared` bytes; None: what it has."""
    data = written(
        pa.table({"name": ["a" * 300] * 4}), use_dictionary=False, compression="zstd",
        write_statistics=False, store_schema=False,
    )  # fmt: skip
    chunk = pq.read_metadata(io.BytesIO(data)).row_group(0).column(0)
    start, stop = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
    page = data[start:stop]
    unpacked = chunk.total_uncompressed_size - (chunk.total_compressed_size - packed(page))
    own = zigzag(unpacked)
    offset = page.index(own, 2)
    changed = page[:offset] + zigzag(declared or unpacked) + page[offset + len(own) :]
    footer = data[stop:-8].replace(zigzag(chunk.total_compressed_size), zigzag(len(changed)))
    return data[:start] + changed + footer + struct.pack("<I", len(footer)) + b"PAR1"


def packed(page: bytes) -> int:
    """Where its zstd frame begins gives the packed size."""
    return len(page) - page.index(b"\x28\xb5\x2f\xfd")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"data_page_version": "2.0"},
        {"use_dictionary": False},
        {"compression": "none"},
        {"data_page_size": 64, "row_group_size": 7},
        {"write_page_checksum": True, "write_page_index": True},
    ],
)
def test_a_file_is_read_however_its_pages_are_written(options: dict[str, Any]) -> None:
    content = table(100)
    data = written(content, **options)
    assert check_parquet(data, "x", max_bytes=1 << 20, max_rows=100).num_rows == 100
    assert decode_parquet(data, SCHEMA, "x").equals(content)


def test_a_page_that_declares_gigabytes_is_refused_before_they_are_allocated() -> None:
    data = bomb(None)
    assert pq.read_table(io.BytesIO(data)).num_rows == 4
    check_parquet(data, "x", max_bytes=1 << 20, max_rows=4)

    data = bomb(2**31 - 1)
    assert len(data) < 1000
    before = pa.total_allocated_bytes()
    with pytest.raises(ShardError, match=r"x: it would unpack into more than 16777216 bytes"):
        check_parquet(data, "x", max_bytes=1 << 24, max_rows=4)
    assert pa.total_allocated_bytes() == before


def test_a_long_string_that_is_repeated_is_not_expanded() -> None:
    """The dictionary has it once, and each row an index of a few bits."""
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), ["a" * 100_000])
    content = pa.table({"name": names, "size": pa.repeat(0, 200_000)})
    data = written(content, compression="zstd", store_schema=False)
    assert len(data) < 10_000
    before = pa.total_allocated_bytes()
    with pytest.raises(ShardError, match="would unpack into more than"):
        decode_parquet(data, SCHEMA, "x", max_rows=200_000)
    assert pa.total_allocated_bytes() - before < 1 << 20
    metadata = check_parquet(data, "x", max_bytes=1 << 26, max_rows=200_000)
    assert dictionary_columns(metadata) == ["name"]
    read = pq.read_table(io.BytesIO(data), read_dictionary=["name"])
    assert unpacked_bytes(read) > 200_000 * 100_000


def test_a_value_that_repeats_the_one_before_it_is_not_expanded() -> None:
    content = pa.table({"name": ["a" * 100_000] * 200, "size": [0] * 200}, schema=SCHEMA)
    data = written(content, use_dictionary=False, column_encoding={"name": "DELTA_BYTE_ARRAY"})
    with pytest.raises(ShardError, match="column 'name': it is encoded as DELTA_BYTE_ARRAY"):
        decode_parquet(data, SCHEMA, "x")


def test_repeated_numbers_and_lists_count_by_their_values() -> None:
    zeros = written(pa.table({"size": pa.repeat(0, 3_000_000)}), compression="zstd")
    lists = pa.table({"many": pa.array([[0] * 3_000_000])})
    for data in (zeros, written(lists, compression="zstd")):
        assert len(data) < 20_000
        with pytest.raises(ShardError, match="would unpack into more than"):
            check_parquet(data, "x", max_bytes=1 << 24, max_rows=MANY)
    wide = pa.table({"wide": pa.array([bytes(1000)] * 30_000, pa.binary(1000))})
    with pytest.raises(ShardError, match="would unpack into more than"):
        check_parquet(written(wide), "x", max_bytes=1 << 24, max_rows=MANY)


def test_more_rows_than_are_known_of_are_refused() -> None:
    with pytest.raises(ShardError, match="100 rows, and at most 99 are expected"):
        decode_parquet(encode_parquet(table(100)), SCHEMA, "x", max_rows=99)


def test_other_columns_are_refused_before_they_are_read() -> None:
    other = written(pa.table({"other": [b"a" * 1000] * 10}))
    with pytest.raises(ShardError, match="has the columns other instead of name, size"):
        decode_parquet(other, SCHEMA, "x")


def test_strings_that_are_not_utf_8_are_refused() -> None:
    raw = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    data = encode_parquet(pa.table({"name": raw, "size": [1]}, schema=SCHEMA))
    with pytest.raises(ShardError, match="not a readable Parquet file"):
        decode_parquet(data, SCHEMA, "x")


def test_any_changed_byte_gives_a_table_or_one_line() -> None:
    data = encode_parquet(table(20))
    for offset in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[offset] ^= mask
            try:
                assert decode_parquet(bytes(changed), SCHEMA, "x").schema.names == SCHEMA.names
            except ShardError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("nested", [b"\x1c", b"\x19\x1c", b"\x19\x19"])
def test_a_footer_nested_without_end_is_refused(nested: bytes) -> None:
    """A struct in a struct, a list of structs, a list of lists."""
    with pytest.raises(ValueError, match="nested too deeply"):
        CompactReader(nested * 100_000).struct({})
