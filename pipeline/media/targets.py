"""Targets: what a model must predict for a sample, from a listing or from a file next to it."""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from perceiver_model.config_checks import Count, Names, config_dataclass
from pipeline.media.errors import MediaError
from pipeline.media.image.decode import ImageFormat
from pipeline.media.image.masks import decode_mask

Kind = Literal["class", "multi_label", "regression", "mask", "tokens", "none"]
TARGET_MEMBER = "target.npy"
CLASS_MEMBER = "cls"
BYTE_OFFSET = 6
"""The token of byte 0 in DeepMind's byte vocabulary: a byte's token is its value plus 6."""
MAX_JSON_BYTES = 2**20
MAX_TEXT_BYTES = 2**20
"""The largest text file of numbers."""


@config_dataclass
class TargetConfig:
    """The target of every sample.

    Attributes:
        kind: `class`: one of several classes, from the folder, from `.cls` in tars, or from
            `column` in listings. `multi_label`: any number of several labels. `regression`:
            numbers. `mask`: a class for every pixel, from an image whose values are class numbers.
            `tokens`: a sequence of token numbers, or a text as bytes. `none`: no target.
        column: The column of the listing, or the key in a `.json` file (default `label`).
        columns: For `regression`, one column for each number; replaces `column`.
        classes: The names in the order of their numbers. If empty, they are the sorted names in the
            training rows. For a mask, the names of its values; so this sets how many there may be.
        separator: The separator between names if the value of `multi_label` is a text.
        num_values: For `regression` with `column`, the count of numbers in a row.
        max_length: For `tokens`, the longest sequence; longer ones are rejected. None for no limit.
    """

    kind: Kind = "class"
    column: Annotated[str, Field(min_length=1)] | None = None
    columns: Names = ()
    classes: Names = ()
    separator: Annotated[str, Field(min_length=1)] = ";"
    num_values: Count = 1
    max_length: Count | None = None

    def __post_init__(self) -> None:
        for name in ("columns", "classes"):
            values = getattr(self, name)
            if repeated := sorted({v for v in values if values.count(v) > 1}):
                raise ValueError(f"{name} names {repeated[0]!r} twice")
        if self.columns and (self.kind != "regression" or self.column is not None):
            raise ValueError("columns is for kind 'regression', and stands instead of column")
        if self.kind == "none" and (self.column is not None or self.classes):
            raise ValueError("kind is 'none', which takes neither column nor classes")

    @property
    def length(self) -> int:
        """The count of numbers in a target of `regression`."""
        return len(self.columns) or self.num_values

    @property
    def key(self) -> str:
        """The key of the target in a `.json` file."""
        return self.column or "label"


def target_members(
    config: TargetConfig,
    classes: tuple[str, ...],
    row: Mapping[str, Any],
    parts: Mapping[str, tuple[bytes, str]],
    image_format: ImageFormat | None,
    *,
    strict: bool = True,
) -> dict[str, bytes]:
    """Return the shard members that hold the target of one sample.

    Args:
        config: The kind of the target.
        classes: All names, for `multi_label` and `mask`.
        row: `target` holds the class number, or the value from a listing: names, numbers, token
            numbers or a text.
        parts: The bytes and name of each of the sample's files. `mask` is the mask image. `target`
            is used if `row` has no value. It is a `.json` file, or a `.txt` file with names,
            numbers separated by white space, or a text.
        image_format: The size of masks, and how masks are brought to it.
        strict: For masks, the same as in `pipeline.media.decode`.

    Returns:
        `class`: `cls`, the number in ASCII. `none`: nothing. All others: `target.npy`, which is
        uint8 `[classes]` of 0 and 1 for `multi_label`, float32 `[numbers]` for `regression`,
        uint8 `[height, width]` for `mask`, and int32 `[tokens]` for `tokens`.

    Raises:
        MediaError: The target is missing or is not what the kind requires.
    """
    from shards.npy import encode_npy

    if config.kind == "none":
        return {}
    if config.kind == "mask":
        if image_format is None:
            raise MediaError("a mask needs an image to lie over")
        if "mask" not in parts:
            raise MediaError("no mask")
        image = parts["image"][0] if "image" in parts else None
        mask = decode_mask(parts["mask"][0], image_format, len(classes), image, strict=strict)
        return {TARGET_MEMBER: encode_npy(mask)}
    value = row.get("target")
    if value is None and "target" in parts:
        value = _from_file(config, *parts["target"])
    if value is None:
        raise MediaError("no target")
    if config.kind == "class":
        return {CLASS_MEMBER: str(int(value)).encode("ascii")}
    if config.kind == "multi_label":
        return {TARGET_MEMBER: encode_npy(_labels(value, classes, config.separator))}
    if config.kind == "regression":
        return {TARGET_MEMBER: encode_npy(_numbers(value, config.length))}
    return {TARGET_MEMBER: encode_npy(_tokens(value, config.max_length))}


def _from_file(config: TargetConfig, data: bytes, name: str) -> Any:
    """Read a target from a `.json` or `.txt` file."""
    if not name.lower().endswith(".json"):
        return _text_numbers(data) if config.kind == "regression" else data
    try:
        return json_label(data, config.key)
    except ValueError as error:
        raise MediaError(f"target: {error}") from None


def _text_numbers(data: bytes) -> list[float]:
    """Parse numbers that are separated by white space."""
    if len(data) > MAX_TEXT_BYTES:
        raise MediaError(f"target: {len(data)} bytes of text, more than {MAX_TEXT_BYTES}")
    numbers = []
    for word in data.removeprefix(b"\xef\xbb\xbf").split():
        try:
            numbers.append(float(word.replace(b"_", b"?")))  # reject 1_000, which float() accepts
        except ValueError:
            shown = word[:40].decode(errors="replace")
            raise MediaError(f"target: {shown!r} is no number") from None
    return numbers


def json_label(data: bytes, key: str) -> Any:
    """Return the value of `key` in a JSON object, or the whole value if it is not an object.

    Raises:
        ValueError: The data is not JSON, is too long or too deep, or lacks the key.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"{len(data)} bytes of JSON, more than {MAX_JSON_BYTES}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(value, dict):
        return value
    if value.get(key) is None:
        raise ValueError(f"its JSON has no {key!r}")
    return value[key]


def _labels(value: Any, classes: tuple[str, ...], separator: str) -> np.ndarray:
    names = label_names(value, separator)
    marks = np.zeros(len(classes), np.uint8)
    indices = {name: index for index, name in enumerate(classes)}
    for name in names:
        if name not in indices:
            raise MediaError(f"label {name!r} is none of the {len(classes)} classes")
        marks[indices[name]] = 1
    return marks


def label_names(value: Any, separator: str) -> list[str]:
    """Return the names of a `multi_label` target: a list of texts, or one text with separators.

    Raises:
        MediaError: The value is neither.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        value = [name.strip() for name in value.split(separator)]
        return [name for name in value if name]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    raise MediaError("labels are neither a list of names nor a text")


def _numbers(value: Any, length: int) -> np.ndarray:
    values = value if isinstance(value, list) else [value]
    if len(values) != length:
        raise MediaError(f"target has {len(values)} numbers, not {length}")
    for number in values:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise MediaError("target holds what is no number")
    try:
        with np.errstate(over="ignore"):
            numbers = np.asarray([float(number) for number in values], np.float32)
    except OverflowError:
        raise MediaError("target holds a number beyond float32") from None
    if not all(map(math.isfinite, numbers.tolist())):
        raise MediaError("target holds a number that is not finite, or beyond float32")
    return numbers


def _tokens(value: Any, max_length: int | None) -> np.ndarray:
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        tokens = np.frombuffer(value, np.uint8).astype(np.int32) + BYTE_OFFSET
    elif isinstance(value, list) and all(
        isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 2**31
        for token in value
    ):
        tokens = np.asarray(value, np.int32)
    else:
        raise MediaError("tokens are neither a text nor a list of numbers from 0 to 2**31-1")
    if not tokens.size:
        raise MediaError("no tokens")
    if max_length is not None and tokens.size > max_length:
        raise MediaError(f"{tokens.size} tokens, more than max_length={max_length}")
    return tokens
