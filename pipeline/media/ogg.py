"""Ogg's pages (RFC 3533, 6): whether one file holds several recordings, one after the other."""

_MAGIC = b"OggS"
_HEADER_BYTES = 27
_BEGINS = 2
"""The flag of a page that begins a stream."""


def num_chained(data: bytes) -> int:
    """Recordings that follow each other in an Ogg file, each with headers of its own.

    Streams that run side by side begin together, before any of them goes on.
    """
    num, has_begun = 0, False
    place = data.find(_MAGIC)
    while 0 <= place <= len(data) - _HEADER_BYTES:
        begins = bool(data[place + 5] & _BEGINS)
        num += begins and not has_begun
        has_begun = begins
        behind = place + _HEADER_BYTES + data[place + 26]
        place = data.find(_MAGIC, behind + sum(data[place + _HEADER_BYTES : behind]))
    return num
