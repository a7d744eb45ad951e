"""The one exception of the decoders, and how they tell where they failed."""

import re
import traceback
from pathlib import Path


class MediaError(ValueError):
    """A file that cannot be used, with the reason in one line.

    Attributes:
        trace: where a decoder failed, from `short_trace`; set on errors that come out of a
            sandbox, whose own tracebacks end at the pipe.
    """

    def __init__(self, reason: str, *, trace: str = "") -> None:
        super().__init__(reason)
        self.trace = trace


def short_trace(error: BaseException) -> str:
    """Where a decoder failed, without this machine's paths: a shard set's bytes must not have them.

    Returns:
        One line for each call, outermost first: `FILE:LINE in FUNCTION`.
    """
    if isinstance(error, MediaError) and error.trace:
        return error.trace
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    return "\n".join(f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames)


def one_line(error: BaseException) -> str:
    """A library's error as a reason: one line, short, without the addresses of objects."""
    text = re.sub(r"\b0x[0-9a-fA-F]+", "0x…", " ".join(str(error).split()))
    text = text if len(text) <= 200 else f"{text[:199]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
