"""Listings and tars that ask for more memory than they have bytes: refused before it is taken."""

import io
import json
import tarfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_bytes import declaring, parquet, repeated, texts
from source_trees import (
    TEXT_ROWS,
    listed,
    make_tar,
    make_tree,
    refusal,
    refused,
    uris,
    write_listing,
)
from test_shards_parquet import bomb

from pipeline.preprocess.sources import read_plan, row_groups, row_lines, write_plan
from pipeline.preprocess.sources.values import read_values
from shards import ShardError

ROWS = {"columns": {"image": "file"}, "target": {"kind": "none"}}


@contextmanager
def allocating_at_most(num_bytes: int) -> Iterator[None]:
    """Neither Python nor Arrow takes more meanwhile."""
    pool = pa.default_memory_pool()
    before = pool.max_memory()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= num_bytes, f"{peak} bytes"
    assert max(0, pool.max_memory() - max(before, num_bytes)) == 0


# --- Parquet ---


TEXTS = {"columns": {"text": "name"}, "target": {"kind": "none"}}


@pytest.mark.parametrize("declared", [2**31 - 1, 512 << 20])
def test_a_page_that_declares_gigabytes_is_refused_before_they_are_allocated(tmp_path, declared):
    path = tmp_path / "rows.parquet"
    path.write_bytes(bomb(declared))
    assert path.stat().st_size < 1000
    with allocating_at_most(64 << 20):
        message = refusal(path, ("text",), **TEXTS)
    assert message.startswith(f"data.train={path}: cannot be read: it: column 'name': a page of ")
    assert f" bytes would unpack into {declared}, more than " in message


FOUR_GIB = 4 << 30
PAGE = texts()
ASKING = {
    "three pages": [[declaring(PAGE, 2**31 - 1)] * 3],
    "pages that fit one by one": [[declaring(PAGE, row_groups.MAX_PAGE_BYTES)] * 16],
    "a last page": [[PAGE] * 8 + [declaring(PAGE, 2**31 - 1)] * 3],
    "row groups": [[declaring(PAGE, 2**31 - 1)]] * 3,
    "dictionaries": [[replace(declaring(PAGE, 2**31 - 1), kind=2), PAGE]] * 3,
}


@pytest.mark.parametrize("groups", ASKING.values(), ids=ASKING)
def test_a_listing_below_a_kilobyte_that_asks_for_four_gibibytes_is_refused(tmp_path, groups):
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet(groups))
    assert path.stat().st_size < 1000
    assert sum(page.declared or 0 for pages in groups for page in pages) >= FOUR_GIB
    with allocating_at_most(1 << 20):
        message = refusal(path, ("text",), **TEXTS)
    assert " bytes would unpack into " in message and "\n" not in message
    with pytest.raises(ShardError, match="would unpack into"), allocating_at_most(1 << 20):
        read_values(str(path), [0], ["name"])
    honest = [[replace(page, declared=None) for page in pages] for pages in groups]
    path.write_bytes(parquet(honest))
    assert pq.read_table(path).num_rows == sum(p.kind == 0 for pages in groups for p in pages)


def test_a_listing_of_a_few_bytes_and_billions_of_rows_is_refused(tmp_path):
    """A run of equal values takes no bytes for each, but every row that is read takes memory."""
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet([repeated(2**31 - 1)]))
    assert path.stat().st_size < 200
    with allocating_at_most(1 << 20):
        message = refusal(path, ("text",), **TEXTS)
    assert "2147483647 rows in 156 bytes, and at most" in message
    path.write_bytes(parquet([repeated(700)]))
    assert len(uris(listed(path, ("text",), **TEXTS))) == 700


@pytest.mark.parametrize("rows", [[2**40, -(2**40) + 2], [5, 2**62], [-1, 3]])
def test_a_listing_whose_row_groups_contradict_its_footer_is_refused(tmp_path, rows):
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet([[PAGE], [PAGE]], rows))
    with allocating_at_most(64 << 20):
        message = refusal(path, ("text",), **TEXTS)
    assert "cannot be read" in message and "\n" not in message


def test_workers_ask_the_pages_too(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(bomb(None))
    source_table = listed(path, ("text",), **TEXTS)
    plan = tmp_path / "plan" / "p.parquet"
    write_plan(source_table, plan, 9)
    assert len(read_plan(plan, 0)) == 4
    path.write_bytes(bomb(2**31 - 1))  # after it was listed
    with allocating_at_most(64 << 20), pytest.raises(ShardError, match="would unpack into"):
        read_plan(plan, 0)


def test_a_dictionary_that_every_row_repeats_is_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
    large = "a" * (1 << 20)
    pq.write_table(pa.table({"words": [large] * 2000, "kind": ["x", "y"] * 1000}),
                   tmp_path / "rows.parquet", compression="zstd", write_batch_size=64,
                   dictionary_pagesize_limit=4 << 20)  # fmt: skip
    assert (tmp_path / "rows.parquet").stat().st_size < 100_000
    monkeypatch.setattr(row_groups, "MAX_ROWS_BYTES", 32 << 20)
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    most = 0
    with (tmp_path / "rows.parquet").open("rb") as file:
        for batch in row_groups.group_batches(file, pq.ParquetFile(file), 0, ["words"], 1024):
            most = max(most, pool.bytes_allocated() - before)
            assert batch.num_rows <= 32
    assert most < 256 << 20
    assert read_values(str(tmp_path / "rows.parquet"), [7, 1999], ["words"]).num_rows == 2


@pytest.mark.parametrize("offset", [-8, -6, -60, 40, 300])
def test_a_damaged_parquet_listing_ends_with_a_line(tmp_path, offset):
    path = write_listing(tmp_path, ".parquet", {"words": ["a"] * 50, "kind": ["x", "y"] * 25})
    data = bytearray(path.read_bytes())
    data[offset : offset + 3] = b"\xff\xff\xff"
    path.write_bytes(data)
    try:
        listed(path, ("text",), **TEXT_ROWS)
    except Exception as error:
        assert type(error).__name__ == "UserError" and "\n" not in str(error)


# --- CSV and JSON Lines ---


def test_a_csv_row_without_an_end_is_read_no_further_than_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(row_lines, "MAX_LINE_BYTES", 1 << 20)
    make_tree(tmp_path, "1.png")
    path = tmp_path / "rows.csv"
    for body, message in {
        b"x" * (8 << 20): "line 3 has a row of more than 1048576 bytes, or a quote",
        b'"x\n' + b"x\n" * (4 << 20): "line 3 has a row of more than 1048576 bytes, or a quote",
        b'"' + b"x" * 9000 + b'"' + b',"\n"' * (1 << 20): "line 3 has a row of more than",
    }.items():
        path.write_bytes(b"file,kind\n1.png,x\n" + body)
        with allocating_at_most(24 << 20):
            assert message in refusal(path, **ROWS)
    monkeypatch.setattr(row_lines, "MAX_LINE_VALUES", 1000)
    path.write_bytes(b"file,kind\n1.png,x\n" + b"," * 5000)
    assert refusal(path, **ROWS).endswith("line 3 has a row of more than 1000 commas")
    path.write_bytes(b"," * 5000)
    assert refusal(path, **ROWS).endswith("line 1 has a row of more than 1000 commas")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"file": "' + b"x" * (2 << 20) + b'"}', "a line of more than 1048576 bytes"),
        (b"[" * 500_000, "a line of more than 100000 values"),
        (b'{"file": [' + b"[]," * 200_000 + b"1]}", "a line of more than 100000 values"),
        (b'{"file": ' + b'{"a":' * 90_000 + b"1" + b"}" * 90_000 + b"}", "not JSON"),
        (b'{"file": ' + b"9" * 100_000 + b"}", "not JSON"),
    ],
)
def test_a_json_line_is_bounded_in_bytes_values_and_depth(tmp_path, monkeypatch, line, message):
    monkeypatch.setattr(row_lines, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(row_lines, "MAX_LINE_VALUES", 100_000)
    make_tree(tmp_path, "1.png", "2.png")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"file": "1.png"}\n' + line + b'\n{"file": "2.png"}\n')
    source_table = listed(path, **ROWS)
    assert set(uris(source_table)) == {"train/1.png", "train/2.png"}
    assert refused(source_table) == {"train/rows.jsonl#1": message}


def test_columns_that_are_not_asked_for_are_not_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(200):
            file.write(json.dumps({f"c{number}": "x" * 200_000}) + "\n")
    with allocating_at_most(16 << 20):
        assert "no column 'file'" in refusal(path, **ROWS)


@pytest.mark.parametrize("column", ["file", "id", "part"])
def test_long_names_are_not_carried_along(tmp_path, column):
    make_tree(tmp_path, "1.png", "2.png")
    values = {"file": ["1.png", "2.png"], "id": ["a", "b"], "part": ["train", "train"]}
    values[column][1] = "x" * 100_000
    path = write_listing(tmp_path, ".csv", values)
    key = {} if column == "file" else {"key": "id"}
    source_table = listed(path, columns={"image": "file", "split": "part", **key},
                     target={"kind": "none"})  # fmt: skip
    assert len(uris(source_table)) == 1 and source_table.refused.num_rows == 1
    assert len(str(source_table.refused.to_pylist())) < 1000


# --- tars ---


def pax(records: dict[str, str]) -> bytes:
    """A tar of one member whose extended header has these records."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("1.png")
        info.size, info.pax_headers = 3, records
        tar.addfile(info, io.BytesIO(b"one"))
    return file.getvalue()


def test_extended_headers_are_not_collected(tmp_path):
    member = pax({f"k{n}": "v" * 2000 for n in range(400)})
    glob = bytearray(member)
    at = glob.index(b"x", 156)
    assert at == 156
    single = bytes(glob[: 512 + -(-int(bytes(glob[124:135]), 8) // 512) * 512])
    as_global = bytearray(single)
    as_global[156:157] = b"g"
    as_global[148:156] = b" " * 8
    as_global[148:156] = b"%06o\0 " % sum(as_global[:512])
    body = b"".join(bytes(as_global).replace(b" k", b" %c" % (97 + n)) for n in range(20))
    plain = make_tar(tmp_path / "plain.tar", {"1.png": b"one"}).read_bytes()
    (tmp_path / "a.tar").write_bytes(body + plain)
    with allocating_at_most(8 << 20):
        assert uris(listed(tmp_path / "a.tar", target={"kind": "none"})) == ["train/a.tar/1"]


def test_a_long_name_costs_its_member(tmp_path):
    (tmp_path / "a.tar").write_bytes(pax({"path": "n" * 100_000 + ".png"}))
    make_tar(tmp_path / "b.tar", {"1.png": b"one"})
    source_table = listed(tmp_path / "{a,b}.tar", target={"kind": "none"})
    assert uris(source_table) == ["train/b.tar/1"]
    ((name, message),) = refused(source_table).items()
    assert message == "a name of 100004 bytes, more than 4096" and len(name) < 5000


@pytest.mark.parametrize("size", [1 << 40, 10**18 - 1, 3 << 30])
def test_a_member_that_declares_terabytes_ends_its_tar(tmp_path, size):
    (tmp_path / "a.tar").write_bytes(pax({"size": str(size)}))
    with allocating_at_most(4 << 20):
        message = refusal(tmp_path / "a.tar", target={"kind": "none"})
    assert f"has {size} bytes, and " in message
