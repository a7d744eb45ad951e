"""JPEGs by libjpeg-turbo: as good as Pillow's, at any scale, and random parts of them."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import encoded, mean_difference, photo, photo_jpeg, stored_turned
from PIL import Image, ImageOps

from pipeline.media import ImageFormat, MediaError, decode
from pipeline.media.image.jpeg import draw_part, random_resized_crop, resized_crop
from pipeline.media.image.pillow import decode_pixels
from pipeline.media.image.turbo import decode_jpeg, read_header

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def by_pillow(image: Image.Image, fmt: ImageFormat) -> Image.Image:
    size = (fmt.width, fmt.height)
    if fmt.resize == "stretch":
        return image.resize(size, BICUBIC)
    return (ImageOps.fit if fmt.resize == "crop" else ImageOps.pad)(image, size, BICUBIC)


# --- whole images ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"quality": 30},
        {"optimize": True, "restart_marker_blocks": 3},
    ],
)
def test_at_full_size_the_pixels_are_pillows_own(options):
    data = encoded(photo(), **options)
    pixels = decode(data, ImageFormat(height=375, width=500))
    assert np.array_equal(pixels, opened(data))


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("seed", [0, 1])
def test_resized_it_looks_as_by_pillow(resize, seed):
    data = photo_jpeg(seed)
    fmt = ImageFormat(height=224, width=224, resize=resize)
    assert mean_difference(decode(data, fmt), by_pillow(opened(data), fmt)) < 0.5


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [32, 64, 96])
def test_decoded_at_a_fraction_it_looks_as_by_pillow(resize, size):
    data = photo_jpeg()
    fmt = ImageFormat(height=size, width=size, resize=resize)
    assert mean_difference(decode(data, fmt), by_pillow(opened(data), fmt)) < 3


@pytest.mark.parametrize(
    ("share", "size"),
    [(0.6, (375, 500)), (0.5, (188, 250)), (0.26, (188, 250)), (0.25, (94, 125)), (0.01, (47, 63))],
)
def test_only_as_much_is_decoded_as_is_wanted(share, size):
    data = photo_jpeg()
    header = read_header(data)
    assert header == (375, 500, 1)
    assert decode_jpeg(data, header, share=share).shape == (*size, 3)


def test_grey_is_the_luma():
    data = photo_jpeg()
    grey = decode(data, ImageFormat(height=375, width=500, channels=1))
    assert grey.shape == (375, 500, 1)
    assert mean_difference(grey[..., 0], opened(data).convert("L")) < 0.2
    of_grey = encoded(photo().convert("L"))
    color = decode(of_grey, ImageFormat(height=375, width=500))
    assert np.array_equal(color, opened(of_grey))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(375, 500), (60, 80)])
def test_exif_orientation_holds_at_every_scale(orientation, size):
    upright = photo()
    fmt = ImageFormat(height=size[0], width=size[1])
    turned = decode(stored_turned(upright, orientation, quality=95), fmt)
    assert mean_difference(turned, by_pillow(upright, fmt)) < 4


def test_orientation_in_xmp_counts_too():
    stored = photo().transpose(Image.Transpose.ROTATE_90)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"></x:xmpmeta>'
    data = encoded(stored, xmp=xmp)
    assert read_header(data) == (500, 375, 6)
    assert mean_difference(decode(data, ImageFormat(height=375, width=500)), photo()) < 6


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0" + b"\xff" * 200]
)
def test_malformed_exif_costs_nothing_but_the_orientation(exif):
    data = encoded(photo(), exif=exif)
    assert mean_difference(decode(data, ImageFormat(height=375, width=500)), photo()) < 6


@pytest.mark.parametrize(
    ("image", "options"),
    [(photo().convert("CMYK"), {}), (photo(), {"keep_rgb": True})],
    ids=["CMYK", "RGB"],
)
def test_what_turbo_does_not_convert_pillow_decodes(image, options):
    data = encoded(image, **options)
    assert read_header(data) is None
    assert np.array_equal(decode(data, ImageFormat(height=375, width=500)), opened(data))


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.9, 0.999])
def test_of_what_is_cut_short_pillow_has_the_last_word(share):
    data = photo_jpeg()
    cut = data[: int(share * len(data))]
    reasons = []
    for decoder in (
        lambda: decode(cut, ImageFormat(height=8, width=8)),
        lambda: decode_pixels(cut),
    ):
        with pytest.raises(MediaError) as caught:
            decoder()
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1]


def test_the_header_alone_refuses_too_many_pixels():
    with pytest.raises(MediaError, match=r"^500x375 pixels, more than max_pixels=187499$"):
        decode(photo_jpeg(), ImageFormat(height=8, width=8, max_pixels=187_499))


# --- random parts ---


def test_a_part_is_pillows_crop_and_resize():
    data = photo_jpeg()
    ours = resized_crop(data, (100, 50, 300, 250), size=224)
    theirs = opened(data).crop((100, 50, 400, 300)).resize((224, 224), BILINEAR)
    assert (ours.dtype, ours.shape) == (np.uint8, (224, 224, 3))
    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 2


@pytest.mark.parametrize("size", [25, 50, 100])
def test_a_part_from_a_fraction_of_the_size_looks_the_same(size):
    data = photo_jpeg(1)
    ours = resized_crop(data, (101, 51, 203, 207), size=size)
    theirs = opened(data).crop((101, 51, 304, 258)).resize((size, size), BILINEAR)
    assert mean_difference(ours, theirs) < 6


def test_the_generator_alone_decides_the_part():
    data = photo_jpeg()
    first, again, other = (
        random_resized_crop(data, size=64, rng=np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(
        first, random_resized_crop(memoryview(data), size=64, rng=np.random.default_rng(3))
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_images_have_parts_too(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(photo(), kind, **options)
    ours = random_resized_crop(data, size=96, rng=np.random.default_rng(0))
    left, top, width, height = draw_part(375, 500, np.random.default_rng(0))
    theirs = photo().crop((left, top, left + width, top + height)).resize((96, 96), BILINEAR)
    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 2


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_a_part_lies_in_the_image(height, width, seed, data):
    scale = sorted(data.draw(st.tuples(*[st.floats(0.01, 1)] * 2)))
    left, top, part_width, part_height = draw_part(
        height, width, np.random.default_rng(seed), scale=tuple(scale)
    )
    assert left >= 0 and left + part_width <= width and part_width >= 1
    assert top >= 0 and top + part_height <= height and part_height >= 1


def test_parts_have_the_areas_and_aspects_of_torchvision():
    rng = np.random.default_rng(0)
    parts = np.array([draw_part(1000, 1000, rng) for _ in range(4000)])
    area = parts[:, 2] * parts[:, 3] / 1e6
    aspect = np.log(parts[:, 2] / parts[:, 3])
    assert 0.079 < area.min() < 0.09 and 0.95 < area.max() <= 1
    # Large parts of an odd aspect do not fit and are drawn anew: fewer than half exceed the middle.
    assert 0.48 < area.mean() < 0.54
    assert np.abs(aspect).max() < np.log(4 / 3) + 0.01 and abs(aspect.mean()) < 0.01
    assert abs(parts[:, 0].mean() - (1000 - parts[:, 2]).mean() / 2) < 10


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10)])
def test_an_image_too_long_for_any_part_gives_its_middle(height, width):
    left, top, part_width, part_height = draw_part(
        height, width, np.random.default_rng(0), scale=(0.9, 1)
    )
    assert abs(2 * left + part_width - width) <= 1 and abs(2 * top + part_height - height) <= 1
    assert 3 / 4 - 0.1 < part_width / part_height < 4 / 3 + 0.1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (photo_jpeg()[:40_000], "cut short: libjpeg says: Premature end of JPEG file"),
        (b"no image here", "no image format"),
    ],
)
def test_what_is_damaged_has_no_part(data, reason):
    with pytest.raises(MediaError, match=reason):
        random_resized_crop(data, size=64, rng=np.random.default_rng(0))


def test_parts_of_too_large_an_image_are_refused():
    with pytest.raises(MediaError, match="500x375 pixels, more than max_pixels=1000"):
        random_resized_crop(photo_jpeg(), size=8, rng=np.random.default_rng(0), max_pixels=1000)
