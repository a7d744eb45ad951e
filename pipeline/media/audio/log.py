"""Find what is missing from files of rarer containers, with libsndfile's log."""

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


def find_shortage(file: "SoundFile", data: bytes) -> str | None:
    """Return the reason that says what the header declares and libsndfile does not find.

    Args:
        file: The file, just opened.
        data: The bytes of the file.

    Returns:
        The reason, or None if nothing is missing.
    """
    log = file.extra_info
    for pattern in _BYTES:
        if match := pattern.search(log):
            return f"cut short: {match['found']} of {match['declared']} bytes of sound are there"
    if "Seems to be a truncated file" in log:
        return "cut short: its last block of sound is not whole"
    declared, found = _declared(file.format, log, data), file.frames
    if file.format == "SDS":  # For missing blocks, libsndfile reads silence.
        declared, found = found, declared or found
        if rest := (len(data) - _SDS_HEADER_BYTES) % _SDS_BLOCK_BYTES:
            return f"cut short: its last block has {rest} of {_SDS_BLOCK_BYTES} bytes"
    if declared is None or found >= declared:
        return None
    return f"cut short: {found} of {declared} frames are there"


def _declared(kind: str, log: str, data: bytes) -> int | None:
    """Return the number of frames that the header declares; None if it declares none."""
    if kind in ("AVR", "MPC2K", "HTK", "SDS"):
        numbers = _FRAMES.findall(log)
        return int(numbers[-1]) if numbers else None
    if kind == "MAT5":
        numbers = _COLUMNS.findall(log)
        return int(numbers[-1]) if numbers else None
    match = _NIST_COUNT.search(data[:_NIST_HEADER_BYTES]) if kind == "NIST" else None
    return int(match[1]) if match else None
