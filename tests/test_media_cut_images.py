"""Images that are cut short or damaged, and whole ones that only look so."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from malformed import png_chunk
from photos import encoded
from PIL import Image
from small_media import refusal

from pipeline.media import ImageFormat, MediaError, VideoFormat, decode

FORMAT = ImageFormat(height=60, width=80)
NOISE = np.random.default_rng(0).normal(0, 12, (120, 160, 3))
ROWS, COLUMNS = np.mgrid[:120, :160]
PHOTO = Image.fromarray(
    np.clip(np.stack([COLUMNS, ROWS * 2, 255 - COLUMNS], -1) + NOISE, 0, 255).astype(np.uint8)
)


def told(data: bytes) -> str:
    return refusal(decode, data, FORMAT)


def same(data: bytes, other: bytes) -> bool:
    return np.array_equal(decode(data, FORMAT), decode(other, FORMAT))


JPEGS = {
    "baseline": encoded(PHOTO, "JPEG", quality=90),
    "progressive": encoded(PHOTO, "JPEG", quality=90, progressive=True),
    "grey": encoded(PHOTO.convert("L"), "JPEG"),
    "restarts": encoded(PHOTO, "JPEG", restart_marker_rows=1),
    "cmyk": encoded(PHOTO.convert("CMYK"), "JPEG"),
}


# --- JPEG ---


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_ends_early_is_refused(kind):
    whole = JPEGS[kind]
    decode(whole, FORMAT)
    assert told(whole[:-2]) == "cut short: libjpeg says: Premature end of JPEG file"
    assert told(whole[: len(whole) // 2]).startswith("cut short: libjpeg says:")
    with_end = whole[: len(whole) // 2] + b"\xff\xd9"
    assert re.match("damaged: libjpeg says: Corrupt JPEG data|cut short: ", told(with_end))
    assert decode(with_end, FORMAT, strict=False).shape == (60, 80, 3)


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_with_garbled_bytes_is_refused_where_libjpeg_notices(kind):
    whole, noticed = JPEGS[kind], 0
    rng = np.random.default_rng(1)
    for place in rng.integers(len(whole) // 3, len(whole) - 50, 20):
        garbled = bytearray(whole)
        garbled[place : place + 40] = bytes(byte ^ 0x55 for byte in whole[place : place + 40])
        try:
            decode(bytes(garbled), FORMAT)
        except MediaError:
            noticed += 1
    assert noticed >= 8


def test_bytes_before_the_end_of_a_jpeg_are_damage_and_zeros_are_not():
    whole = JPEGS["baseline"]
    assert "extraneous bytes before marker 0xd9" in told(whole[:-2] + b"\x37" * 40 + whole[-2:])
    for padding in (bytes(1), bytes(64), b"\xff" * 3):
        assert same(whole[:-2] + padding + whole[-2:], whole)


def test_what_follows_a_jpeg_is_no_matter():
    whole = JPEGS["baseline"]
    for tail in (b"junk" * 9, bytes(100), JPEGS["grey"], JPEGS["baseline"][:300]):
        assert same(whole + tail, whole)


@pytest.mark.parametrize("kept", [1, 3, 9])
def test_a_progressive_jpeg_without_its_last_scans_is_refused(kept):
    whole = JPEGS["progressive"]
    scans = [scan.start() for scan in re.finditer(b"\xff\xda", whole)]
    assert len(scans) == 10
    reason = told(whole[: scans[kept]] + b"\xff\xd9")
    assert re.match(r"cut short: \d of its 3 colour components are whole", reason)


# --- PNG ---


def test_a_png_without_its_end_or_with_a_wrong_checksum_is_refused():
    whole = encoded(PHOTO, "PNG")
    assert told(whole[:-12]) == "cut short: it ends after 2 chunks without IEND"
    assert told(whole[:-3]).startswith("cut short: ")
    assert told(whole[:5000]).startswith("cut short: its chunk 2, 'IDAT', lacks")
    for place in (len(whole) // 2, len(whole) - 14):
        garbled = bytearray(whole)
        garbled[place] ^= 4
        assert "checksum of its chunk" in told(bytes(garbled))
    text = bytearray(whole[:-12] + png_chunk(b"tEXt", b"Title\0photo") + whole[-12:])
    assert same(bytes(text), whole)
    text[-20] ^= 1
    assert told(bytes(text)) == "damaged: the checksum of its chunk 3, 'tEXt', is wrong"
    assert np.array_equal(decode(bytes(text), FORMAT, strict=False), decode(whole, FORMAT))


def test_what_follows_a_png_is_no_matter():
    whole = encoded(PHOTO, "PNG")
    assert same(whole + b"PK\3\4" + bytes(50), whole)


# --- GIF, TIFF and others ---


def test_a_gif_that_ends_within_a_block_is_refused_and_as_a_film_without_its_trailer():
    frames = [Image.fromarray(np.full((60, 80), level, np.uint8)) for level in (0, 90, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    whole = buffer.getvalue()
    decode(whole, FORMAT)
    for end in (len(whole) - 2, len(whole) * 2 // 3):
        assert told(whole[:end]).endswith("without a GIF's trailer")
    for tail in (b"", b"\0", bytes(4) + b"\x3b", b"\x3b" + bytes(7)):
        assert same(whole[:-1] + tail, whole)
    film = VideoFormat(num_frames=1, height=60, width=80)
    decode(whole, film)
    assert refusal(decode, whole[:-1], film).endswith("without a GIF's trailer")


def test_a_tiff_that_lacks_strips_is_refused():
    whole = encoded(PHOTO, "TIFF")
    assert same(whole, encoded(PHOTO, "PNG"))
    # Rows in a strip, 120, become 20: of six strips there is one, and Pillow leaves the rest black.
    rows = struct.pack("<HHI", 278, 4, 1)
    place = whole.index(rows) + len(rows)
    lacking = whole[:place] + struct.pack("<I", 20) + whole[place + 4 :]
    assert told(lacking) == "cut short: 1 of 6 strips are there"


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "jpeg"])
def test_a_tiff_with_garbled_strips_is_refused(compression):
    whole = encoded(PHOTO.convert("L"), "TIFF", compression=compression)
    decode(whole, FORMAT)
    noticed = 0
    for start in range(len(whole) // 4, len(whole) * 3 // 4, len(whole) // 20):
        piece = bytes(byte ^ 0x55 for byte in whole[start : start + 40])
        try:
            decode(whole[:start] + piece + whole[start + 40 :], FORMAT)
        except MediaError:
            noticed += 1
    assert noticed >= 4


def test_a_deflate_strip_whose_checksum_alone_is_wrong_is_refused():
    whole = encoded(PHOTO.convert("L"), "TIFF", compression="tiff_adobe_deflate")
    strip = zlib.decompressobj()
    start = whole.index(b"\x78")
    strip.decompress(whole[start:])
    end = len(whole) - len(strip.unused_data)
    garbled = bytearray(whole)
    garbled[end - 1] ^= 1
    assert told(bytes(garbled)) == "damaged: its strip 1 of 1"


def test_a_pcx_without_its_palette_and_a_qoi_without_its_end_are_refused():
    pcx = encoded(PHOTO.convert("P"), "PCX")
    decode(pcx, FORMAT)
    assert told(pcx[:-60]) == "cut short: its palette of 256 colours is missing"
    qoi = encoded(PHOTO, "QOI")
    decode(qoi, FORMAT)
    assert told(qoi[:-3]) == "cut short: the mark of a QOI's end is missing"
