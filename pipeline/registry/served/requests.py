"""Read the inputs of a request, in any form that MLflow passes on.

What a client sends is content, never a path. Text is base64, or for a text model the text itself.
A path is accepted only if whoever loads the model allows paths.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_BASE64 = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
BASE64_KEY = "b64"
"""The key of `{"b64": TEXT}`, which stands for bytes, as in TensorFlow Serving's requests."""


@dataclass(frozen=True)
class BadInput:
    """An input that is known to be unusable before it is decoded.

    Attributes:
        reason: Why it cannot be used.
    """

    reason: str


MediaSource = bytes | str | Path | Mapping[str, Any] | BadInput
"""The bytes of a file, a path, or a table's row."""


def as_inputs(
    values: Any, *, takes_rows: bool = False, is_text: bool = False, allow_paths: bool = False
) -> list[MediaSource]:
    """Return the inputs in any form that MLflow passes on: a value, a list, an array or a table.

    Args:
        values: Media as bytes, as base64 in text or bytes, or as `{"b64": TEXT}`. A data frame must
            have one column of them.
        takes_rows: Whether the model reads tables. Then the inputs are rows: a data frame, a
            dictionary of a row or of columns, or a list of rows. Text and bytes are JSON objects.
        is_text: Whether the model reads text, which is then used as it is, not as base64.
        allow_paths: Whether text is the path of a file on this machine.

    Returns:
        Bytes, rows or `BadInput`; paths only if they are allowed.

    Raises:
        ValueError: An input has none of these forms, or a data frame has several columns.
    """
    if takes_rows:
        return [_row_input(item, allow_paths=allow_paths) for item in _rows(values)]
    wanted = "text or bytes" if is_text else "bytes or base64"
    if allow_paths:
        wanted = "paths or bytes"
    inputs = _media(values, wanted)
    return [_media_input(item, wanted, is_text, allow_paths) for item in inputs]


def as_rows_of_media(
    values: Any, sources: Mapping[str, str], *, allow_paths: bool = False
) -> list[MediaSource]:
    """Return the inputs of a model of several modalities, in any form that MLflow passes on.

    Args:
        values: Rows: a data frame, a dictionary of a row or of columns, or a list of rows. A
            column has the name of a modality and holds media as bytes, as base64, or as
            `{"b64": TEXT}`; texts are texts. The columns of a table have their own names. An empty
            cell means that the row lacks the modality.
        sources: The source of each modality by name: `file`, `text` or `row`.
        allow_paths: Whether text in a column of files is the path of a file on this machine.

    Returns:
        Rows with bytes, `BadInput` or, only if they are allowed, paths.

    Raises:
        ValueError: An input is no row, or a value has none of these forms.
    """
    rows = _rows(values)
    for row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"a {type(row).__name__} among the inputs; give rows of columns")
    return [
        {
            name: value
            if sources.get(name, "row") == "row"
            else _cell_of_media(value, sources[name] == "text", allow_paths)
            for name, value in row.items()
        }
        for row in rows
    ]


def _cell_of_media(value: Any, is_text: bool, allow_paths: bool) -> Any:
    if value is None or (isinstance(value, float) and value != value):  # pandas' missing value
        return None
    wanted = "text" if is_text else "bytes or base64"
    return _media_input(value, wanted, is_text, allow_paths and not is_text)


def within_limits(inputs: Sequence[MediaSource], *, most: int, most_bytes: int) -> None:
    """Refuse a request that is too large.

    Args:
        inputs: The inputs of the request.
        most: The largest number of inputs.
        most_bytes: The largest size of one input, in bytes.

    Raises:
        ValueError: There are more than `most` inputs, or one has more than `most_bytes` bytes.
    """
    if len(inputs) > most:
        raise ValueError(f"{len(inputs)} inputs in one request; at most {most} are taken")
    for number, item in enumerate(inputs):
        parts = item.values() if isinstance(item, Mapping) else (item,)
        size = sum(len(part) for part in parts if isinstance(part, bytes))
        if size > most_bytes:
            raise ValueError(f"input {number} has {size} bytes; at most {most_bytes} are taken")


# --- media ---


def _media(values: Any, wanted: str) -> list[Any]:
    if isinstance(values, bytes | bytearray | memoryview | str | Path):
        return [values]
    if hasattr(values, "columns"):
        if len(values.columns) != 1:
            raise ValueError(
                f"a table with columns {list(values.columns)}; give one column of {wanted}"
            )
        named = values.columns[0] == BASE64_KEY
        values = [_cells(cell) for cell in values.iloc[:, 0].tolist()]
        flat = [item for cell in values for item in cell]
        return [{BASE64_KEY: item} for item in flat] if named else flat
    if isinstance(values, np.ndarray):
        return values.ravel().tolist()
    if isinstance(values, Mapping):
        if set(values) == {BASE64_KEY}:
            return [{BASE64_KEY: item} for item in _cells(values[BASE64_KEY])]
        if len(values) != 1:
            raise ValueError(f"a dictionary with keys {list(values)}; give {wanted}")
        return _cells(next(iter(values.values())))
    return list(values)


def _cells(cell: Any) -> list[Any]:
    """Return a cell, or the cells of a list: MLflow makes one row of a dictionary of lists."""
    if isinstance(cell, np.ndarray):
        return cell.ravel().tolist()
    return list(cell) if isinstance(cell, list | tuple) else [cell]


def _media_input(item: Any, wanted: str, is_text: bool, allow_paths: bool) -> MediaSource:
    if isinstance(item, np.ndarray) and item.ndim == 0:
        item = item[()]
    if isinstance(item, Mapping):
        if len(item) != 1:
            raise ValueError(f"a dictionary with keys {list(item)} among the inputs; give {wanted}")
        inner = next(iter(item.values()))
        if isinstance(inner, Mapping) and BASE64_KEY not in inner:
            raise ValueError(f"dictionaries within dictionaries among the inputs; give {wanted}")
        if BASE64_KEY not in item:
            return _media_input(inner, wanted, is_text, allow_paths)
        return _from_base64(inner) if isinstance(inner, bytes | str) else BadInput(_NOT_BASE64)
    if isinstance(item, bytes | bytearray | memoryview):
        data = bytes(item)
        # MLflow passes base64 in `inputs` and `instances` on as bytes, without decoding it.
        return data if is_text or _encoded(data) is None else _from_base64(data)
    if isinstance(item, Path | str) and allow_paths:
        return Path(item)
    if isinstance(item, str):
        if not is_text:
            return _from_base64(item)
        try:
            return item.encode()
        except UnicodeEncodeError:
            return BadInput("text that is not UTF-8")
    if isinstance(item, Path):
        raise ValueError(f"a path among the inputs; give {wanted}")
    raise ValueError(f"a {type(item).__name__} among the inputs; give {wanted}")


_NOT_BASE64 = "not base64; send the file's content in base64, not its path"


def _encoded(data: bytes) -> bytes | None:
    """Return bytes that are base64 throughout, without line ends; None if they are not base64."""
    text = data.replace(b"\r", b"").replace(b"\n", b"")
    return text if len(text) % 4 == 0 and _BASE64.fullmatch(text) else None


def _from_base64(text: bytes | str) -> MediaSource:
    data = text.encode("utf-8", "replace") if isinstance(text, str) else bytes(text)
    encoded = _encoded(data)
    return BadInput(_NOT_BASE64) if encoded is None else base64.b64decode(encoded)


# --- rows ---


def _rows(values: Any) -> list[Any]:
    """Return rows by column. A column that only some rows have is missing in the others."""
    if isinstance(values, bytes | bytearray | memoryview | str | Path):
        return [values]
    if hasattr(values, "columns"):
        if not len(values.columns):
            raise ValueError("none of the model's columns; name at least one")
        if repeated := values.columns[values.columns.duplicated()].tolist():
            raise ValueError(f"several columns are named {repeated[0]!r}; rename one")
        rows = values.to_dict("records")
        return _of_columns(rows[0]) if len(rows) == 1 else rows
    if isinstance(values, Mapping):
        return _of_columns(values)
    if isinstance(values, np.ndarray):
        values = values.ravel().tolist()
    rows = list(values)
    names = dict.fromkeys(name for row in rows if isinstance(row, Mapping) for name in row)
    return [
        {name: row.get(name) for name in names} if isinstance(row, Mapping) else row for row in rows
    ]


def _of_columns(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows of a dictionary of columns. A dictionary of single values is one row."""
    if not row or not all(_is_column(value) for value in row.values()):
        return [row]
    lengths = {len(value) for value in row.values()}
    if len(lengths) > 1:
        raise ValueError(f"columns of {min(lengths)} to {max(lengths)} values; make them equal")
    return [dict(zip(row, cells, strict=True)) for cells in zip(*row.values(), strict=True)]


def _is_column(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _row_input(item: Any, *, allow_paths: bool) -> MediaSource:
    if isinstance(item, Mapping):
        return item
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, Path | str) and allow_paths:
        return Path(item)
    if isinstance(item, str):
        return item.encode("utf-8", "replace")
    wanted = "rows, JSON or paths" if allow_paths else "rows or JSON"
    raise ValueError(f"a {type(item).__name__} among the inputs; give {wanted}")
