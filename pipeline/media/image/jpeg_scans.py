"""The scans of a JPEG (ITU T.81, B.2.3): whether they hold every coefficient to its last bit."""

import re

_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
"""Markers of frames: baseline, extended and progressive, by Huffman's and by arithmetic codes."""
_SCAN, _END = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
"""Within coded data, 0xFF is followed by 0 or the number of a restart."""
_NUM_COEFFICIENTS = 64


def missing_scans(data: bytes | memoryview) -> str | None:
    """What is missing of an image that comes in several scans, as a reason; None for nothing.

    libjpeg makes a blurred or grey picture of a file without its last scans, and doesn't warn.
    """
    data = bytes(data)
    # The lowest bit sent so far, by component and coefficient.
    bits: dict[int, list[int | None]] = {}
    place = 2
    while (marker := _MARKER.search(data, place)) is not None:
        kind, start = data[marker.start(1)], marker.end()
        if kind == _END:
            break
        length = int.from_bytes(data[start : start + 2], "big")
        content = data[start + 2 : start + length]
        place = start + length
        if kind in _FRAMES and len(content) >= 6:
            bits = {component: [None] * _NUM_COEFFICIENTS for component in content[6::3]}
        elif kind == _SCAN and content:
            count = content[0]
            components = content[1 : 1 + 2 * count : 2]
            if count == len(bits) and kind == _SCAN and content[-3:] == b"\0\x3f\0":
                return None  # all of it in one scan
            first, last, low = content[-3], content[-2], content[-1] & 15
            for component in components:
                for coefficient in range(first, min(last, _NUM_COEFFICIENTS - 1) + 1):
                    if component in bits:
                        bits[component][coefficient] = low
    whole = sum(all(bit == 0 for bit in each) for each in bits.values())
    if whole == len(bits):
        return None
    return f"cut short: {whole} of its {len(bits)} colour components are whole, scans are missing"
