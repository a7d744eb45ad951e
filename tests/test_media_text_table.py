"""Text cut to contexts, and rows of tables as vectors."""

import json
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from small_media import refusal

from pipeline.media import (
    FittedTableFormat,
    TableFormat,
    TableVocabulary,
    TextFormat,
    decode,
    decode_all,
    decode_member,
    encode_member,
    fit_vocabulary,
    media_from_dict,
    media_to_dict,
)


def contexts(text: str | bytes, **fields) -> list[bytes]:
    data = text.encode() if isinstance(text, str) else text
    return [array.tobytes() for array in decode_all(data, TextFormat(**fields))]


# --- text ---


def test_text_is_its_utf_8_bytes():
    array = decode("naïve 日本".encode(), TextFormat(max_length=100))
    assert array.dtype == np.uint8
    assert array.tobytes() == "naïve 日本".encode()
    assert decode(b"\xef\xbb\xbfabc", TextFormat(max_length=100)).tobytes() == b"abc"


def test_a_long_text_is_cut_and_only_its_start_is_taken_unless_all_is_asked():
    assert contexts("abcdefghij", max_length=4) == [b"abcd"]
    assert contexts("abcdefghij", max_length=4, cut="all") == [b"abcd", b"efgh", b"ij"]
    assert contexts("abcdefgh", max_length=4, cut="all") == [b"abcd", b"efgh"]
    assert contexts("abcdefghijklmnopqrst", max_length=12, overlap=4, cut="all") == [
        b"abcdefghijkl",
        b"ijklmnopqrst",
    ]


def test_cuts_fall_between_characters():
    # Each of these has three bytes.
    assert contexts("日本語の文", max_length=8, cut="all") == [
        "日本".encode(),
        "語の".encode(),
        "文".encode(),
    ]
    first, second = contexts("日本語の文章です", max_length=16, overlap=4, cut="all")
    assert first.decode() == "日本語の文"
    assert second.decode() == "の文章です"


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300),
    st.integers(4, 40),
    st.integers(0, 30),
)
def test_contexts_cover_a_text_and_overlap_by_no_less_than_asked(text, max_length, overlap):
    overlap = min(overlap, max(0, max_length - 8))
    whole = text.encode("utf-8", "surrogatepass")
    try:
        text.encode()
    except UnicodeEncodeError:
        assert "not UTF-8" in refusal(contexts, whole)
        return
    if whole.startswith(b"\xef\xbb\xbf"):
        whole = whole[3:]
    if not whole:
        return
    place, end = 0, 0
    parts = contexts(text, max_length=max_length, overlap=overlap, cut="all")
    for number, part in enumerate(parts):
        assert 0 < len(part) <= max_length
        part.decode()
        if number:
            # The next context starts at most 3 bytes before what was asked for.
            candidates = [end - overlap - more for more in range(4)]
            place = next(c for c in candidates if c > place and whole[c:].startswith(part))
            assert end - place >= overlap
        assert whole[place : place + len(part)] == part
        end = place + len(part)
    assert end == len(whole)


def test_text_that_is_none_is_refused_or_mended():
    fmt = TextFormat(max_length=10)
    assert refusal(decode, b"", fmt) == "the file is empty"
    assert refusal(decode, b"\xef\xbb\xbf", fmt) == "it holds a byte order mark alone"
    assert refusal(decode, b"ab\xffcd", fmt) == (
        "not UTF-8: invalid start byte at byte 2 (set errors: replace to accept it)"
    )
    assert "at byte 4" in refusal(decode, b"\xef\xbb\xbfa\xff", fmt)
    assert "not UTF-8" in refusal(decode, "UTF-16".encode("utf-16"), fmt)
    mended = decode(b"ab\xffcd", TextFormat(max_length=10, errors="replace"))
    assert mended.tobytes().decode() == "ab\ufffdcd"


def test_a_text_with_nul_bytes_is_refused_unless_that_is_allowed():
    fmt = TextFormat(max_length=10)
    for damaged in ("hello".encode("utf-16-le"), b"hello" + bytes(3), bytes(9)):
        assert f"{damaged.count(0)} of its {len(damaged)} bytes are NUL" in refusal(
            decode, damaged, fmt
        )
        assert decode(damaged, fmt, strict=False).tobytes() == damaged[:10]
    assert decode(b"hello", fmt).tobytes() == b"hello"


def test_a_context_survives_its_member():
    fmt = TextFormat(max_length=10)
    array = decode(b"hello", fmt)
    assert fmt.member == "text.npy"
    assert decode_member(encode_member(array, fmt), fmt).tobytes() == b"hello"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_length": 3}, "max_length is 3; must be greater than or equal to 4"),
        ({"overlap": 4}, "overlap is 4, but cut is 'first'"),
        ({"overlap": 9, "cut": "all"}, "overlap is 9; must be at most 8"),
        ({"cut": "last"}, "cut is 'last'; must be 'first' or 'all'"),
        ({"errors": "ignore"}, "errors is 'ignore'"),
    ],
)
def test_text_formats_that_cannot_be_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        TextFormat(**{"max_length": 16, **fields})


# --- tables: what training rows tell ---

PEOPLE = TableFormat(numeric=("age", "height"), categorical=("city", "smoker"), max_categories=2)
ROWS = pa.table(
    {
        "height": [1.5, None, 1.9, 1.7],
        "age": [20, 30, None, 40],
        "city": ["Rome", "Bonn", "Rome", None],
        "smoker": [True, False, None, True],
        "name": ["a", "b", "c", "d"],
    }
)


def fitted(table: pa.Table = ROWS, fmt: TableFormat = PEOPLE, rows: int = 2) -> FittedTableFormat:
    return FittedTableFormat.of(fmt, fit_vocabulary(table.to_batches(max_chunksize=rows), fmt))


def test_statistics_leave_out_what_is_missing():
    vocabulary = fitted().vocabulary
    assert vocabulary.mean == pytest.approx((30.0, 1.7))
    assert vocabulary.std == pytest.approx((np.std([20, 30, 40]), np.std([1.5, 1.9, 1.7])))
    assert vocabulary.categories == {"city": ("Bonn", "Rome"), "smoker": ("false", "true")}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.integers(1, 10))
def test_statistics_do_not_depend_on_batches(values, rows):
    fmt = TableFormat(numeric=("x",))
    # Far from zero, where a sum of squares would lose everything.
    values = [1e9 + value for value in values]
    vocabulary = fitted(pa.table({"x": values}), fmt, rows).vocabulary
    assert vocabulary.mean[0] == pytest.approx(np.mean(values), rel=1e-12)
    spread = np.std(values)
    assume(abs(spread - 1e-3) > 5e-5)
    # Below a millionth of a millionth of the mean, what spreads is the rounding of equal values.
    expected = spread if spread > 1e-3 else 1.0
    assert vocabulary.std[0] == pytest.approx(expected, rel=1e-4, abs=5e-5)


def test_a_column_of_one_value_or_none_has_a_spread_of_one():
    fmt = TableFormat(numeric=("same", "none"))
    table = pa.table({"same": [0.1] * 7, "none": pa.array([None] * 7, pa.float64())})
    assert fitted(table, fmt).vocabulary.std == (1.0, 1.0)
    assert fitted(table, fmt).vocabulary.mean == pytest.approx((0.1, 0.0))


def test_the_most_frequent_categories_are_kept_ties_by_name_and_sorted():
    fmt = TableFormat(categorical=("c",), max_categories=3)
    table = pa.table({"c": ["z", "z", "b", "b", "d", "a", "c"]})
    for rows in (1, 3, 7):
        assert fitted(table, fmt, rows).vocabulary.categories["c"] == ("a", "b", "z")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([3, 1, None]),
        pa.array([3.0, 1.0, math.nan]),
        pa.array(["3", "1", None]),
        pa.array(["3", "1", None]).dictionary_encode(),
    ],
    ids=["integers", "floats", "text", "dictionary"],
)
def test_a_category_has_one_name_in_every_type(column):
    fmt = TableFormat(categorical=("c",))
    table = fitted(pa.table({"c": column}), fmt)
    assert table.vocabulary.categories["c"] == ("1", "3")
    assert [table.encode_row({"c": v})[0] for v in (1, "3", 3.0, np.int64(1))] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (ROWS.drop(["age"]), "column 'age' is not there; the table has height, city, smoker, name"),
        (ROWS.set_column(1, "age", pa.array(list("abcd"))), "column 'age' holds string, not num"),
        (ROWS.set_column(1, "age", pa.array([1.0, math.inf, 0, 0])), "'age' holds numbers that"),
        (ROWS.set_column(2, "city", pa.array([b"\xff"] * 4)), "column 'city' holds bytes that are"),
        (
            ROWS.set_column(2, "city", pa.array([[1]] * 4)),
            "column 'city' holds list<item: int64>, no cat",
        ),
    ],
)
def test_columns_of_other_types_are_named(table, told):
    assert told in refusal(fitted, table)


# --- tables: rows ---


def test_a_row_is_its_numbers_then_its_categories():
    table = fitted()
    row = table.encode_row({"age": 41, "height": 1.8, "city": "Rome", "smoker": False, "more": {}})
    assert (row.dtype, row.tolist()) == (np.float64, [41, 1.8, 1, 0])


def test_missing_values_and_unknown_categories():
    table = fitted()
    row = table.encode_row({"age": None, "height": math.nan, "city": "Oslo", "smoker": None})
    assert np.isnan(row[[0, 1, 3]]).all() and row[2] == 2


def test_numbers_of_every_kind_are_taken():
    table = fitted()
    for value in (3, 3.0, Decimal(3), np.float32(3), np.int8(3)):
        assert table.encode_row({**dict.fromkeys(PEOPLE.columns), "age": value})[0] == 3
    assert table.encode_row({**dict.fromkeys(PEOPLE.columns), "age": True})[0] == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"age": "41 years"}, "column 'age' holds '41 years', not a number"),
        ({"age": "1_000"}, "column 'age' holds '1_000', not a number"),
        ({"age": [1]}, "column 'age' holds a list, not a number"),
        ({"age": math.inf}, "column 'age' holds a number that is not finite, or beyond float32"),
        ({"age": 1e308}, "column 'age' holds a number that is not finite, or beyond float32"),
        ({"age": 10**400}, "column 'age' holds a number beyond float32"),
        ({"city": ["Rome"]}, "column 'city' holds a list, no category"),
        ({"city": b"\xff"}, "column 'city' holds bytes that are not UTF-8"),
        ({"age": "x" * 100}, f"column 'age' holds '{'x' * 36}..., not a number"),
    ],
)
def test_values_of_other_types_name_their_column(change, told):
    values = {"age": 1, "height": 1, "city": "Rome", "smoker": True, **change}
    assert refusal(fitted().encode_row, values) == told


def test_a_column_that_is_not_there_is_named():
    values = {"age": 1, "height": 1, "smoker": True}
    assert refusal(fitted().encode_row, values) == "column 'city' is not there"


def test_a_row_may_come_as_json():
    table = fitted()
    values = {"age": 1, "height": None, "city": "Bonn", "smoker": True}
    data = json.dumps(values).encode()
    assert np.array_equal(decode(data, table), table.encode_row(values), equal_nan=True)
    assert "not JSON" in refusal(decode, b"{", table)
    assert "not JSON" in refusal(decode, b"[" * 100_000, table)
    assert "no object of columns" in refusal(decode, b"[1, 2]", table)


def test_a_fitted_format_survives_json():
    table = fitted()
    again = media_from_dict(json.loads(json.dumps(media_to_dict(table))))
    assert again == table
    assert media_from_dict(json.loads(json.dumps(media_to_dict(PEOPLE)))) == PEOPLE
    tree = json.loads(json.dumps(table.vocabulary.to_dict()))
    assert TableVocabulary.from_dict(tree) == table.vocabulary


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "numeric and categorical are empty"),
        ({"numeric": ("a", "a")}, "column 'a' is named twice"),
        ({"numeric": ("a",), "categorical": ("a",)}, "column 'a' is named twice"),
        ({"numeric": "age"}, "numeric is 'age'; must be a valid tuple"),
        ({"numeric": ("a",), "max_categories": 0}, "max_categories is 0"),
    ],
)
def test_table_formats_that_cannot_be_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        TableFormat(**fields)


def test_a_vocabulary_of_other_columns_is_refused():
    with pytest.raises(ValueError, match="it must be fitted to"):
        FittedTableFormat.of(TableFormat(numeric=("age",)), fitted().vocabulary)
