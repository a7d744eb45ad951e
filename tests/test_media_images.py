"""Image files of every kind to uint8 arrays of one size."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import png_chunk
from photos import encoded, mean_difference, stored_turned
from PIL import Image
from raster_bytes import MIN_IS_WHITE, REAL, RGB, SIGNED, png, tiff
from small_media import refusal

from pipeline.media import ImageFormat, MediaError, decode, media_from_dict, media_to_dict
from pipeline.media.image.decode import encode_jpeg

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
LOSSLESS = [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PPM", {})]


def exactly(image: Image.Image, channels: int = 3, **options) -> ImageFormat:
    """The format that keeps an image's own size."""
    return ImageFormat(height=image.height, width=image.width, channels=channels, **options)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def quadrants(height: int = 32, width: int = 48) -> Image.Image:
    """Four colours, so that no turn or mirror image of it is itself."""
    image = Image.new("RGB", (width, height), WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header is sound and whose pixels are missing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + pixels


# --- formats and modes ---


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_lossless_files_give_their_very_pixels(kind, options):
    image = noise(12, 9)
    assert np.array_equal(decode(encoded(image, kind, **options), exactly(image)), image)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_lossy_files_give_nearly_their_pixels(kind):
    image = quadrants()
    assert mean_difference(decode(encoded(image, kind), exactly(image)), image) < 8


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (6, 4), color) for color in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.array_equal(decode(data, exactly(frames[0])), frames[0])


def test_grey_and_colour_go_both_ways():
    grey = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    as_color = decode(encoded(grey, "PNG"), exactly(grey))
    assert np.array_equal(as_color, np.stack([np.asarray(grey)] * 3, axis=-1))
    as_grey = decode(
        encoded(Image.new("RGB", (2, 2), GREEN), "PNG"), ImageFormat(height=2, width=2, channels=1)
    )
    assert as_grey.shape == (2, 2, 1)
    assert set(as_grey.flat) == {150}  # 0.587 x 255: luma, not the mean of the channels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(kind, orientation):
    upright = quadrants()
    pixels = decode(stored_turned(upright, orientation, kind), exactly(upright))
    assert mean_difference(pixels, upright) < 8


@pytest.mark.parametrize(
    ("mode", "color", "seen"),
    [
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("LA", (0, 0), WHITE),
        ("LA", (100, 255), (100, 100, 100)),
    ],
)
def test_alpha_is_laid_over_white(mode, color, seen):
    image = Image.new(mode, (3, 2), color)
    pixels = decode(encoded(image, "PNG"), exactly(image))
    assert np.array_equal(pixels, np.broadcast_to(np.uint8(seen), (2, 3, 3)))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *GREEN])
    image.putpixel((0, 0), 1)
    pixels = decode(encoded(image, kind, transparency=0), exactly(image))
    assert tuple(pixels[0, 0]) == GREEN
    assert (pixels.reshape(-1, 3)[1:] == WHITE).all()
    opaque = decode(encoded(image, kind), exactly(image))
    assert tuple(opaque[1, 1]) == RED


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_to_eight(kind):
    image = Image.fromarray(np.array([[0, 255, 256, 0x8000, 0xFFFF]], dtype=np.uint16))
    assert decode(encoded(image, kind), exactly(image, 1)).ravel().tolist() == [0, 0, 1, 128, 255]


def test_grey_tiffs_where_0_is_white_are_turned_round():
    values = np.array([[0, 255, 256, 0x8000, 0xFFFF]])
    for bits, most in ((16, 0xFFFF), (8, 255), (4, 15), (2, 3), (1, 1)):
        given = values * most // 0xFFFF
        image = decode(tiff(given, bits, MIN_IS_WHITE), ROW)
        assert np.array_equal(image.ravel(), 255 - decode(tiff(given, bits), ROW).ravel())
        assert image.ravel()[0] == 255 and image.ravel()[-1] == 0


ROW = ImageFormat(height=1, width=5, channels=1)


def test_pixels_that_pillow_would_misread_are_refused():
    grey = np.arange(5)[None]
    colors = np.arange(15).reshape(1, 5, 3) * 4000
    whole = "whose range nothing tells; save it with 8 or 16 bits"
    for data, told in [
        (tiff(grey, 32), f"TIFF of 32-bit or signed integers, {whole}"),
        (tiff(grey, 32, kind=SIGNED), f"TIFF of 32-bit or signed integers, {whole}"),
        (tiff(grey, 16, kind=SIGNED), f"TIFF of 32-bit or signed integers, {whole}"),
        (tiff(grey, 32, MIN_IS_WHITE, kind=REAL), "a TIFF of real numbers where 0 is white"),
        (tiff(colors, 16, RGB, planes=True), "a TIFF of 16-bit colours in planes"),
        (png(colors, 16, 2, (0, 4000, 8000)), "a PNG of 16-bit colours, one of them transparent"),
    ]:
        assert refusal(decode, data, ROW).startswith(told)
    exact = ImageFormat(height=1, width=5)
    assert np.array_equal(decode(tiff(colors, 16, RGB), exact), colors >> 8)
    assert np.array_equal(decode(png(colors, 16, 2), exact), colors >> 8)
    assert np.array_equal(decode(tiff(colors >> 8, 8, RGB, planes=True), exact), colors >> 8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_in_every_depth(bits):
    most = 2**bits - 1
    values = np.array([[0, 1, most, most // 2, 1]])
    seen = decode(png(values, bits, transparent=(1,)), ROW).ravel()
    opaque = decode(png(values, bits), ROW).ravel()
    assert np.array_equal(seen, np.where(values.ravel() == 1, 255, opaque))


def test_lab_becomes_grey_as_rgb_does():
    image = Image.new("RGB", (5, 1), (200, 40, 90)).convert("LAB")
    data = encoded(image, "TIFF")
    grey = Image.fromarray(decode(data, exactly(image))).convert("L")
    assert np.array_equal(decode(data, exactly(image, 1))[..., 0], grey)


@pytest.mark.parametrize(
    ("values", "pixels"),
    [([0.0, 0.5, 1.0, -1.0], [0, 127, 255, 0]), ([0.0, 0.5, 200.0, 300.0], [0, 0, 200, 255])],
)
def test_floating_pixels_span_1_or_255(values, pixels):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert decode(encoded(image, "TIFF"), exactly(image, 1)).ravel().tolist() == pixels


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floating_pixels_must_be_finite(value):
    image = Image.fromarray(np.array([[0.0, value]], dtype=np.float32))
    with pytest.raises(MediaError, match="not finite"):
        decode(encoded(image, "TIFF"), exactly(image, 1))


@pytest.mark.parametrize(("ink", "seen"), [((0, 255, 255, 0), RED), ((0, 0, 0, 0), WHITE)])
def test_a_cmyk_jpeg_becomes_rgb(ink, seen):
    image = Image.new("CMYK", (16, 16), ink)
    assert np.abs(decode(encoded(image, "JPEG"), exactly(image)).astype(int) - seen).max() <= 3


def test_one_bit_pixels_are_black_and_white():
    image = Image.fromarray(np.array([[True, False, True]]))
    assert decode(encoded(image, "PNG"), exactly(image, 1)).ravel().tolist() == [255, 0, 255]


# --- geometry ---


def bands() -> Image.Image:
    """40 wide, 20 high: 10 columns red, 20 green, 10 blue."""
    image = Image.new("RGB", (40, 20), GREEN)
    image.paste(RED, (0, 0, 10, 20))
    image.paste(BLUE, (30, 0, 40, 20))
    return image


def test_crop_cuts_the_centre():
    fmt = ImageFormat(height=20, width=20, resize="crop")
    pixels = decode(encoded(bands(), "PNG"), fmt)
    assert np.array_equal(pixels, np.broadcast_to(np.uint8(GREEN), (20, 20, 3)))


def test_crop_scales_the_shorter_side():
    pixels = decode(encoded(bands(), "PNG"), ImageFormat(height=10, width=20, resize="crop"))
    assert [tuple(pixels[5, column]) for column in (1, 10, 18)] == [RED, GREEN, BLUE]


def test_pad_keeps_everything_between_black_bars():
    pixels = decode(encoded(bands(), "PNG"), ImageFormat(height=40, width=40, resize="pad"))
    assert not pixels[:10].any() and not pixels[30:].any()
    assert np.array_equal(pixels[10:30], bands())
    tall = bands().transpose(Image.Transpose.ROTATE_90)
    pixels = decode(encoded(tall, "PNG"), ImageFormat(height=40, width=40, resize="pad"))
    assert not pixels[:, :10].any() and np.array_equal(pixels[:, 10:30], tall)


def test_stretch_fills_and_ignores_the_aspect():
    pixels = decode(encoded(bands(), "PNG"), ImageFormat(height=20, width=20, resize="stretch"))
    row = [tuple(pixels[10, column]) for column in (1, 8, 11, 18)]
    assert row == [RED, GREEN, GREEN, BLUE]


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 700), (700, 1), (1, 1), (3, 5)])
def test_extreme_aspects_and_tiny_images_fit(resize, size):
    fmt = ImageFormat(height=8, width=6, channels=1, resize=resize)
    assert decode(encoded(Image.new("L", size, 9), "PNG"), fmt).max() == 9


def test_a_huge_jpeg_shrinks_to_what_a_full_decode_gives():
    y, x = np.mgrid[0:600, 0:900]
    image = Image.fromarray(np.stack([x * 255 // 900, y * 255 // 600, x * 0], -1).astype(np.uint8))
    data = encoded(image, "JPEG", quality=95)
    pixels = decode(data, ImageFormat(height=12, width=18)).astype(int)
    whole = np.asarray(Image.open(io.BytesIO(data)).resize((18, 12), Image.Resampling.BOX))
    assert np.abs(pixels - whole.astype(int)).max() < 12


@settings(max_examples=40, deadline=None)
@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    resize=st.sampled_from(["crop", "pad", "stretch"]),
    kind=st.sampled_from(["PNG", "JPEG", "BMP"]),
)
def test_the_array_always_has_the_formats_shape(source, height, width, channels, resize, kind):
    fmt = ImageFormat(height=height, width=width, channels=channels, resize=resize)
    pixels = decode(encoded(noise(*source), kind), fmt)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (height, width, channels))


# --- refusals ---


@pytest.mark.parametrize("share", [0.03, 0.2, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_truncated_file_is_refused(kind, share):
    data = encoded(noise(40, 60), kind)
    with pytest.raises(MediaError, match=r"\w{3}"):
        decode(data[: int(len(data) * share)], ImageFormat(height=8, width=8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"Dear sir,\nno image here.\n" * 30, "no image format that Pillow knows"),
        (np.random.default_rng(0).bytes(2000), "no image format that Pillow knows"),
        (b"\x89PNG\r\n\x1a\n", r"\w"),
        (b"\xff\xd8\xff\xe0", r"\w"),
    ],
)
def test_what_is_no_image_is_refused_whatever_its_name(data, reason):
    with pytest.raises(MediaError, match=f"^{reason}") as caught:
        decode(data, ImageFormat(height=8, width=8), name="cat/portrait.png")
    assert "\n" not in str(caught.value) and " at 0x" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
def test_damage_gives_an_array_of_the_right_shape_or_a_reason(data, kind):
    damaged = bytearray(encoded(noise(16, 16), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(damaged), ImageFormat(height=8, width=8, max_pixels=1_000_000))
    except MediaError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert (pixels.dtype, pixels.shape) == (np.uint8, (8, 8, 3))


def test_too_many_pixels_are_refused_by_the_header_alone():
    fmt = ImageFormat(height=8, width=8)
    reason = "^10001x10000 pixels, more than max_pixels=100000000$"
    with pytest.raises(MediaError, match=reason):
        decode(png_claiming(10_001, 10_000), fmt)
    with pytest.raises(MediaError, match="pixels"):
        decode(png_claiming(100_000, 100_000), fmt)
    with pytest.raises(MediaError, match="cut short"):  # few enough: the missing pixels are noticed
        decode(png_claiming(100, 100), fmt)


def test_max_pixels_is_the_last_number_allowed():
    data = encoded(noise(40, 60), "PNG")
    assert decode(data, ImageFormat(height=8, width=8, max_pixels=2400)).any()
    with pytest.raises(MediaError, match="60x40 pixels, more than max_pixels=2399"):
        decode(data, ImageFormat(height=8, width=8, max_pixels=2399))


@pytest.mark.parametrize(
    ("field", "value"), [("height", 0), ("width", -1), ("max_pixels", 0), ("jpeg_quality", 101)]
)
def test_a_format_refuses_what_cannot_be(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}; must"):
        ImageFormat(**{"height": 8, "width": 8, field: value})


# --- shards' side ---


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_survive_a_shards_jpeg_nearly(channels):
    pixels = np.asarray(quadrants())[..., :channels]
    fmt = ImageFormat(height=32, width=48, channels=channels, encoding="jpeg")
    again = decode(encode_jpeg(pixels, fmt.jpeg_quality), fmt)
    assert again.shape == pixels.shape
    assert mean_difference(again, pixels) < 8
    assert len(encode_jpeg(pixels, 30)) < len(encode_jpeg(pixels, 95))
    assert (fmt.member, exactly(quadrants()).member) == ("image.jpg", "image.npy")


def test_a_format_survives_json():
    fmt = ImageFormat(height=3, width=5, channels=1, resize="pad", encoding="jpeg", max_pixels=99)
    assert media_to_dict(fmt)["modality"] == "image"
    assert media_from_dict(media_to_dict(fmt)) == fmt


# Height and width of an image, then of the array: a column of the result meets a pixel's centre.
MEETING = [
    (32, 101, 36, 64), (13, 534, 208, 17), (192, 607, 200, 176), (40, 128, 136, 256),
    (96, 105, 168, 120), (64, 101, 160, 96), (3, 24, 23, 24),
]  # fmt: skip


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("rows", "columns", "height", "width"), MEETING)
def test_enlarged_crops_whose_ends_meet_pixels(rows, columns, height, width, turned):
    y, x = np.mgrid[0:rows, 0:columns]
    pixels = (127 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7)).astype(np.uint8)
    if turned:
        pixels, height, width = pixels.T.copy(), width, height
    found = decode(
        encoded(Image.fromarray(pixels), "PNG"), ImageFormat(height=height, width=width, channels=1)
    )
    rows, columns = pixels.shape
    scale = min(rows / height, columns / width)
    left, top = (columns - scale * width) / 2, (rows - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    wanted = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, box)
    assert np.abs(found[..., 0].astype(int) - np.asarray(wanted)).max() <= 2
