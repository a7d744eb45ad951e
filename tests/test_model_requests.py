"""What is asked of a model: content, and no path unless paths are allowed."""

import base64
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.registry.served.requests import BadInput, as_inputs, within_limits

PNG = b"\x89PNG\r\n\x1a\n not all base64"
TEXT = base64.b64encode(PNG).decode()
LINES = base64.encodebytes(PNG * 9).decode()


@pytest.mark.parametrize(
    "values",
    [
        [PNG, TEXT],
        (PNG, TEXT.encode()),
        [bytearray(PNG), memoryview(PNG)],
        np.array([PNG, TEXT], dtype=object),
        np.array([[TEXT], [TEXT]]),
        np.array([TEXT, TEXT], np.bytes_),
        pd.DataFrame({"anything": [PNG, TEXT]}),
        pd.DataFrame({"b64": [TEXT, TEXT]}),
        pd.DataFrame({"image": [{"b64": TEXT}, TEXT]}),
        pd.DataFrame({"image": [[TEXT, TEXT]]}),
        pd.DataFrame({"image": [np.array({"b64": TEXT}, dtype=object), np.array(TEXT)]}),
        pd.Series([PNG, TEXT]),
        [{"b64": TEXT}, {"image": {"b64": TEXT}}],
        [{"image": TEXT}, {"b64": TEXT.encode()}],
        {"image": [TEXT, PNG]},
        {"b64": [TEXT, TEXT]},
    ],
)
def test_media_come_as_bytes_or_base64_in_many_forms(values: Any):
    assert as_inputs(values) == [PNG, PNG]


def test_a_single_input_is_a_list_of_one():
    assert as_inputs(PNG) == as_inputs(TEXT) == as_inputs({"b64": TEXT}) == [PNG]
    assert as_inputs(LINES) == as_inputs(LINES.encode()) == [PNG * 9]


def test_a_path_is_never_opened_nor_looked_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in ("/etc/passwd", str(tmp_path / "fifo"), "a.png", "~", "file:///etc/passwd"):
        (bad,) = as_inputs([path])
        assert bad == BadInput("not base64; send the file's content in base64, not its path")
        assert as_inputs([path.encode()]) == [path.encode()]
        assert as_inputs([path], is_text=True) == [path.encode()]
        assert as_inputs([path], takes_rows=True) == [path.encode()]
        assert as_inputs([path], allow_paths=True) == [Path(path)]
    with pytest.raises(ValueError, match="a path among the inputs; give bytes or base64"):
        as_inputs([Path("/etc/passwd")])


def test_text_is_the_text_itself():
    assert as_inputs(["abcd", b"abcd", {"b64": "YWJjZA=="}], is_text=True) == [b"abcd"] * 3
    assert as_inputs("\ud800", is_text=True) == [BadInput("text that is not UTF-8")]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1.5], "a float among the inputs; give bytes or base64"),
        ([TEXT, None], "a NoneType among the inputs"),
        (np.zeros((2, 3), np.uint8), "a int among the inputs"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), r"columns \['a', 'b'\]; give one column"),
        ({"a": [TEXT], "b": [TEXT]}, r"a dictionary with keys \['a', 'b'\]; give bytes"),
        ([{"a": {"b": {"c": TEXT}}}], "dictionaries within dictionaries"),
    ],
)
def test_other_inputs_are_refused(values, told):
    with pytest.raises(ValueError, match=told):
        as_inputs(values)


@pytest.mark.parametrize("text", ["@@@@", "", "YWJj=", "YWJjZA", "é", "YW Jj!"])
def test_what_is_not_base64_is_a_bad_input(text):
    assert isinstance(as_inputs([text])[0], BadInput)
    assert isinstance(as_inputs([{"b64": text}], is_text=True)[0], BadInput)
    assert isinstance(as_inputs([{"b64": 5}])[0], BadInput)


ROWS = [{"x": 1, "c": "a"}, {"x": 2, "c": None}]


@pytest.mark.parametrize(
    "values",
    [
        ROWS,
        {"x": [1, 2], "c": ["a", None]},
        {"x": np.array([1, 2]), "c": np.array(["a", None], dtype=object)},
        pd.DataFrame(ROWS, dtype=object),
        pd.DataFrame({"x": [[1, 2]], "c": [["a", None]]}),
        [ROWS[0], {"x": 2}],
        np.array(ROWS, dtype=object),
    ],
)
def test_rows_come_in_many_forms(values):
    assert as_inputs(values, takes_rows=True) == ROWS
    assert as_inputs(ROWS[0], takes_rows=True) == [ROWS[0]]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (pd.DataFrame(index=[0, 1]), "none of the model's columns"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "several columns are named 'a'"),
        ({"a": [1, 2], "b": [1]}, "columns of 1 to 2 values; make them equal"),
        ([1], "a int among the inputs; give rows or JSON"),
    ],
)
def test_rows_that_are_none_are_refused(values, told):
    with pytest.raises(ValueError, match=told):
        as_inputs(values, takes_rows=True)


def test_a_request_is_bounded():
    within_limits([PNG] * 3, most=3, most_bytes=len(PNG))
    with pytest.raises(ValueError, match="4 inputs in one request; at most 3 are taken"):
        within_limits([PNG] * 4, most=3, most_bytes=100)
    with pytest.raises(ValueError, match=f"input 1 has {len(PNG)} bytes; at most 2 are taken"):
        within_limits([b"a", PNG], most=3, most_bytes=2)
