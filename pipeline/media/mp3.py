"""The length of an MP3 without a table of contents, from the headers of its frames."""

TABLES = (b"Xing", b"Info", b"VBRI")
_TABLE_WITHIN = 200
"""Bytes of the first frame in which a table's name lies."""
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def untold_samples(data: bytes) -> int:
    """Samples for each channel in the frames of an MP3 whose first frame tells no length.

    libsndfile guesses the length of such a file from its first frames' bit rate, and stops there.
    MPEG-1, 2 and 2.5, layer III (ISO 11172-3, 2.4.2.3).

    Returns:
        0 where the first frame holds a table, or no frame is found.
    """
    place = _behind_id3(data)
    samples = 0
    while place + 4 <= len(data):
        frame = _frame(data[place : place + 4])
        if frame is None:
            if samples:
                break
            place = data.find(b"\xff", place + 1)
            if place < 0:
                break
            continue
        size, length = frame
        if not samples and any(name in data[place : place + _TABLE_WITHIN] for name in TABLES):
            return 0
        samples += length
        place += size
    return samples


def _behind_id3(data: bytes) -> int:
    """Where the sound begins: tags in front of it tell their sizes, 7 bits a byte."""
    place = 0
    while data[place : place + 3] == b"ID3" and len(data) >= place + 10:
        a, b, c, d = data[place + 6 : place + 10]
        place += 10 + (a << 21 | b << 14 | c << 7 | d)
    return place


def _frame(header: bytes) -> tuple[int, int] | None:
    """Bytes and samples of the frame with this header; None where it is none."""
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bits, rate = header[2] >> 4, header[2] >> 2 & 3
    if header[0] != 0xFF or header[1] < 0xE0 or version == 1 or layer != 1:
        return None
    if bits in (0, 15) or rate == 3:
        return None
    is_first = version == 3
    samples = 1152 if is_first else 576
    padding = header[2] >> 1 & 1
    return samples // 8 * _KBITS[is_first][bits] * 1000 // _RATES[version][rate] + padding, samples
