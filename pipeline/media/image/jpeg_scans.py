"""Check that the scans of a JPEG (ITU T.81, B.2.3) contain every coefficient to its last bit."""

import re

_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
"""Frame markers: baseline, extended and progressive, with Huffman or arithmetic coding."""
_SCAN, _END = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
"""In coded data, 0xFF is followed by 0 or by the number of a restart marker."""
_NUM_COEFFICIENTS = 64


def missing_scans(data: bytes | memoryview) -> str | None:
    """Return what is missing in an image with several scans, as a reason, or None.

    If the last scans are missing, libjpeg returns a blurred or grey image without a warning.
    """
    data = bytes(data)
    # The lowest bit so far, by component and coefficient.
    bits: dict[int, list[int | None]] = {}
    offset = 2
    while (marker := _MARKER.search(data, offset)) is not None:
        kind, start = data[marker.start(1)], marker.end()
        if kind == _END:
            break
        length = int.from_bytes(data[start : start + 2], "big")
        content = data[start + 2 : start + length]
        offset = start + length
        if kind in _FRAMES and len(content) >= 6:
            bits = {component: [None] * _NUM_COEFFICIENTS for component in content[6::3]}
        elif kind == _SCAN and content:
            count = content[0]
            components = content[1 : 1 + 2 * count : 2]
            if count == len(bits) and kind == _SCAN and content[-3:] == b"\0\x3f\0":
                return None  # one scan contains the whole image
            first, last, low = content[-3], content[-2], content[-1] & 15
            for component in components:
                for coefficient in range(first, min(last, _NUM_COEFFICIENTS - 1) + 1):
                    if component in bits:
                        bits[component][coefficient] = low
    whole = sum(all(bit == 0 for bit in each) for each in bits.values())
    if whole == len(bits):
        return None
    return f"cut short: {whole} of its {len(bits)} colour components are whole, scans are missing"
