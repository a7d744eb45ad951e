"""PNG, TIFF and PGM files, byte by byte: depths and layouts that Pillow does not write."""

import struct
import zlib

import numpy as np

MIN_IS_WHITE, MIN_IS_BLACK, RGB = 0, 1, 2
UNSIGNED, SIGNED, REAL = 1, 2, 3


def png(pixels: np.ndarray, bits: int, color_type: int = 0, transparent: tuple = ()) -> bytes:
    """A PNG of integers `[height, width]` (grey) or `[height, width, 3]` (`color_type` 2)."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + _packed(row, bits, ">") for row in pixels)
    clear = _chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + (clear if transparent else b"")
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )


def tiff(
    pixels: np.ndarray,
    bits: int,
    photometric: int = MIN_IS_BLACK,
    *,
    planes: bool = False,
    kind: int = UNSIGNED,
) -> bytes:
    """An uncompressed TIFF of `[height, width]` or `[height, width, samples]`."""
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    parts = [pixels[..., sample] for sample in range(samples)] if planes else [pixels]
    strips = [b"".join(_packed(row, bits, "<", kind) for row in part) for part in parts]
    strips = [strip + b"\0" * (len(strip) % 2) for strip in strips]
    starts = 8 + np.cumsum([0, *map(len, strips)])
    tags: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [bits] * samples),
        (259, "H", [1]),
        (262, "H", [photometric]),
        (273, "I", starts[:-1].tolist()),
        (277, "H", [samples]),
        (278, "I", [height]),
        (279, "I", [len(strip) for strip in strips]),
        (284, "H", [2 if planes else 1]),
        (339, "H", [kind] * samples),
    ]
    directory, more = struct.pack("<H", len(tags)), b""
    after = int(starts[-1]) + 2 + 12 * len(tags) + 4
    for number, code, values in tags:
        field = struct.pack(f"<{len(values)}{code}", *values)
        if len(field) > 4:
            field, more = struct.pack("<I", after + len(more)), more + field
        entry = struct.pack("<HHI", number, {"H": 3, "I": 4}[code], len(values))
        directory += entry + field.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", int(starts[-1]))
    return head + b"".join(strips) + directory + bytes(4) + more


def pgm(pixels: np.ndarray, most: int, *, text: bool = False) -> bytes:
    """A PGM of integers `[height, width]` from 0 to `most`."""
    height, width = pixels.shape
    head = f"P{2 if text else 5}\n{width} {height}\n{most}\n".encode()
    if text:
        return head + b" ".join(b"%d" % value for value in pixels.ravel().tolist()) + b"\n"
    return head + pixels.astype(">u2" if most > 255 else "u1").tobytes()


def _packed(row: np.ndarray, bits: int, order: str, kind: int = UNSIGNED) -> bytes:
    """A row's numbers; below 8 bits several to a byte, the first in the highest bits."""
    if bits >= 8:
        code = {UNSIGNED: "u", SIGNED: "i", REAL: "f"}[kind]
        return row.astype(f"{order}{code}{bits // 8}").tobytes()
    each = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
    return np.packbits(each.ravel()).tobytes()


def _chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
