"""The frames of an MPEG audio file: how many its table declares, and how many it holds."""

from dataclasses import dataclass

from pipeline.media.audio.tags import after_id3, after_tag, before_tags

_TABLE_WITHIN = 200
"""The number of bytes at the start of the first frame that hold a table's name."""
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_FIRST, _LATER = True, False
"""MPEG-1, and MPEG-2 and 2.5, which have other bit rates."""
_KBITS = {
    (_FIRST, 3): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (_FIRST, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (_FIRST, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (_LATER, 3): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (_LATER, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (_LATER, 1): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""The bit rates by the header's two layer bits: 3 is layer I, 2 is layer II, 1 is layer III."""
MIN_GAP = 2
"""The fewest bytes between two frames that count as damage: some encoders leave one byte."""


@dataclass
class Frames:
    """What the headers of a file's frames say (ISO 11172-3, 2.4.2.3).

    Attributes:
        num: The number of frames, without the one that holds a table of contents.
        samples: The number of samples of each channel in these frames.
        declared: The number of frames that the table declares; None if there is no table, or if it
            does not say.
        has_table: Whether the first frame holds a table.
        gap: The number of frames before the first bytes that belong to no frame; None if there are
            no such bytes.
        gap_bytes: The number of these bytes.
        lacking: The number of bytes that are missing from the last frame or its header; 0 if it is
            whole.
    """

    num: int = 0
    samples: int = 0
    declared: int | None = None
    has_table: bool = False
    gap: int | None = None
    gap_bytes: int = 0
    lacking: int = 0

    @property
    def shortage(self) -> str | None:
        """The reason that says what is missing or damaged; None if nothing is.

        A table may also count its own frame, so one frame fewer is accepted.
        """
        if self.declared is not None and self.num < self.declared - 1:
            return f"cut short: {self.num} of {self.declared} frames are there"
        if self.gap is not None:
            return f"damaged: {self.gap_bytes} bytes after its {self.gap} first frames are no frame"
        if self.lacking and (self.declared is None or self.num < self.declared):
            return f"cut short: its frame {self.num + 1} lacks {self.lacking} bytes"
        return None


def find_frames(data: bytes) -> Frames:
    """Walk through the frames of layers I to III. Other files give no frames."""
    found = Frames()
    end = before_tags(data)
    offset = _first_frame(data, after_id3(data), end)
    kind: tuple[int, int] | None = None
    while offset is not None and offset + 4 <= end:
        frame = _frame(data, offset)
        if frame is None or (kind is not None and frame.kind != kind):
            behind = after_tag(data, offset)
            if behind == offset:
                behind = _next_frame(data, offset, end, kind)
                if found.gap is None and (behind < end or found.declared is None):
                    found.gap, found.gap_bytes = found.num, behind - offset
                    if found.gap_bytes < MIN_GAP:
                        found.gap = None
            offset = behind
            continue
        if kind is None:
            kind = frame.kind
            found.has_table, found.declared = _table(data, offset)
            if found.has_table:
                offset += frame.size
                continue
        if offset + frame.size > end:
            found.lacking = offset + frame.size - end
            break
        found.num += 1
        found.samples += frame.samples
        offset += frame.size
    if offset is not None and end - 4 < offset < end and data[offset] == 0xFF:
        found.lacking = offset + 4 - end
    return found


@dataclass(frozen=True)
class _Frame:
    size: int
    samples: int
    kind: tuple[int, int]


def _first_frame(data: bytes, offset: int, end: int) -> int | None:
    """Return the offset of the first frame that another follows or that is the last, or None."""
    while 0 <= offset <= end - 4:
        frame = _frame(data, offset)
        if frame is not None:
            behind = offset + frame.size
            following = _frame(data, behind)
            if behind >= end - 4 or (following is not None and following.kind == frame.kind):
                return offset
        offset = data.find(b"\xff", offset + 1, end)
    return None


def _next_frame(data: bytes, offset: int, end: int, kind: tuple[int, int] | None) -> int:
    """Return the offset where frames of this kind continue, or `end` if there are no more."""
    while True:
        found = _first_frame(data, offset + 1, end)
        if found is None:
            return end
        frame = _frame(data, found)
        assert frame is not None
        if kind is None or frame.kind == kind:
            return found
        offset = found


def _table(data: bytes, offset: int) -> tuple[bool, int | None]:
    """Return whether the frame holds a table, and the number of frames that it declares.

    The table may be Xing's, LAME's or Fraunhofer's.
    """
    head = data[offset : offset + _TABLE_WITHIN]
    for name in (b"Xing", b"Info"):
        if (start := head.find(name)) >= 0:
            has_count = head[start + 7 : start + 8] not in (b"", b"\0") and head[start + 7] & 1
            count = int.from_bytes(head[start + 8 : start + 12], "big") if has_count else 0
            return True, count or None
    if (start := head.find(b"VBRI")) >= 0:
        return True, int.from_bytes(head[start + 14 : start + 18], "big") or None
    return False, None


def _frame(data: bytes, offset: int) -> _Frame | None:
    """Return the frame whose header begins at `offset`; None if there is no header."""
    header = data[offset : offset + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bits, rate = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 0 or bits in (0, 15) or rate == 3:
        return None
    is_first, hertz = version == 3, _RATES[version][rate]
    padding = header[2] >> 1 & 1
    bits_per_second = _KBITS[is_first, layer][bits] * 1000
    samples = 384 if layer == 3 else 576 if layer == 1 and not is_first else 1152
    if layer == 3:
        size = (12 * bits_per_second // hertz + padding) * 4
    else:
        size = samples // 8 * bits_per_second // hertz + padding
    return _Frame(size, samples, (header[1] & 0xFE, hertz))
