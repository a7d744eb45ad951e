"""Text: UTF-8 bytes, cut into contexts of limited length."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from perceiver_model.config_checks import WholeNumber, config_dataclass
from pipeline.media.errors import MediaError
from pipeline.media.format import MediaFormat

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LONGEST_CHARACTER = 4


@config_dataclass
class TextFormat(MediaFormat):
    """Contexts of up to `max_length` bytes.

    A text is cut between UTF-8 characters. So a context may be up to 3 bytes shorter than
    `max_length`, and an overlap may be up to 3 bytes longer than `overlap`.

    Attributes:
        max_length: The most bytes in a context. Shorter texts are stored as they are, and masked in
            batches.
        overlap: The bytes that a context repeats from the previous one. Only for `cut` = `all`.
        cut: `first` takes only the first context of a text, `all` takes the whole text.
        errors: What to do with bytes that are not UTF-8. `strict` rejects the text, `replace`
            replaces them by U+FFFD.
    """

    modality: ClassVar[str] = "text"

    max_length: Annotated[int, Field(ge=LONGEST_CHARACTER)]
    overlap: WholeNumber = 0
    cut: Literal["first", "all"] = "first"
    errors: Literal["strict", "replace"] = "strict"

    def __post_init__(self) -> None:
        if self.overlap and self.cut == "first":
            raise ValueError(
                f"overlap is {self.overlap}, but cut is 'first'; give cut: all, or leave it out"
            )
        # Each context must advance by at least one character, even when both ends move back.
        most = self.max_length - 2 * LONGEST_CHARACTER
        if self.overlap > max(0, most):
            raise ValueError(f"overlap is {self.overlap}; must be at most {max(0, most)}")


def decode_text(data: bytes, fmt: TextFormat, *, strict: bool = True) -> Iterator[np.ndarray]:
    """Decode a text into its contexts, in order.

    A byte order mark at the start is removed.

    Args:
        data: The bytes of the file.
        fmt: The length and overlap of contexts.
        strict: Whether to reject a text with NUL bytes. UTF-16 without a byte order mark contains
            them, and so do files that a disk damaged.

    Yields:
        uint8 `[length]`: UTF-8 bytes, at least one and at most `fmt.max_length`.

    Raises:
        MediaError: The text is empty, is not UTF-8, or has NUL bytes.
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
    """Return the bytes from `start` on if they are UTF-8, else raise MediaError."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MediaError(
            f"not UTF-8: {error.reason} at byte {error.start} (set errors: replace to accept it)"
        ) from error
    return data[start:]


def _replaced(data: bytes) -> bytes:
    return data.decode("utf-8", errors="replace").encode()


def _border(data: bytes, offset: int) -> int:
    """Return the offset of the last border between characters at or before `offset`."""
    while data[offset] & 0xC0 == 0x80:
        offset -= 1
    return offset
