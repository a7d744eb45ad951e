"""Vocabularies of tables: the same whether rows lie in a listing or in files of their own."""

import json
from pathlib import Path
from typing import Any

import pytest
from source_trees import listed, make_tar

from pipeline.errors import UserError
from pipeline.media import TableFormat, TableVocabulary
from pipeline.preprocess.sources import SourceTable, fit_rows

TABLE = {"numeric": ["age"], "categorical": ["town"]}
FORMAT = TableFormat(numeric=("age",), categorical=("town",))
ROWS: list[dict[str, Any]] = [
    {"age": 1, "town": "Oslo"},
    {"age": 3, "town": "Rome"},
    {"age": None, "town": 7},
    {"age": 5.0, "town": None},
]
WANTED = TableVocabulary(
    categories={"town": ("7", "Oslo", "Rome")}, mean=(3.0,), std=(pytest.approx((8 / 3) ** 0.5),)
)


def fit_table(source_table: SourceTable, fmt: TableFormat) -> TableVocabulary:
    return TableVocabulary.from_dict(fit_rows(source_table, fmt))


def folder_of(root: Path, rows: list[Any], more: dict[str, bytes] | None = None) -> SourceTable:
    """A listing of one file for each row, in two class folders, and of others in the first."""
    for number, row in enumerate(rows):
        path = root / "xy"[number % 2] / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row))
    for name, data in (more or {}).items():
        (root / "x" / name).write_bytes(data)
    return listed(root, (), table=TABLE)


def test_rows_in_files_tell_what_a_listings_rows_do(tmp_path):
    lines = [json.dumps({**row, "kind": "xy"[n % 2]}) for n, row in enumerate(ROWS)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    source_table = listed(tmp_path / "rows.jsonl", (), table=TABLE, target={"column": "kind"})
    assert fit_table(source_table, FORMAT) == WANTED
    assert fit_table(folder_of(tmp_path / "raw", ROWS), FORMAT) == WANTED


def test_rows_in_tars_tell_the_same(tmp_path):
    members = {}
    for number, row in enumerate(ROWS):
        members[f"{number}.json"] = json.dumps(row).encode()
        members[f"{number}.cls"] = str(number % 2).encode()
    source_table = listed(make_tar(tmp_path / "a.tar", members), (), table=TABLE)
    assert fit_table(source_table, FORMAT) == WANTED


def test_training_rows_alone_are_read(tmp_path):
    source_table = folder_of(tmp_path / "raw", ROWS)
    other = tmp_path / "held-out"
    folder_of(other, [{"age": 99, "town": "Bonn"}] * 2)
    both = listed(tmp_path / "raw", (), table=TABLE, validation=str(other))
    assert both.counts() == {"train": 4, "validation": 2}
    assert fit_table(both, FORMAT) == fit_table(source_table, FORMAT) == WANTED


def test_rows_that_decoding_refuses_tell_nothing(tmp_path):
    bad = {
        "a.json": b"{",
        "b.json": b"[1, 2]",
        "c.json": b'{"age": 70}',
        "d.json": b'{"age": "old", "town": "Bonn"}',
        "e.json": b'{"age": 70, "town": "\\ud800"}',
        "f.json": b'{"age": 70, "town": [1]}',
        "g.json": b"",
        "h.json": b'{"age": Infinity, "town": "Bonn"}',
    }
    assert fit_table(folder_of(tmp_path, ROWS, bad), FORMAT) == WANTED


def test_too_many_categories_are_the_users_to_mend(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.media.table.decode.MAX_DISTINCT", 2)
    with pytest.raises(UserError) as caught:
        fit_table(folder_of(tmp_path, ROWS), FORMAT)
    assert str(caught.value) == (
        "data.table: column 'town' has more than 2 different values; it is none of categories: "
        "leave it out, or name it under numeric"
    )
