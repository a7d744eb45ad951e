"""Read a table's values the same way whatever wrote them: text, JSON, Arrow, pandas or NumPy.

A number is a float, whatever type holds it. A category, label or key has exactly one name, which
follows from its number, boolean, date or text.
"""

import datetime as dt
import math
import re
from decimal import Decimal
from typing import Any

import numpy as np

MAX_NUMBER = float(np.finfo(np.float32).max)
"""Models compute in float32. A number beyond it mostly stands for a missing value."""
MISSING_TEXTS = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null",
))  # fmt: skip
"""The texts that mean a missing value: those of pandas' CSV reader, and pandas' own NaT."""
BOOLEANS = {
    "True": True, "true": True, "TRUE": True, "False": False, "false": False, "FALSE": False,
}  # fmt: skip

FIRST_MARKS = frozenset("-0123456789TtFf")
"""The first characters of texts whose name may differ from the text."""

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
_FRACTION = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]*[1-9]")
_POWER = re.compile(r"-?[1-9](?:\.[0-9]*[1-9])?[eE][+-]?[0-9]{1,3}")
_PLAIN = (1e-4, 1e16)
"""Between these, an exponent without a sign marks a code such as 1e3, not the number 1000."""
_MAX_DIGITS = 40
_DATE = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[ T]([0-9]{2}:[0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)?"
    r" ?(Z|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)
_TIME = re.compile(r"([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?")
_EPOCH = dt.date(1970, 1, 1)
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def is_missing(value: Any) -> bool:
    """Return whether a value that is not text is missing: None, NaN, NaT or pandas' NA."""
    if value is None:
        return True
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return type(value).__name__ in ("NAType", "NaTType")


def read_number(value: Any) -> float | None:
    """Read a value of a numeric column.

    Booleans are 1 and 0. Dates are seconds since 1970-01-01 in UTC, and times of day are seconds
    since midnight. A text is read as the number, boolean, date or time that it spells. Bytes are
    read as text.

    Returns:
        A finite number within float32; None if the value is missing.

    Raises:
        ValueError: The value is something else. The message completes the sentence "holds …".
    """
    value = _plain(value)
    if is_missing(value):
        return None
    if isinstance(value, str):
        return None if value in MISSING_TEXTS else _checked(_text_number(value), value)
    if isinstance(value, dt.datetime | np.datetime64):
        instant = _instant(value)
        ticks = int(instant.astype(np.int64))
        return _checked(_seconds(ticks, np.datetime_data(instant.dtype)[0]), value)
    if isinstance(value, dt.date):
        return float((value - _EPOCH).days * 86400)
    if isinstance(value, dt.time):
        return _text_number(value.replace(tzinfo=None).isoformat())
    if not isinstance(value, bool | int | float | Decimal | np.number | np.bool_):
        raise ValueError(f"{shown(value)}, not a number")
    try:
        return _checked(float(value), value)
    except (OverflowError, TypeError) as error:
        raise ValueError("a number beyond float32") from error


def read_name(value: Any) -> str | None:
    """Return the name of a value in a column of categories, labels or keys.

    Returns:
        The result of `name_of`; None if the value is missing or is a text in `MISSING_TEXTS`.

    Raises:
        ValueError: The value is not a scalar. The message completes the sentence "holds …".
    """
    value = _plain(value)
    if is_missing(value) or (isinstance(value, str) and value in MISSING_TEXTS):
        return None
    return name_of(value)


def name_of(value: Any) -> str:
    """Return the one name of a value that is not missing.

    1, 1.0, "1" and "1.0" are named "1". True, "True" and "true" are named "true". A date is named
    "2026-01-31", and a date with a time "2026-01-31 12:30:00", in UTC. A text that no program
    writes for a number keeps its spelling: "007", "1.50", "1e3". The name of a name is the name
    itself.

    Raises:
        ValueError: The value is not a scalar. The message completes the sentence "holds …".
    """
    value = _plain(value)
    if isinstance(value, str):
        return _text_name(value)
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return _float_name(float(value))
    if isinstance(value, Decimal):
        return _text_name(format(value, "f"))
    if isinstance(value, dt.datetime | np.datetime64):
        return _text_name(str(np.datetime_as_string(_instant(value))))
    if isinstance(value, dt.date | dt.time):
        return _text_name(value.isoformat())
    raise ValueError(f"{shown(value)}, no category")


def is_number(value: Any) -> bool:
    """Return whether the type of a value is a number type. Booleans are not numbers here."""
    return isinstance(value, int | float | Decimal | np.number) and not isinstance(value, bool)


def numeral(name: str) -> Decimal | None:
    """Return the number that a name spells, whatever its leading and trailing zeros; else None."""
    if len(name) > _MAX_DIGITS or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", name):
        return None
    return Decimal(name)


def shown(value: Any) -> str:
    """Return a value in a short form of one line, for an error."""
    if isinstance(value, str | float):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:37]}..."
    return f"a {type(value).__name__}"


def _plain(value: Any) -> Any:
    """Return bytes as text, and the scalar of an array without axes."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            value = bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("bytes that are not UTF-8") from None
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell
            raise ValueError("text that is not UTF-8") from None
    return value


def _checked(number: float | None, value: Any) -> float:
    if number is None:
        raise ValueError(f"{shown(value)}, not a number")
    if not abs(number) <= MAX_NUMBER:
        raise ValueError("a number that is not finite, or beyond float32")
    return number


def _text_number(text: str) -> float | None:
    """Return the number that a text spells, which may be NaN or infinite; else None."""
    if not text.isascii():
        return None
    if text in BOOLEANS:
        return float(BOOLEANS[text])
    try:
        return None if "_" in text else float(text)  # only Python allows 1_000
    except ValueError:
        pass
    if (time := _TIME.fullmatch(text)) is not None:
        hours, minutes, seconds, fraction = time.groups()
        whole = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
        in_day = int(hours) < 24 and int(minutes) < 60 and int(seconds) < 60
        return _seconds(whole * 10**9 + _nanoseconds(fraction), "ns") if in_day else None
    moment = _moment(text)
    if moment is None:
        return None
    whole = (moment[0] - dt.datetime(1970, 1, 1)) // dt.timedelta(seconds=1)
    return _seconds(whole * 10**9 + _nanoseconds(moment[1]), "ns")


def _text_name(text: str) -> str:
    if text[:1] not in FIRST_MARKS:
        return text
    if text in BOOLEANS:
        return "true" if BOOLEANS[text] else "false"
    if (whole := _WHOLE.fullmatch(text)) is not None:
        return "0" if whole[1] == "-0" else whole[1]
    if len(text) > _MAX_DIGITS:
        return text
    if _FRACTION.fullmatch(text) or _POWER.fullmatch(text):
        return _shortest(text)
    if (time := _TIME.fullmatch(text)) is not None:
        return text if time[4] is None else f"{text[:8]}{_point(time[4])}"
    moment = _moment(text)
    if moment is None:
        return text
    time_of_day, fraction = moment[0].time(), _point(moment[1])
    if time_of_day == dt.time() and not fraction:
        return moment[0].date().isoformat()
    return moment[0].isoformat(sep=" ") + fraction


def _shortest(text: str) -> str:
    """Return the name of the float that a text spells, or the text itself.

    The text is kept if the float is another number, or if no program writes a number that way.
    """
    number = float(text)
    has_power = re.search(r"[eE][0-9]", text) is not None
    if not math.isfinite(number) or Decimal(repr(number)) != Decimal(text):
        return text
    if has_power and _PLAIN[0] <= abs(number) < _PLAIN[1]:
        return text
    return _float_name(number)


def _float_name(number: float) -> str:
    """Return the shortest text of a number: that of the float32 if float32 holds it exactly."""
    if number.is_integer():
        return str(int(number))
    if math.isfinite(number) and float(single := np.float32(number)) == number:
        return repr(float(str(single)))
    return repr(number)


def _moment(text: str) -> tuple[dt.datetime, str | None] | None:
    """Return a date and time in UTC, to the second, and the digits of its fraction; else None."""
    found = _DATE.fullmatch(text)
    if found is None:
        return None
    date, time, seconds, fraction, zone = found.groups()
    try:
        moment = dt.datetime.fromisoformat(f"{date} {time or '00:00'}:{seconds or '00'}")
        if zone and zone != "Z":
            digits = zone[1:].replace(":", "").ljust(4, "0")
            ahead = dt.timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
            moment += ahead if zone[0] == "-" else -ahead
    except (ValueError, OverflowError):
        return None
    return moment, fraction


def _instant(value: Any) -> Any:
    """Return a datetime, Timestamp or datetime64 as datetime64 in UTC, with its own unit.

    A unit other than s, ms, us and ns becomes s."""
    if hasattr(value, "to_datetime64"):  # pandas' Timestamp, which may have nanoseconds
        value = value.to_datetime64()
    elif isinstance(value, dt.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(dt.UTC).replace(tzinfo=None)
        value = np.datetime64(value, "us")
    unit = np.datetime_data(value.dtype)[0]
    return value.astype(f"datetime64[{unit if unit in _PER_SECOND else 's'}]")


def _seconds(ticks: int, unit: str) -> float:
    """Return seconds as a float that does not depend on the unit of the ticks."""
    per_second = _PER_SECOND[unit]
    while per_second > 1 and ticks % 1000 == 0:
        ticks, per_second = ticks // 1000, per_second // 1000
    return float(ticks) / per_second


def _nanoseconds(fraction: str | None) -> int:
    return int((fraction or "").ljust(9, "0"))


def _point(fraction: str | None) -> str:
    digits = (fraction or "").rstrip("0")
    return f".{digits}" if digits else ""
