"""What libsndfile's log says is missing from files of its rarer containers."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soundfile import SoundFile

_FRAMES = re.compile(r"^\s*(?:Frames|Sample Count)\s*: (\d+)\s*$", re.MULTILINE)
_COLUMNS = re.compile(r"Cols : (\d+)")
_NIST_COUNT = re.compile(rb"sample_count -i (\d{1,18})\s")
_NIST_HEADER_BYTES = 1024
_SDS_HEADER_BYTES, _SDS_BLOCK_BYTES = 21, 127
_BYTES = (
    re.compile(r"BODY : (?P<declared>\d+) \(should be (?P<found>\d+)\)"),
    re.compile(r"Data length (?P<declared>\d+) should be (?P<found>\d+)"),
    re.compile(r"truncated\. (?P<found>\d+) <--> (?P<declared>\d+)"),
)


def told_shortage(file: "SoundFile", data: bytes) -> str | None:
    """What a file's header declares and libsndfile doesn't find, as a reason; None for nothing.

    Args:
        file: just opened.
        data: its bytes.
    """
    log = file.extra_info
    for pattern in _BYTES:
        if said := pattern.search(log):
            return f"cut short: {said['found']} of {said['declared']} bytes of sound are there"
    if "Seems to be a truncated file" in log:
        return "cut short: its last block of sound is not whole"
    declared, found = _declared(file.format, log, data), file.frames
    if file.format == "SDS":  # it reads silence for the blocks that are not there
        declared, found = found, declared or found
        if rest := (len(data) - _SDS_HEADER_BYTES) % _SDS_BLOCK_BYTES:
            return f"cut short: its last block has {rest} of {_SDS_BLOCK_BYTES} bytes"
    if declared is None or found >= declared:
        return None
    return f"cut short: {found} of {declared} frames are there"


def _declared(kind: str, log: str, data: bytes) -> int | None:
    """Frames that the header declares; None where it doesn't."""
    if kind in ("AVR", "MPC2K", "HTK", "SDS"):
        numbers = _FRAMES.findall(log)
        return int(numbers[-1]) if numbers else None
    if kind == "MAT5":
        numbers = _COLUMNS.findall(log)
        return int(numbers[-1]) if numbers else None
    said = _NIST_COUNT.search(data[:_NIST_HEADER_BYTES]) if kind == "NIST" else None
    return int(said[1]) if said else None
