"""What FFmpeg complains of while it reads a film: it conceals much damage and only logs it."""

import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from pipeline.media.errors import MediaError

_HARMLESS = re.compile(
    r"unable to decode APP fields"  # of Motion JPEG, that many cameras write
    r"|AC EOB marker is absent"  # of DV, on most tapes
    r"|SEI type|illegal aspect ratio|exceeds max \("  # of H.264, by several encoders
)
_WARNED = re.compile(r"Packet corrupt|concealing \d")
"""Of lower levels than errors, what tells of damage all the same."""
_lock = threading.Lock()
_users = 0


class FilmLog:
    """FFmpeg's messages on one track of a film, of this thread."""

    def __init__(self) -> None:
        self._records: list[tuple[int, str, str]] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take down what FFmpeg says inside the block, which must not yield to other films."""
        import av

        with av.logging.Capture(local=True) as records:
            try:
                yield
            finally:
                self._records += records

    def forget(self, keep_of: str = "") -> None:
        """Drop all messages but those of the container with this name."""
        self._records[:] = [record for record in self._records if keep_of and record[1] in keep_of]

    def complaint(self) -> str | None:
        """The first message that tells of damage, as one line; None where there is none."""
        import av

        for level, _, text in self._records:
            if _WARNED.search(text) or (level <= av.logging.ERROR and not _HARMLESS.search(text)):
                return " ".join(re.sub(r"0x[0-9a-fA-F]+", "0x…", text).split())[:160]
        return None


def listening(log: FilmLog | None) -> AbstractContextManager[None]:
    """As `FilmLog.listening`; None takes down nothing."""
    return nullcontext() if log is None else log.listening()


@contextmanager
def ffmpeg_messages(strict: bool) -> Iterator[None]:
    """Inside the block, FFmpeg's messages go to PyAV, which drops them otherwise; repeated, too."""
    global _users  # the level is FFmpeg's, and one for all threads
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
    """Raises MediaError where the log tells of damage."""
    if log is not None and (complaint := log.complaint()):
        raise MediaError(f"{when}: FFmpeg says: {complaint}")
