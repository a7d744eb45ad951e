"""Parse lines of numbers that are separated by blanks. The lines may have any lengths."""

from collections.abc import Iterator
from itertools import chain

import numpy as np

from pipeline.media.errors import MediaError

CHUNK_BYTES = 2**20
"""About how many bytes of text are split into words at once."""

MAX_LINE_BYTES = 2**24


def number_lines(lines: list[bytes], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of all lines, and where the numbers of each line begin.

    Args:
        lines: The lines, each with at least one number.
        name: What errors call one of the lines.

    Returns:
        The numbers, float64 `[numbers]`, and their starts, int64 `[lines + 1]`. The last start is
        the total of numbers.

    Raises:
        MediaError: A word is not a number, or a line is too long.
    """
    lengths, numbers, first = [np.zeros(1, np.int64)], [np.empty(0)], 0
    for chunk in _chunks(lines):
        words = [line.split() for line in chunk]
        length = np.fromiter(map(len, words), np.int64, len(words))
        try:
            if any(b"_" in line for line in chunk):  # such as 1_000, which Python reads as a number
                raise ValueError
            flat = chain.from_iterable(words)
            numbers.append(np.fromiter(map(float, flat), np.float64, length.sum()))
        except ValueError:
            index = next(index for index, line in enumerate(words) if not _are_numbers(line))
            shown = ascii(chunk[index].decode("latin-1").strip()[:60])
            raise MediaError(f"{name} {first + index + 1} is not of numbers: {shown}") from None
        lengths.append(length)
        first += len(chunk)
    return np.concatenate(numbers), np.cumsum(np.concatenate(lengths))


def listed(numbers: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return `counts[i]` numbers from `starts[i]` on, for each `i`, concatenated.

    Args:
        numbers: The numbers, `[numbers]`.
        starts: The index of the first number of each list, int64 `[lists]`.
        counts: The length of each list, int64 `[lists]`.
    """
    before = np.cumsum(counts) - counts
    return numbers[np.repeat(starts - before, counts) + np.arange(counts.sum())]


def _chunks(lines: list[bytes]) -> Iterator[list[bytes]]:
    start, size = 0, 0
    for end, line in enumerate(lines):
        if len(line) > MAX_LINE_BYTES:
            raise MediaError(f"a line of {len(line)} bytes, more than {MAX_LINE_BYTES}")
        size += len(line)
        if size > CHUNK_BYTES:
            yield lines[start : end + 1]
            start, size = end + 1, 0
    if start < len(lines):
        yield lines[start:]


def _are_numbers(words: list[bytes]) -> bool:
    try:
        return all(b"_" not in word and float(word) is not None for word in words)
    except ValueError:
        return False
