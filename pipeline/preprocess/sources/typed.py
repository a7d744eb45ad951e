"""Converts the values of listings to one Arrow type for each role of a column."""

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.media.table.values import (
    FIRST_MARKS,
    MAX_NUMBER,
    MISSING_TEXTS,
    is_missing,
    name_of,
    read_name,
    read_number,
)

Role = Literal[
    "path", "bytes", "text", "label", "labels", "number", "numbers", "category", "tokens"
]
TYPES: dict[Role, pa.DataType] = {
    "path": pa.binary(),
    "bytes": pa.binary(),
    "text": pa.binary(),
    "label": pa.binary(),
    "labels": pa.list_(pa.string()),
    "number": pa.float64(),
    "numbers": pa.list_(pa.float64()),
    "category": pa.string(),
    "tokens": pa.list_(pa.int64()),
}


_FIRST_BYTES = pa.array(
    sorted({name[:1].encode() for name in MISSING_TEXTS} | {mark.encode() for mark in FIRST_MARKS})
)
_CASTS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary(), pa.float16(): pa.float64()}


def is_binary(kind: pa.DataType) -> bool:
    """Return whether the values are bytes."""
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def is_text(kind: pa.DataType) -> bool:
    """Return whether the values are text, or bytes that may be text."""
    types = pa.types
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return text or is_binary(kind)


def is_list(kind: pa.DataType) -> bool:
    """Return whether the values are lists."""
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def is_time(kind: pa.DataType) -> bool:
    """Return whether the values are dates or times, which are converted to seconds."""
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind)


def to_role(array: pa.Array, role: Role, separator: str) -> tuple[pa.Array, np.ndarray]:
    """Convert a column's values to the type of its role.

    Args:
        array: The column.
        role: What the values are.
        separator: The separator of several `labels` in one text.

    Returns:
        The values, null if missing or wrong, and which of them are wrong, bool `[rows]`.
    """
    target = TYPES[role]
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), target), np.zeros(len(array), bool)
    if array.type in _CASTS:
        array = array.cast(_CASTS[array.type])
    if role in ("label", "category"):
        return _by_distinct(array, role, separator)
    missing = None
    if pa.types.is_floating(array.type):  # pandas writes missing values as NaN
        missing = pc.is_nan(array)
    elif role in ("number", "numbers") and is_text(array.type):
        missing = pc.is_in(array, pa.array(sorted(MISSING_TEXTS), array.type))
    if missing is not None:
        array = pc.if_else(missing, pa.scalar(None, array.type), array)
    there = array.is_valid().to_numpy(zero_copy_only=False)
    try:
        converted = _cast(array, role, target, separator)
    except (pa.ArrowException, ValueError, OverflowError):
        return _by_distinct(array, role, separator)
    wrong = there & ~converted.is_valid().to_numpy(zero_copy_only=False)
    return converted, wrong


def _by_distinct(array: pa.Array, role: Role, separator: str) -> tuple[pa.Array, np.ndarray]:
    """Convert like `to_role`, but value by value. Each distinct value is converted once."""
    is_name = role in ("label", "category")
    if is_time(array.type):
        array = _moments(array).cast(pa.string()) if is_name else _seconds(array)
    if is_list(array.type):
        return read_values(array.to_pylist(), role, separator)
    if is_name and is_text(array.type) and (plain := _plain_names(array, role)) is not None:
        return plain, np.zeros(len(array), bool)
    encoded = array.dictionary_encode()
    distinct, indices = encoded.dictionary, encoded.indices
    if is_text(distinct.type):
        distinct = distinct.cast(pa.binary())  # text may not be UTF-8
        values, wrong = (_text_names if is_name else _texts)(distinct, role, separator)
    else:
        values, wrong = read_values(distinct.to_pylist(), role, separator)
    if not wrong.any():
        return values.take(indices), np.zeros(len(array), bool)
    rows = indices.fill_null(0).to_numpy()
    return values.take(indices), array.is_valid().to_numpy(zero_copy_only=False) & wrong[rows]


def _texts(texts: pa.Array, role: Role, separator: str) -> tuple[pa.Array, np.ndarray]:
    return read_values(texts.to_pylist(), role, separator)


def _plain_names(texts: pa.Array, role: Role) -> pa.Array | None:
    """Return texts that are all names as they are; None if one may need a conversion."""
    if pc.any(_may_differ(texts.cast(pa.binary()))).as_py():
        return None
    try:
        return texts.cast(pa.string()).cast(TYPES[role])
    except pa.ArrowInvalid:  # not UTF-8
        return None


def _may_differ(texts: pa.Array) -> pa.Array:
    """Return which texts begin like numbers, dates, booleans or missing values."""
    return pc.is_in(pc.binary_slice(texts, 0, 1), _FIRST_BYTES)


def _text_names(texts: pa.Array, role: Role, separator: str) -> tuple[pa.Array, np.ndarray]:
    """Convert like `read_values`, but look only at texts whose name may differ from the text."""
    other = _may_differ(texts)
    try:
        names = texts.cast(pa.string()).cast(TYPES[role])
    except pa.ArrowInvalid:
        return _texts(texts, role, separator)
    wrong = np.zeros(len(texts), bool)
    values, of_others = _texts(texts.filter(other), role, separator)
    wrong[other.to_numpy(zero_copy_only=False)] = of_others
    return pc.replace_with_mask(names, other, values), wrong


def _cast(array: pa.Array, role: Role, target: pa.DataType, separator: str) -> pa.Array:
    """Convert all values at once if that gives the same as `read_value`; otherwise fail."""
    kind = array.type
    flat_text = is_text(kind)
    if role in ("path", "bytes", "text"):
        return (array if flat_text else array.cast(pa.string())).cast(target)
    if role == "labels" and flat_text:
        names = pc.utf8_trim_whitespace(
            pc.list_flatten(parted := pc.split_pattern(array.cast(pa.string()), separator))
        )
        if pc.any(pc.equal(names, "")).as_py():
            raise ValueError("empty names are left out one by one")
        return pa.ListArray.from_arrays(parted.offsets, names, mask=array.is_null()).cast(target)
    if role == "number" and is_time(kind):
        return _seconds(array)
    if role == "number":
        values = (array.cast(pa.string()) if flat_text else array).cast(target)
        # A number that is not finite counts as missing. Text may hold "inf".
        fits = pc.less_equal(pc.abs(values), MAX_NUMBER)
        return pc.if_else(fits, values, pa.scalar(None, target))
    if role in ("numbers", "tokens") and not is_list(kind):
        raise ValueError("one by one")
    if role == "labels" and pc.list_flatten(array).null_count:
        raise ValueError("a list without a name in it is wrong, one by one")
    return array.cast(target)


def _moments(array: pa.Array) -> pa.Array:
    """Return dates and times without a time zone. Those with one are converted to UTC."""
    if not pa.types.is_timestamp(array.type) or array.type.tz is None:
        return array
    return array.cast(pa.int64()).cast(pa.timestamp(array.type.unit))


def _seconds(array: pa.Array) -> pa.Array:
    """Return dates and times as float64 seconds, whatever unit they are stored in."""
    kind = array.type
    ticks = (array.cast(pa.int32()) if kind.bit_width == 32 else array).cast(pa.int64())
    if pa.types.is_date32(kind):
        return pc.multiply(ticks.cast(pa.float64()), 86400.0)
    unit = "ms" if pa.types.is_date64(kind) else kind.unit
    if unit == "ns":  # float64 cannot hold most nanoseconds exactly, but it can hold microseconds
        micros = pc.divide(ticks, 1000)
        return pc.if_else(
            pc.equal(pc.multiply(micros, 1000), ticks),
            _divided(micros, 1e6),
            _divided(ticks, 1e9),
        )
    return _divided(ticks, {"s": 1.0, "ms": 1e3, "us": 1e6}[unit])


def _divided(ticks: pa.Array, by: float) -> pa.Array:
    return pc.divide(ticks.cast(pa.float64(), safe=False), by)


def read_values(values: Sequence[Any], role: Role, separator: str) -> tuple[pa.Array, np.ndarray]:
    """Convert values from JSON, text or Arrow like `to_role`, one by one.

    Args:
        values: The values.
        role: What the values are.
        separator: The separator of several `labels` in one text.

    Returns:
        The values, null if missing or wrong, and which of them are wrong, bool `[rows]`.
    """
    typed: list[Any] = []
    wrong = np.zeros(len(values), bool)
    for index, value in enumerate(values):
        try:
            typed.append(read_value(value, role, separator))
        except ValueError:
            wrong[index] = True
            typed.append(None)
    return pa.array(typed, TYPES[role]), wrong


def read_value(value: Any, role: Role, separator: str) -> Any:
    """Convert one value from JSON, text or Arrow to the type of its role; None if it is missing.

    Args:
        value: The value.
        role: What the value is.
        separator: The separator of several `labels` in one text.

    Raises:
        ValueError: The role does not allow this value.
    """
    if is_missing(value):
        return None
    if role == "number":
        return read_number(value)
    if role == "category":
        return read_name(value)
    if role == "label":
        return label_name(value)
    text = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    if role in ("path", "text", "bytes"):
        if not isinstance(text, bytes):
            raise ValueError("not text")
        return text
    if role == "labels":
        return _label_names(text, separator)
    if role == "numbers":
        return _numbers(value)
    if isinstance(text, bytes):
        value = _from_json(text)
    is_tokens = isinstance(value, list) and all(
        isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**31 for each in value
    )
    if not is_tokens:
        raise ValueError("not a list of token numbers")
    return value


def label_name(value: Any) -> bytes | None:
    """Return the name of a label or key, or its bytes if it is not UTF-8. None if it is empty.

    "NA" is a name here, unlike in a category, because labels never come from a data frame.

    Raises:
        ValueError: The value is not a scalar.
    """
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    return name_of(value).encode() or None


def _label_names(text: Any, separator: str) -> list[str]:
    if isinstance(text, bytes):
        parts = [name.strip() for name in text.decode("utf-8").split(separator)]
        return [name for name in parts if name]
    if isinstance(text, list) and all(isinstance(name, str) for name in text):
        return text
    raise ValueError("neither a list of names nor a text")


def _numbers(value: Any) -> list[float] | None:
    """Return the numbers of a single number, or of a list, which may be a JSON text."""
    if isinstance(value, str | bytes):
        try:
            number = read_number(value)
        except ValueError:
            value = _from_json(value)
        else:
            return None if number is None else [number]
    numbers = [read_number(each) for each in (value if isinstance(value, list) else [value])]
    found = [number for number in numbers if number is not None]
    if len(found) < len(numbers):
        raise ValueError("a number in the list is missing")
    return found


def _from_json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too deep") from None
