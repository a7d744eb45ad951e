"""Masks keep the numbers of their files, and lie over their images."""

import numpy as np
import pytest
from photos import encoded
from PIL import Image
from raster_bytes import MIN_IS_WHITE, pgm, png, tiff
from small_media import refusal

from pipeline.media import ImageFormat
from pipeline.media.image.masks import UNLABELLED, decode_mask

SQUARE = ImageFormat(height=16, width=16)
RNG = np.random.default_rng(0)


def numbers(most: int) -> np.ndarray:
    """16 x 16 numbers, all from 0 to `most` as often as they fit, in disorder."""
    return RNG.permutation(np.resize(np.arange(most, -1, -1), 256)).reshape(16, 16)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_files_of_any_depth_keep_their_numbers(bits):
    values = numbers(2**bits - 1)
    palette = b"".join(bytes([index, 0, 255 - index]) for index in range(2**bits))
    indexed = Image.fromarray(values.astype(np.uint8))
    indexed.putpalette(palette)
    files = {
        "PNG": png(values, bits),
        "indexed PNG": encoded(indexed, "PNG", bits=bits),
        "TIFF": tiff(values, bits),
        "TIFF, 0 is white": tiff(values, bits, MIN_IS_WHITE),
        "GIF": encoded(indexed, "GIF"),
        "indexed TIFF": encoded(indexed, "TIFF"),
        "BMP": encoded(indexed, "BMP"),
    }
    for name, data in files.items():
        assert np.array_equal(decode_mask(data, SQUARE), values), name


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd"])
def test_compressed_tiffs_keep_their_numbers(compression):
    values = numbers(255)
    for mode in ("L", "P", "1"):
        image = Image.fromarray(values.astype(np.uint8))
        image = {"L": image, "P": image.copy(), "1": image.point(lambda v: v & 1, "1")}[mode]
        if mode == "P":
            image.putpalette(RNG.bytes(768))
        found = decode_mask(encoded(image, "TIFF", compression=compression), SQUARE)
        assert np.array_equal(found, np.asarray(image).astype(np.uint8)), mode


@pytest.mark.parametrize("most", [1, 2, 20, 100, 254, 255])
@pytest.mark.parametrize("text", [False, True])
def test_pgms_of_any_maximum_keep_their_numbers(most, text):
    values = numbers(most)
    assert np.array_equal(decode_mask(pgm(values, most, text=text), SQUARE), values)


def test_formats_that_keep_no_numbers_are_refused():
    image = Image.fromarray(numbers(255).astype(np.uint8))
    told = {
        "JPEG": "mask: JPEG need not keep values as they are; save it as PNG",
        "JPEG2000": "mask: JPEG2000 need not keep values as they are; save it as PNG",
        "PPM": "mask: PBM, where 1 is black and 0 white; save it as PNG",
        "WEBP": "mask: mode RGB; it must have one channel of at most 8 bits",
    }
    for kind, reason in told.items():
        each = image.convert("1") if kind == "PPM" else image
        assert refusal(decode_mask, encoded(each, kind), SQUARE) == reason
    lossy = encoded(image, "TIFF", compression="jpeg")
    assert refusal(decode_mask, lossy, SQUARE).startswith("mask: TIFF need not keep values")


def test_damage_and_bombs_are_told_as_those_of_images():
    whole = png(numbers(255), 8)
    assert refusal(decode_mask, whole[:60], SQUARE).startswith("mask: cut short: its chunk 2")
    told = refusal(decode_mask, pgm(np.zeros((1, 1)), 255).replace(b"1 1", b"99999 99999"), SQUARE)
    assert told == "mask: 9999800001 pixels, more than max_pixels=100000000"
    assert refusal(decode_mask, b"", SQUARE) == "mask: the file is empty"


# --- over images ---


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_mask_has_the_shape_of_its_image_as_it_is_seen(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = encoded(Image.new("RGB", (60, 40)), kind, exif=exif)
    fmt = ImageFormat(height=8, width=8, resize="crop")
    turned = orientation >= 5
    for scale in (0.5, 1, 1.33):
        height, width = (round(scale * side) for side in ((60, 40) if turned else (40, 60)))
        mask = encoded(Image.new("L", (width, height), 3), "PNG")
        assert (decode_mask(mask, fmt, image=picture) == 3).all()
        other = encoded(Image.new("L", (height, width), 3), "PNG")
        shape = "40x60" if turned else "60x40"
        assert refusal(decode_mask, other, fmt, image=picture) == (
            f"mask: {height}x{width} pixels are of another shape than its image's {shape}"
        )
        stretched = ImageFormat(height=8, width=8, resize="stretch")
        assert (decode_mask(other, stretched, image=picture) == 3).all()


def test_a_mask_scaled_with_any_rounding_has_its_images_shape():
    fmt = ImageFormat(height=4, width=4, resize="pad")
    for _ in range(200):
        width, height = RNG.integers(20, 700, 2).tolist()
        picture = png(np.zeros((height, width)), 1)
        scale = RNG.uniform(0.05, 1)
        for rounding in (np.floor, np.ceil, np.round):
            size = [max(1, int(rounding(scale * side))) for side in (width, height)]
            mask = decode_mask(png(np.ones(size[::-1]), 1), fmt, image=picture)
            # Padded like its image: the longer side is full, and only the border is unlabelled.
            assert (mask == 1).any(axis=0).all() or (mask == 1).any(axis=1).all()
            assert set(mask.ravel().tolist()) <= {1, UNLABELLED}


def test_a_mask_that_is_off_by_more_than_rounding_is_refused():
    fmt = ImageFormat(height=4, width=4, resize="pad")
    picture = png(np.zeros((400, 600)), 1)
    for height, width in ((201, 300), (200, 301), (199, 300), (40, 61)):
        decode_mask(png(np.zeros((height, width)), 1), fmt, image=picture)
    for height, width in ((202, 300), (200, 303), (198, 300), (40, 63)):
        refused = refusal(decode_mask, png(np.zeros((height, width)), 1), fmt, image=picture)
        assert refused == (
            f"mask: {width}x{height} pixels are of another shape than its image's 600x400"
        )


def test_a_masks_own_orientation_counts():
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(values).transpose(Image.Transpose.ROTATE_90)
    picture = encoded(Image.new("RGB", (8, 6)), "PNG")
    fmt = ImageFormat(height=6, width=8)
    for kind in ("PNG", "TIFF"):
        mask = encoded(stored, kind, exif=exif)
        assert np.array_equal(decode_mask(mask, fmt, image=picture), values)
