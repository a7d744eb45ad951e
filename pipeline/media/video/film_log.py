"""FFmpeg's messages while it reads a film. It conceals much damage and only logs it."""

import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from pipeline.media.errors import MediaError

_HARMLESS = re.compile(
    r"unable to decode APP fields"  # Motion JPEG from many cameras
    r"|AC EOB marker is absent"  # DV from most tapes
    r"|SEI type|illegal aspect ratio|exceeds max \("  # H.264 from several encoders
)
_WARNED = re.compile(r"Packet corrupt|concealing \d")
"""Messages below the level of errors that are nevertheless a sign of damage."""
_lock = threading.Lock()
_users = 0


class FilmLog:
    """FFmpeg's messages about one track of a film, from this thread."""

    def __init__(self) -> None:
        self._records: list[tuple[int, str, str]] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record FFmpeg's messages inside the block. The block must not read another film."""
        import av

        with av.logging.Capture(local=True) as records:
            try:
                yield
            finally:
                self._records += records

    def forget(self, keep_of: str = "") -> None:
        """Drop all messages except those from the container with this name."""
        self._records[:] = [record for record in self._records if keep_of and record[1] in keep_of]

    def complaint(self) -> str | None:
        """Return the first message that is a sign of damage, as one line, or None."""
        import av

        for level, _, text in self._records:
            if _WARNED.search(text) or (level <= av.logging.ERROR and not _HARMLESS.search(text)):
                return " ".join(re.sub(r"0x[0-9a-fA-F]+", "0x…", text).split())[:160]
        return None


def listening(log: FilmLog | None) -> AbstractContextManager[None]:
    """Record FFmpeg's messages in `log` inside the block, or nothing if `log` is None."""
    return nullcontext() if log is None else log.listening()


@contextmanager
def ffmpeg_messages(strict: bool) -> Iterator[None]:
    """Send FFmpeg's messages, also repeated ones, to PyAV inside the block if `strict`."""
    global _users  # FFmpeg has one level for all threads
    import av

    if not strict:
        yield
        return
    with _lock:
        _users += 1
        av.logging.set_level(av.logging.INFO)
        av.logging.set_skip_repeated(False)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                av.logging.set_level(None)
                av.logging.set_skip_repeated(True)


def refuse_complaints(log: FilmLog | None, when: str) -> None:
    """Raise MediaError if the log contains a sign of damage. `when` begins the message."""
    if log is not None and (complaint := log.complaint()):
        raise MediaError(f"{when}: FFmpeg says: {complaint}")
