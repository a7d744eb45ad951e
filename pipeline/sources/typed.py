"""Values of listings brought to one Arrow type for each role that a column may have."""

import json
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.media.table import MAX_NUMBER

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


NO_NUMBER = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null",
))  # fmt: skip
"""Texts that stand for a missing number, as in pyarrow's and pandas' readers of CSV."""
_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def is_binary(kind: pa.DataType) -> bool:
    """Whether values are bytes."""
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether values are texts, or bytes that may be."""
    types = pa.types
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return text or is_binary(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists."""
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def is_time(kind: pa.DataType) -> bool:
    """Whether values are dates or times, which count as seconds."""
    return pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind)


def to_role(array: pa.Array, role: Role, separator: str) -> tuple[pa.Array, np.ndarray]:
    """A column's values in the type of its role.

    Returns:
        The values, null where there is none or where one is wrong; and which are wrong, bool
        ``[rows]``.
    """
    target = TYPES[role]
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), target), np.zeros(len(array), bool)
    if array.type in _VIEWS:
        array = array.cast(_VIEWS[array.type])
    none = None
    if pa.types.is_floating(array.type):  # how pandas says that there is none
        none = pc.is_nan(array)
    elif role == "number" and is_text(array.type):
        none = pc.is_in(array, pa.array(sorted(NO_NUMBER), array.type))
    if none is not None:
        array = pc.if_else(none, pa.scalar(None, array.type), array)
    there = array.is_valid().to_numpy(zero_copy_only=False)
    try:
        converted = _cast(array, role, target, separator)
    except (pa.ArrowException, ValueError, OverflowError):
        values = [_one(value, role, separator) for value in array]
        converted = pa.array(values, target)
    wrong = there & ~converted.is_valid().to_numpy(zero_copy_only=False)
    return converted, wrong


def _cast(array: pa.Array, role: Role, target: pa.DataType, separator: str) -> pa.Array:
    kind = array.type
    flat_text = is_text(kind)
    if role in ("path", "bytes", "text", "label"):
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
        # A number that is not finite is as good as none; text may say "inf".
        fits = pc.less_equal(pc.abs(values), MAX_NUMBER)
        return pc.if_else(fits, values, pa.scalar(None, target))
    if role == "category" and flat_text:
        return array.cast(pa.string()).cast(target)
    if role in ("numbers", "tokens") and not is_list(kind):
        raise ValueError("one by one")
    if role == "labels" and pc.list_flatten(array).null_count:
        raise ValueError("a list without a name in it is wrong, one by one")
    return array.cast(target)


def _seconds(array: pa.Array) -> pa.Array:
    """Dates and times as float64 seconds, the same ones whatever unit they are kept in."""
    kind = array.type
    ticks = (array.cast(pa.int32()) if kind.bit_width == 32 else array).cast(pa.int64())
    if pa.types.is_date32(kind):
        return pc.multiply(ticks.cast(pa.float64()), 86400.0)
    unit = "ms" if pa.types.is_date64(kind) else kind.unit
    if unit == "ns":  # which float64 mostly cannot count, other than microseconds
        micros = pc.divide(ticks, 1000)
        return pc.if_else(
            pc.equal(pc.multiply(micros, 1000), ticks),
            _divided(micros, 1e6),
            _divided(ticks, 1e9),
        )
    return _divided(ticks, {"s": 1.0, "ms": 1e3, "us": 1e6}[unit])


def _divided(ticks: pa.Array, by: float) -> pa.Array:
    return pc.divide(ticks.cast(pa.float64(), safe=False), by)


def stands_for_none(value: Any, role: Role) -> bool:
    """Whether a text says that a number is missing."""
    return role == "number" and isinstance(value, str) and value in NO_NUMBER


def _one(scalar: pa.Scalar, role: Role, separator: str) -> Any:
    """One value where its column could not be converted at once; None where it is wrong."""
    if isinstance(scalar, pa.StringScalar | pa.LargeStringScalar):  # which need not be UTF-8
        buffer = scalar.as_buffer()
        return json_value(None if buffer is None else buffer.to_pybytes(), role, separator)
    return json_value(scalar.as_py(), role, separator)


def json_value(value: Any, role: Role, separator: str) -> Any:
    """One value from JSON, text or Arrow in the type of its role; None where it is wrong."""
    if value is None:
        return None
    try:
        text = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    except UnicodeEncodeError:  # half a pair of surrogates, as JSON can spell it
        return None
    whole = isinstance(value, int)
    if role in ("path", "text", "bytes"):
        return text if isinstance(text, bytes) else None
    if role == "label":
        if whole:
            text = str(value).lower().encode()  # true and false, as Arrow spells them
        return text if isinstance(text, bytes) else None
    if role == "category":
        return _category(text)
    if role == "number":
        return _number(text)
    if role == "labels":
        return _names(text, separator)
    if isinstance(text, bytes):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
    if role == "numbers":
        numbers = [_number(each) for each in (value if isinstance(value, list) else [value])]
        return None if None in numbers else numbers
    is_tokens = isinstance(value, list) and all(
        isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**31 for each in value
    )
    return value if is_tokens else None


def _category(value: Any) -> str | None:
    if isinstance(value, bytes):
        return _utf8(value)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else None


def _names(text: Any, separator: str) -> list[str] | None:
    if isinstance(text, bytes):
        whole = _utf8(text)
        parts = [] if whole is None else [name.strip() for name in whole.split(separator)]
        return None if whole is None else [name for name in parts if name]
    if isinstance(text, list) and all(isinstance(name, str) for name in text):
        return text
    return None


def _utf8(text: bytes) -> str | None:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _number(value: Any) -> float | None:
    if isinstance(value, list | dict) or (isinstance(value, bytes) and b"_" in value):
        return None  # Python alone allows 1_000
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= MAX_NUMBER else None
