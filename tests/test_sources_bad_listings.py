"""SourceTable files that are wrong: as a whole, or in single rows."""

import os

import pyarrow as pa
import pyarrow.csv
import pytest
from source_trees import (
    IMAGE_ROWS,
    TEXT_ROWS,
    every_suffix,
    listed,
    make_tree,
    refusal,
    refused,
    uris,
    write_listing,
)

from pipeline.preprocess.sources.columns import Column
from pipeline.preprocess.sources.rows import BATCH_ROWS, TableFile


@every_suffix
def test_a_missing_column_is_refused_with_those_there_are(tmp_path, suffix):
    path = write_listing(tmp_path, suffix, {"path": ["1"], "label": ["x"]})
    assert refusal(path, **IMAGE_ROWS) == (
        f"data.train={path}: no column 'file' (data.columns.image); it has 'path', 'label'"
    )
    message = refusal(path, target={"column": "label"})
    assert message.startswith(f"data.train={path}: data.columns.image is missing; name the column")
    message = refusal(path, columns={"image": "path"})
    assert message.startswith(f"data.train={path}: data.target.column is missing; name the column")


def test_columns_of_a_wrong_type_are_refused(tmp_path):
    path = write_listing(tmp_path, ".parquet", {"file": [1.5, 2.5], "kind": ["x", "y"]})
    assert refusal(path, **IMAGE_ROWS) == (
        f"data.train={path}: column 'file' (data.columns.image) holds double; text (paths) or "
        "binary (bytes of files) is needed"
    )
    path = write_listing(tmp_path, ".parquet", {"file": ["a", "b"], "kind": [[1], [2]]})
    message = (
        "column 'kind' (data.target.column) holds list<element: int64>; text, numbers or dates"
    )
    assert message in refusal(path, **IMAGE_ROWS)


def test_csv_rows_that_are_cut_or_not_utf_8_are_single_losses(tmp_path):
    make_tree(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "r.csv").write_bytes(
        b"\xef\xbb\xbffile,kind\n1.jpg,x\n2.jpg\n\xff\xfe.jpg,y\n2.jpg,y\n1.jpg,x,more\n"
    )
    source_table = listed(tmp_path / "r.csv", **IMAGE_ROWS)
    assert set(uris(source_table)) == {"train/1.jpg", "train/2.jpg"}
    assert refused(source_table) == {
        "train/r.csv#line 3": "1 values for 2 columns",
        "train/r.csv#line 6": "3 values for 2 columns",
        "train/\udcff\udcfe.jpg": "image: No such file or directory",
    }


def test_csv_quotes_that_are_wrong_cost_their_row_or_tell_their_line(tmp_path):
    make_tree(tmp_path, "1.jpg", "2.jpg")
    start = b'file,kind\n1.jpg,"x"\n"1"2.jpg,x\n2.jpg,\xff,\xfe\n2.jpg,y\n'
    (tmp_path / "r.csv").write_bytes(start)
    source_table = listed(tmp_path / "r.csv", **IMAGE_ROWS)
    assert set(uris(source_table)) == {"train/1.jpg", "train/2.jpg"}
    assert refused(source_table) == {
        "train/r.csv#line 3": "a quote in it does not end its value",
        "train/r.csv#line 4": "3 values for 2 columns",
    }
    (tmp_path / "r.csv").write_bytes(start + b'"1.jpg,x\n' + b"1.jpg,y\n" * 99)
    assert refusal(tmp_path / "r.csv", **IMAGE_ROWS) == (
        f"data.train={tmp_path}/r.csv: cannot be read: a quote that opens in line 6 is not closed"
    )


def test_lines_that_give_no_row_come_in_batches_too(tmp_path):
    bad = 3 * BATCH_ROWS + 7
    (tmp_path / "r.csv").write_text("file,kind\n" + "1.jpg,x\n" + "x\n" * bad + "2.jpg,y\n")
    column = Column("file", "path", "image", "data.columns.image")
    batches = list(TableFile(str(tmp_path / "r.csv"), "data.train", (column,)).batches())
    assert max(len(batch.unread) for batch in batches) == BATCH_ROWS
    lines = [line for batch in batches for line, _ in batch.unread]
    assert lines == list(range(3, 3 + bad))
    assert [batch.start for batch in batches] == [0, 1, 1, 1]
    assert pa.concat_arrays([batch.arrays[0] for batch in batches]).to_pylist() == [
        b"1.jpg", b"2.jpg",
    ]  # fmt: skip


def test_json_lines_that_are_wrong_are_single_losses(tmp_path):
    make_tree(tmp_path, "1.jpg", "2.jpg")
    good = ['{"file": "1.jpg", "kind": "x"}', '{"file": "2.jpg", "kind": 7}']
    bad = ['{"file": "3', "[1]", '{"kind": "x"}', '{"file": ["1.jpg"], "kind": "x"}', "[" * 100_000]
    bad += ['{"file": "1.jpg", "kind": null}', '{"file": "\\u0000.jpg", "kind": "x"}']
    (tmp_path / "r.jsonl").write_text("\n".join([good[0], *bad, "", good[1]]))
    source_table = listed(tmp_path / "r.jsonl", **IMAGE_ROWS)
    assert set(uris(source_table)) == {"train/1.jpg", "train/2.jpg"} and source_table.classes == (
        "7",
        "x",
    )
    assert sorted(row["reason"] for row in source_table.refused.to_pylist()) == [
        "column 'file' has no value", "column 'file' holds what is no path",
        "column 'kind' has no value", "image: no such name", "not JSON", "not JSON",
        "not a JSON object",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.parquet", b"PAR1 and then nothing"), ("a.parquet", b""), ("a.csv", b""),
     ("a.jsonl", b""), ("a.jsonl", b"\x00\xff\n"), ("a.csv", b"file,kind\n")],
)  # fmt: skip
def test_a_listing_that_is_none_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    message = refusal(tmp_path / name, **IMAGE_ROWS)
    assert message.startswith(f"data.train={tmp_path / name}: ")


def test_a_damaged_parquet_file_is_refused(tmp_path):
    path = write_listing(
        tmp_path, ".parquet", {"words": [f"{n}" * 50 for n in range(5000)], "kind": ["x"] * 5000}
    )
    data = bytearray(path.read_bytes())
    data[50:80] = os.urandom(30)
    path.write_bytes(data)
    assert "cannot be read: " in refusal(path, ("text",), **TEXT_ROWS)


def test_a_missing_listing_or_a_folder_is_refused(tmp_path):
    assert (
        refusal(tmp_path / "no.csv", **IMAGE_ROWS) == f"data.train={tmp_path}/no.csv: no such file"
    )
    (tmp_path / "dir.csv").mkdir()
    assert refusal(tmp_path / "dir.csv", **IMAGE_ROWS).endswith("dir.csv: not a file")
    message = refusal(tmp_path / "rows.txt", layout="listing", **IMAGE_ROWS)
    assert message.endswith("a listing's name ends in .csv, .parquet, .jsonl")
