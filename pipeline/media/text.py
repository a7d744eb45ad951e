"""Text: UTF-8 bytes, cut to the length of a context."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from pipeline.media.checks import check_one_of, check_whole
from pipeline.media.errors import MediaError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LONGEST_CHARACTER = 4


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """Contexts of up to `max_length` bytes.

    A text is cut at the borders of UTF-8's characters, so that a context may be up to 3 bytes
    shorter than `max_length`, and an overlap up to 3 bytes longer than `overlap`.

    Attributes:
        max_length: bytes of a context; shorter texts are stored as they are and masked.
        overlap: bytes that a context repeats of the one before. Of `all` only.
        cut: `first` takes a text's first context alone, `all` cuts the whole text.
        errors: what becomes of bytes that are not UTF-8: `strict` refuses the text, `replace`
            puts U+FFFD in their place.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
    modality: ClassVar[str] = "text"

    max_length: int
    overlap: int = 0
    cut: Literal["first", "all"] = "first"
    errors: Literal["strict", "replace"] = "strict"

    def __post_init__(self) -> None:
        check_whole(self, "max_length", least=LONGEST_CHARACTER)
        check_whole(self, "overlap", least=0)
        check_one_of(self, "cut", "first", "all")
        check_one_of(self, "errors", "strict", "replace")
        if self.overlap and self.cut == "first":
            raise ValueError(
                f"overlap is {self.overlap}, but cut is 'first'; give cut: all, or leave it out"
            )
        # A context advances by a whole character at least, whatever the borders take.
        most = self.max_length - 2 * LONGEST_CHARACTER
        if self.overlap > max(0, most):
            raise ValueError(f"overlap is {self.overlap}; it must be at most {max(0, most)}")

    @property
    def member(self) -> str:
        """Name of the shard member that holds a context."""
        return "text.npy"


def decode_text(data: bytes, fmt: TextFormat, *, strict: bool = True) -> Iterator[np.ndarray]:
    """The contexts of a text, in order.

    A byte order mark at the start is left out.

    Args:
        data: the file's bytes.
        fmt: length and overlap of contexts.
        strict: whether a text with NUL bytes is refused: UTF-16 without its mark has them, and what
            a disk lost.

    Yields:
        uint8 `[length]`: UTF-8 bytes, at least one and at most `fmt.max_length`.

    Raises:
        MediaError: the text is empty or not UTF-8, or has NUL bytes.
    """
    start = len(BYTE_ORDER_MARK) if data.startswith(BYTE_ORDER_MARK) else 0
    try:
        data = _replaced(data[start:]) if fmt.errors == "replace" else _checked(data, start)
    except MemoryError as error:
        raise MediaError("not enough memory to decode it") from error
    if strict and (zeros := data.count(0)):
        raise MediaError(
            f"{zeros} of its {len(data)} bytes are NUL, which no text has: it is damaged, or "
            "UTF-16 (save it as UTF-8, or set data.strict: false)"
        )
    if not data:
        raise MediaError("the file is empty" if not start else "it holds a byte order mark alone")
    begin = 0
    while True:
        end = begin + fmt.max_length
        if end < len(data):
            end = _border(data, end)
        yield np.frombuffer(data, np.uint8, end - begin if end < len(data) else -1, begin).copy()
        if end >= len(data) or fmt.cut == "first":
            return
        begin = _border(data, end - fmt.overlap)


def _checked(data: bytes, start: int) -> bytes:
    """The bytes from `start`, which are UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MediaError(
            f"not UTF-8: {error.reason} at byte {error.start} (set errors: replace to accept it)"
        ) from error
    return data[start:]


def _replaced(data: bytes) -> bytes:
    return data.decode("utf-8", errors="replace").encode()


def _border(data: bytes, place: int) -> int:
    """The last border between characters at or before `place`."""
    while data[place] & 0xC0 == 0x80:
        place -= 1
    return place
