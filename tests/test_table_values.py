"""One reading of a table's values, whatever file, frame or dictionary they come in."""

import datetime as dt
import io
import json
import math
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_trees import listed, refused

from pipeline.media import FittedTableFormat, MediaError, TableFormat, TableVocabulary
from pipeline.media.registered import modality_of
from pipeline.media.table.values import MISSING_TEXTS, name_of, read_name, read_number
from pipeline.preprocess.sources import fit_rows
from pipeline.preprocess.sources.typed import to_role
from pipeline.registry.served.inference import as_inputs
from pipeline.registry.table_rows import table_rows

UTC_NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
LARGE = 2**53 + 1

# --- names and numbers ---


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("1", [1, 1.0, True + 0, "1", "1.0", "1.00", np.int8(1), np.float32(1), Decimal("1.0")]),
        ("0", [0, -0.0, "-0", "0.0", "-0.0"]),
        ("true", [True, np.True_, "True", "true", "TRUE"]),
        ("0.5", [0.5, "0.5", Decimal("0.5"), np.float32(0.5)]),
        ("0.1", [0.1, "0.1", np.float32(0.1), float(np.float32(0.1)), "0.10000000149011612"]),
        ("1e-05", [1e-5, "1e-05", "1e-5", "0.00001", Decimal("0.00001")]),
        (str(10**10), [1e10, "1e+10", "10000000000.0"]),
        (str(10**20), [1e20, "1e20", 10**20, "1e+20", str(10**20)]),
        (str(LARGE), [LARGE, str(LARGE), f"{LARGE}.0", np.int64(LARGE), Decimal(LARGE)]),
        ("2026-01-31", [
            dt.date(2026, 1, 31), dt.datetime(2026, 1, 31), pd.Timestamp("2026-01-31"),
            np.datetime64("2026-01-31"), "2026-01-31", "2026-01-31 00:00:00",
            "2026-01-31T00:00:00.000Z", "2026-01-31 01:00:00+01:00",
        ]),
        ("2026-01-31 12:00:00", [
            UTC_NOON, pd.Timestamp(UTC_NOON), pd.Timestamp(UTC_NOON).tz_convert("Asia/Tokyo"),
            "2026-01-31T12:00", "2026-01-31 21:00:00.000000+0900",
        ]),
        ("12:30:00.5", [dt.time(12, 30, 0, 500_000), "12:30:00.500000"]),
        ("Rome", ["Rome", b"Rome", np.str_("Rome"), np.bytes_(b"Rome"), memoryview(b"Rome")]),
    ],
)  # fmt: skip
def test_a_value_has_one_name(name, values):
    assert {read_name(value) for value in values} == {name}
    assert name_of(name) == name


@pytest.mark.parametrize(
    "text", ["007", "00", "1.50", "3.10", "1e3", "12e4", "+1", " 1", ".5", "5.", "1_000", "٣",
             "0x1", "2026-02-30", "2026-1-1", "24:00:00x", "nan1", "-", "tRue", "1.0.0",
             "1" * 400 + ".5"],
)  # fmt: skip
def test_a_text_that_no_writer_of_numbers_writes_is_itself(text):
    assert read_name(text) == text


@settings(deadline=None)
@given(st.one_of(
    st.text(), st.integers(), st.floats(allow_nan=False), st.booleans(), st.datetimes(),
    st.dates(), st.times(), st.decimals(allow_nan=False, places=3),
    st.floats(allow_nan=False).map(repr), st.from_regex(r"-?[0-9.e+:\-]{1,25}", fullmatch=True),
))  # fmt: skip
def test_a_name_is_its_own_name(value):
    assert name_of(name_of(value)) == name_of(value)


@settings(deadline=None)
@given(st.floats(-(2.0**24), 2.0**24, width=32).map(np.float32))
def test_a_float32_has_the_name_of_its_text(number):
    assert name_of(number) == name_of(float(number)) == name_of(str(number))


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_and_its_texts_have_one_name(number):
    written = io.StringIO()
    pd.DataFrame({"c": [number]}).to_csv(written, index=False)
    assert name_of(written.getvalue().split()[1]) == name_of(number)
    assert name_of(json.dumps(number)) == name_of(number)


@pytest.mark.parametrize(
    ("number", "values"),
    [
        (1.0, [1, True, "1", "1.0", "True", "true", b"1", Decimal(1), np.bool_(True), "+1", " 1 "]),
        (0.0, [False, "False", 0]),
        (1769860800.0, [UTC_NOON, "2026-01-31T12:00:00Z", np.datetime64("2026-01-31T12", "h")]),
        (45000.5, [dt.time(12, 30, 0, 500_000), "12:30:00.500"]),
        (86400.0, [dt.date(1970, 1, 2), "1970-01-02", pd.Timestamp("1970-01-02")]),
    ],
)
def test_a_value_is_one_number(number, values):
    assert {read_number(value) for value in values} == {number}


def test_what_is_missing_is_so_in_every_spelling():
    spellings = [None, math.nan, np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT")]
    for value in [*spellings, Decimal("NaN"), *MISSING_TEXTS, b"NA", np.array(None)]:
        assert read_name(value) is None and read_number(value) is None
    with pytest.raises(ValueError, match="'na', not a number"):
        read_number("na")


@pytest.mark.parametrize(
    "value", [[1], {"a": 1}, "\ud800", b"\xff", pd.Timedelta("1s"), 1j, np.array([1])]
)
def test_what_is_no_value_is_refused_for_both(value):
    for read in (read_name, read_number):
        with pytest.raises(ValueError, match=r"\w"):
            read(value)


# --- the same table in every form ---

EDGES = ["", "NA", "None", "nan", "007", "7", "1.0", "1.50", "1e3", "True", "TRUE", "Rome", " 1",
         "2026-01-31", "2026-01-31 00:00:00", "12:30:00.500", "inf", "-0", "٣", "a,b",
         'q"q']  # fmt: skip
MOMENTS = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2250, 1, 1))
TEXTS = st.sampled_from(EDGES) | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]))
KINDS = {
    "integer": st.integers(-(2**53), 2**53),
    "large": st.integers(2**53, 2**62),
    "float": st.floats(-1e30, 1e30) | st.sampled_from([1.0, 0.1, 1e-7, 1e20]),
    "boolean": st.booleans(),
    "moment": MOMENTS,
    "date": st.dates(dt.date(1700, 1, 1), dt.date(2250, 1, 1)).map(
        lambda day: dt.datetime(day.year, day.month, day.day)
    ),
    "text": TEXTS,
}
FORMAT = TableFormat(numeric=("n",), categorical=("c",))


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[Any], bool]:
    """A kind, values of it of which some may be missing, and whether some are."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    has_missing = draw(st.booleans())
    value = st.none() | KINDS[kind] if has_missing else KINDS[kind]
    values = draw(st.lists(value, min_size=1, max_size=6))
    return kind, values, None in values


def fitted(values: list[Any]) -> FittedTableFormat:
    names = sorted({name for value in values if (name := read_name(value)) is not None})
    vocabulary = TableVocabulary(categories={"c": tuple(names)}, mean=(0.0,), std=(1.0,))
    return FittedTableFormat.of(FORMAT, vocabulary)


def vectors(fmt: FittedTableFormat, rows: Any) -> list[Any]:
    """Each row's vector, None for a row that is refused."""
    found: list[Any] = []
    for row in rows:
        try:
            found.append(None if isinstance(row, str) else fmt.encode_row(row).tolist())
        except MediaError:
            found.append(None)
    return [vector and [repr(number) for number in vector] for vector in found]


def written(folder: Path, frame: pd.DataFrame, values: list[Any]) -> dict[str, Path]:
    """The same rows by every writer."""
    paths = {name: folder / name for name in (
        "pandas.csv", "na.csv", "arrow.csv", "pandas.parquet", "dictionary.parquet", "rows.jsonl",
    )}  # fmt: skip
    frame.to_csv(paths["pandas.csv"])
    frame.to_csv(paths["na.csv"], na_rep="NaN")
    table = pa.table({"n": values, "c": values, "row": range(len(values))})
    pa.csv.write_csv(table, paths["arrow.csv"])
    frame.to_parquet(paths["pandas.parquet"])
    if not pa.types.is_null(table["c"].type):  # which Parquet cannot encode so
        table = table.set_column(1, "c", table["c"].dictionary_encode())
    pq.write_table(table, paths["dictionary.parquet"])
    lines = [
        json.dumps({"n": value, "c": value}, default=lambda moment: moment.isoformat())
        for value in values
    ]
    paths["rows.jsonl"].write_text("\n".join(lines))
    return paths


def frames(frame: pd.DataFrame, values: list[Any], kind: str) -> dict[str, Any]:
    """The same rows as they are handed over."""
    scalars = [_numpy_scalar(value, kind) for value in values]
    return {
        "frame": frame,
        "nullable": frame.convert_dtypes(),
        "object": frame.astype(object).where(frame.notna(), None),
        "categories": frame.astype("category"),
        "dictionaries": [{"n": value, "c": value} for value in values],
        "numpy": [{"n": value, "c": value} for value in scalars],
        "columns": {"n": scalars, "c": scalars},
        "NA": [{"n": pd.NA if v is None else v, "c": pd.NaT if v is None else v} for v in values],
    }


def _numpy_scalar(value: Any, kind: str) -> Any:
    if value is None:
        return np.datetime64("NaT") if kind in ("moment", "date") else np.float64("nan")
    if kind in ("moment", "date"):
        return np.datetime64(value, "us")
    return np.str_(value) if kind == "text" else np.asarray(value)[()]


@settings(deadline=None, max_examples=60)
@given(tables())
def test_a_table_gives_the_same_vectors_in_every_form(drawn):
    kind, values, has_missing = drawn
    fmt = fitted(values)
    expected = vectors(fmt, [{"n": value, "c": value} for value in values])
    # pandas itself would keep whole numbers beside missing ones as floats.
    dtype: Any = "Int64" if kind == "large" and has_missing else None
    column = pd.Series(values, dtype=dtype)
    frame = pd.DataFrame({"n": column, "c": column})
    for name, given_rows in frames(frame, values, kind).items():
        rows = as_inputs(given_rows, takes_rows=True)
        assert vectors(fmt, rows) == expected, name
    with tempfile.TemporaryDirectory() as folder:
        for name, path in written(Path(folder), frame, values).items():
            rows = [row for _, row in table_rows(path, fmt)]
            assert vectors(fmt, rows) == expected, name
        if kind != "text" and not (kind == "large" and has_missing):
            again = pd.read_csv(Path(folder) / "pandas.csv", float_precision="round_trip")
            assert vectors(fmt, as_inputs(again, takes_rows=True)) == expected


def test_a_column_has_one_vocabulary_and_one_row_a_vector_in_every_listing(tmp_path):
    frame = pd.DataFrame(
        {
            "zone": [1, 2, None, 7],
            "member": [True, False, True, None],
            "since": pd.to_datetime(["2026-01-31", None, "2026-02-01", "2026-02-02"]),
            "zip": ["01234", "1234", "NA", "3.10"],
            "class": [1.0, 2.0, 1.0, 2.0],
        }
    )
    frame.to_csv(tmp_path / "rows.csv")
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True, date_format="iso")
    table = {"numeric": ["member", "since"], "categorical": ["zone", "zip"]}
    fmt = TableFormat(numeric=("member", "since"), categorical=("zone", "zip"))
    seen = []
    for suffix in (".csv", ".parquet", ".jsonl"):
        path = tmp_path / f"rows{suffix}"
        listing = listed(path, (), table=table, target={"column": "class"})
        assert listing.classes == ("1", "2") and not refused(listing)
        whole = modality_of(fmt).fitted(fmt, {"vocabulary": fit_rows(listing, fmt)})
        seen.append((whole.vocabulary, vectors(whole, (row for _, row in table_rows(path, fmt)))))
    assert seen[1:] == seen[:1] * 2
    vocabulary, rows = seen[0]
    assert vocabulary.categories == {"zone": ("1", "2", "7"), "zip": ("01234", "1234", "3.10")}
    by_frame = as_inputs(frame, takes_rows=True)
    assert vectors(FittedTableFormat.of(fmt, vocabulary), by_frame) == rows


# --- labels, keys and targets ---


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_keys_labels_and_targets_are_read_alike(tmp_path, suffix):
    frame = pd.DataFrame(
        {"id": [1.0, 2.0, 3.0], "kind": [True, False, None], "y": [True, False, True], "x": 0.5}
    )
    path = tmp_path / f"rows{suffix}"
    write = {".csv": frame.to_csv, ".parquet": frame.to_parquet}
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        write[suffix](path)
    settings_: dict[str, Any] = {"table": {"numeric": ["x"]}, "columns": {"key": "id"}}
    listing = listed(path, (), target={"column": "kind"}, **settings_)
    assert listing.classes == ("false", "true")
    assert listing.table["uri"].to_pylist() in ([b"train/1", b"train/2"], [b"train/2", b"train/1"])
    assert refused(listing) == {"train/3": "column 'kind' has no value"}
    for target in ({"columns": ["y"]}, {"column": "y"}):
        listed(path, (), target={"kind": "regression", **target}, **settings_)
        assert not refused(listed(path, (), target={"kind": "regression", **target}, **settings_))


def test_configured_and_earlier_classes_are_found_by_either_spelling(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("x,kind\n1,True\n2,False\n3,True\n")
    more: dict[str, Any] = {"table": {"numeric": ["x"]}}
    named = listed(path, (), target={"column": "kind", "classes": ["True", "False"]}, **more)
    assert sorted(named.table["target"].to_pylist()) == [0, 0, 1]
    assert named.classes == ("True", "False")
    earlier = listed(path, (), known_classes=("False", "True"), target={"column": "kind"}, **more)
    assert earlier.classes == ("False", "True")


# --- what a number has lost ---


def test_a_number_is_the_category_that_it_was_written_as_with_zeros_at_its_end():
    fmt = fitted([])
    vocabulary = TableVocabulary(categories={"c": ("1.50", "2.5")}, mean=(0.0,), std=(1.0,))
    fmt = FittedTableFormat.of(FORMAT, vocabulary)
    given_values = [1.5, "1.50", Decimal("1.50"), "1.5", 2.5, 3.5]
    assert [fmt.encode_row({"n": 0, "c": v})[1] for v in given_values] == [0, 0, 0, 2, 1, 2]


def test_a_vocabulary_of_earlier_releases_is_found_by_the_names_of_today():
    vocabulary = TableVocabulary(
        categories={"c": ("1.0", "2.0", "NA", "True")}, mean=(0.0,), std=(1.0,)
    )
    fmt = FittedTableFormat.of(FORMAT, vocabulary)
    indices = [
        fmt.encode_row({"n": 0, "c": value})[1]
        for value in (1, "1", "1.0", 2.0, "NA", True, "True", "true", 3)
    ]
    assert indices == [0, 0, 0, 1, 2, 3, 3, 3, 4]
    assert fmt.misread_number({"n": 0, "c": 1}) is None


def test_half_floats_are_read_in_every_role():
    halves = pa.array([np.float16(1), None, np.float16(0.5)], pa.float16())
    roles: dict[Any, Any] = {
        "number": [1.0, None, 0.5], "numbers": [[1.0], None, [0.5]],
        "category": ["1", None, "0.5"], "label": [b"1", None, b"0.5"],
    }  # fmt: skip
    for role, wanted in roles.items():
        values, wrong = to_role(halves, role, ";")
        assert values.to_pylist() == wanted and not wrong.any()
