"""Targets: what a sample is to be mapped to, from a listing's value or a file beside the sample."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from pipeline.media.checks import check_one_of, check_whole
from pipeline.media.errors import MediaError
from pipeline.media.image.decode import ImageFormat
from pipeline.media.image.masks import decode_mask

KINDS = ("class", "multi_label", "regression", "mask", "tokens", "none")
TARGET_MEMBER = "target.npy"
CLASS_MEMBER = "cls"
BYTE_OFFSET = 6
"""DeepMind's byte vocabulary: a byte's token is its value plus 6."""
MAX_JSON_BYTES = 2**20
MAX_TEXT_BYTES = 2**20
"""Of a text that holds numbers."""


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """What every sample is to be mapped to.

    Attributes:
        kind: `class` (one of several; by folder, by `.cls` in tars, by `column` in listings),
            `multi_label` (any number of several), `regression` (numbers), `mask` (a class for
            every pixel, from an image whose values are class numbers), `tokens` (a sequence of
            token numbers, or a text as bytes), `none`.
        column: the listing's column, or the key in a `.json` file (default `label`).
        columns: of `regression`, instead of `column`: one column for each number.
        classes: names, in the order of their numbers; where empty, the sorted names found in
            training rows. Of a mask: how its values are named, and so how many there may be.
        separator: what parts the names where `multi_label` is a text.
        num_values: of `regression` with `column`: how many numbers a row has.
        max_length: of `tokens`: longer sequences are refused; null for no bound.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    kind: Literal["class", "multi_label", "regression", "mask", "tokens", "none"] = "class"
    column: str | None = None
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    separator: str = ";"
    num_values: int = 1
    max_length: int | None = None

    def __post_init__(self) -> None:
        check_one_of(self, "kind", *KINDS)
        check_whole(self, "num_values", least=1)
        if self.max_length is not None:
            check_whole(self, "max_length", least=1)
        for name in ("columns", "classes"):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(v, str) and v for v in values):
                raise ValueError(f"{name} is {values!r}; it must be a list of names")
            if repeated := sorted({v for v in values if list(values).count(v) > 1}):
                raise ValueError(f"{name} names {repeated[0]!r} twice")
            object.__setattr__(self, name, tuple(values))
        if self.column == "" or self.separator == "":
            raise ValueError("column and separator must not be empty")
        if self.columns and (self.kind != "regression" or self.column is not None):
            raise ValueError("columns is for kind 'regression', and stands instead of column")
        if self.kind == "none" and (self.column is not None or self.classes):
            raise ValueError("kind is 'none', which takes neither column nor classes")

    @property
    def length(self) -> int:
        """Numbers of one row of `regression`."""
        return len(self.columns) or self.num_values

    @property
    def key(self) -> str:
        """The key of a `.json` file under which the target lies."""
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
    """The members of a shard that hold one sample's target.

    Args:
        config: kind of the target.
        classes: all names; of `multi_label` and `mask`.
        row: `target` holds the class number, or the value that a listing gave: names, numbers,
            token numbers or a text.
        parts: bytes and name of the sample's files: `mask` the mask image, `target` a `.json`
            file, or a `.txt` file of names, numbers parted by white space or a text, that stands
            for the listing's value.
        image_format: the size of masks, and how they are brought to it.
        strict: as of `pipeline.media.decode`; of masks.

    Returns:
        `class`: `cls`, the number in ASCII. `none`: nothing. Else `target.npy`:
        `multi_label` uint8 `[classes]` of 0 and 1, `regression` float32 `[numbers]`,
        `mask` uint8 `[height, width]`, `tokens` int32 `[tokens]`.

    Raises:
        MediaError: the target is missing or is not what the kind asks for.
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
    """What a `.json` or `.txt` file says."""
    if not name.lower().endswith(".json"):
        return _text_numbers(data) if config.kind == "regression" else data
    try:
        return json_label(data, config.key)
    except ValueError as error:
        raise MediaError(f"target: {error}") from None


def _text_numbers(data: bytes) -> list[float]:
    """Numbers that white space parts."""
    if len(data) > MAX_TEXT_BYTES:
        raise MediaError(f"target: {len(data)} bytes of text, more than {MAX_TEXT_BYTES}")
    numbers = []
    for word in data.removeprefix(b"\xef\xbb\xbf").split():
        try:
            numbers.append(float(word.replace(b"_", b"?")))  # Python alone allows 1_000
        except ValueError:
            shown = word[:40].decode(errors="replace")
            raise MediaError(f"target: {shown!r} is no number") from None
    return numbers


def json_label(data: bytes, key: str) -> Any:
    """The value under `key` of a JSON object, or the whole value where it is no object.

    Raises:
        ValueError: not JSON, too long, too deep, or without the key.
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
    places = {name: number for number, name in enumerate(classes)}
    for name in names:
        if name not in places:
            raise MediaError(f"label {name!r} is none of the {len(classes)} classes")
        marks[places[name]] = 1
    return marks


def label_names(value: Any, separator: str) -> list[str]:
    """The names of `multi_label`: a list of texts, or one text of parted names.

    Raises:
        MediaError: it is neither.
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
