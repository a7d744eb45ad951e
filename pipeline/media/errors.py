"""The exception of the decoders, and short descriptions of where and why they failed."""

import re
import traceback
from pathlib import Path


class MediaError(ValueError):
    """A file cannot be used. The message is the reason, in one line.

    Attributes:
        trace: Where a decoder failed, as `short_trace` returns it. It is set on an error that comes
            from a sandbox, because the traceback of such an error ends at the pipe.
    """

    def __init__(self, reason: str, *, trace: str = "") -> None:
        super().__init__(reason)
        self.trace = trace


def short_trace(error: BaseException) -> str:
    """Return where a decoder failed, without this machine's paths.

    The bytes of a shard set contain the result, and they must be the same on every machine.

    Returns:
        One line for each call, the outermost first: `FILE:LINE in FUNCTION`.
    """
    if isinstance(error, MediaError) and error.trace:
        return error.trace
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    return "\n".join(f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames)


def one_line(error: BaseException) -> str:
    """Return a library's error as a short reason in one line, without the addresses of objects."""
    text = re.sub(r"\b0x[0-9a-fA-F]+", "0x…", " ".join(str(error).split()))
    text = text if len(text) <= 200 else f"{text[:199]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
