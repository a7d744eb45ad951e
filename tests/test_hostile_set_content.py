"""Malformed JSON, arrays, quarantine tables and ledgers are refused in one line."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hostile_sets import BAD_DIGESTS, OUTSIDE, assert_plain, seal
from shard_sets import SPEC

from pipeline.preprocess.ledger import Ledger, ledger_path
from shards import ShardError, ShardSet, read_position_table, read_quarantine
from shards.npy import decode_npy
from shards.parquet import encode_parquet
from shards.quarantine import read_quarantine_table

MOST = (1 << 62) - 1


def test_a_quarantine_with_a_missing_field_is_refused(set_copy: Path) -> None:
    path = set_copy / "quarantine.parquet"
    schema = read_quarantine_table(path).schema
    row = {"source_uri": None, "split": "train", "reason": "x", "traceback": ""}
    path.write_bytes(encode_parquet(pa.Table.from_pylist([row], schema=schema)))
    with pytest.raises(ShardError, match="a field is missing"):
        read_quarantine(path)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"format_version": 1, "config": ' + b"[" * 100_000,
        b'{"format_version": ' + b"9" * 5000 + b"}",
        b'{"format_version": NaN}',
        b'{"format_version": 1, "config": {"a": 1e999}}',
        b"\xff\xfe",
        b"",
        b"null",
        b"[]",
        b'[{"format_version": 1}]',
    ],
)
def test_json_of_any_kind_is_refused_in_one_line(set_copy: Path, data: bytes) -> None:
    (set_copy / "manifest.json").write_bytes(data)
    with pytest.raises(ShardError) as refusal:
        ShardSet.open(set_copy)
    assert_plain(str(refusal.value))


def npy(header: str, payload: bytes = b"") -> bytes:
    text = header.encode().ljust(118)[:-1] + b"\n" if len(header) < 118 else header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + payload


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': (0, {MOST}, {MOST}), }}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0x" + "f" * 6000 + ",), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (), }",
        "{'descr': '<U0', 'fortran_order': False, 'shape': (9,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,) * 10**9, }",
        "(" * 5000,
        "-" * 9000 + "1",
        "",
    ],
)
def test_the_header_of_an_array_is_bounded(set_copy: Path, header: str) -> None:
    data = npy(header)
    with pytest.raises(ShardError) as refusal:
        decode_npy(data)
    assert_plain(str(refusal.value))
    (set_copy / "positions" / f"{SPEC.digest}.npy").write_bytes(data)
    seal(set_copy)
    with pytest.raises(ShardError):
        ShardSet.open(set_copy).position_table(SPEC)
    with pytest.raises(ShardError):
        read_position_table(set_copy, SPEC.digest)


@pytest.mark.parametrize("digest", BAD_DIGESTS)
def test_a_position_table_is_named_by_a_digest(set_copy: Path, digest: str) -> None:
    with pytest.raises(ShardError):
        read_position_table(set_copy, digest)


def test_a_hostile_ledger_is_no_ledger(set_copy: Path) -> None:
    digest = ShardSet.open(set_copy).digest.encode()
    good = Ledger.read(set_copy).table
    about = {b"digest": digest, b"seconds": b"1", b"places": b'{"train": "/data"}'}

    def read(rows: pa.Table, **changes: bytes) -> Ledger:
        metadata = about | {name.encode(): value for name, value in changes.items()}
        ledger_path(set_copy).write_bytes(encode_parquet(rows.replace_schema_metadata(metadata)))
        return Ledger.read(set_copy)

    assert read(good).addresses == {"train": "/data"}
    for seconds in (b"nan", b"inf", b"-1", b"x", b"\xff", b""):
        assert not read(good, seconds=seconds).addresses
    for addresses in (b"[]", b"5", b'{"train": 5}', b'{"../x": "a"}', b"[" * 99_999, b"\xff",
                   b'{"train": "\\u001b[2J"}', b'{"train": ""}'):  # fmt: skip
        assert not read(good, places=addresses).addresses
    longest = "/" + "a" * 9_999
    assert read(good, places=json.dumps({"train": longest}).encode()).addresses
    assert not read(good, places=json.dumps({"train": f"{longest}a"}).encode()).addresses
    for reading in (b"[]", b'{"train": "/"}', b'{"allow": "/"}', b'{"allow": [5]}', b"{"):
        assert not read(good, reading=reading).addresses
    for column, value in (("shard", 7), ("shard", -1), ("sha256", OUTSIDE), ("split", "../x"),
                          ("target", -5), ("uri", None)):  # fmt: skip
        rows = good.to_pylist()
        rows[0][column] = value
        assert not read(pa.Table.from_pylist(rows, schema=good.schema)).addresses
    assert not read(pa.concat_tables([good, good])).addresses
