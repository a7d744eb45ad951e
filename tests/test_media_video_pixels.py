"""How the frames of a film are shown: turned, resized, and with alpha."""

import io
from fractions import Fraction

import av
import numpy as np
import photos
import pytest
from film_files import SMALL, reason
from PIL import Image
from small_media import film, turned, with_matrix

from pipeline.media import (
    ImageFormat,
    VideoFormat,
    decode,
)
from pipeline.media.video import film as film_module


def quarters() -> np.ndarray:
    """Red, green / blue, white."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32, 0] = picture[:24, 32:, 1] = picture[24:, :32, 2] = 250
    picture[24:, 32:] = 250
    return picture


def colours(frame: np.ndarray) -> str:
    """The letters of the corners, row by row."""
    rows, columns = frame.shape[0] // 4, frame.shape[1] // 4
    picked = [frame[y, x] > 125 for y in (rows, 3 * rows) for x in (columns, 3 * columns)]
    names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w", (0, 0, 0): "."}
    return "".join(names[tuple(map(int, corner))] for corner in picked)


@pytest.mark.parametrize(("turns", "shown"), [(0, "rgbw"), (1, "brwg"), (2, "wbgr"), (3, "gwrb")])
def test_rotation_in_the_header_is_applied(turns, shown):
    data = film([quarters()] * 5)
    data = turned(data, turns) if turns else data
    fmt = VideoFormat(num_frames=1, height=32, width=32, resize="stretch")
    assert colours(decode(data, fmt)[0]) == shown


def test_pixels_that_are_not_square_are_shown_square():
    # 64 × 48 pixels that are half as wide as high: a picture of 32 × 48.
    data = film([quarters()] * 5, aspect=Fraction(1, 2), container="matroska")
    fmt = VideoFormat(num_frames=1, height=48, width=64, resize="pad")
    (clip,) = decode(data, fmt)
    filled = np.flatnonzero(clip.max(axis=(0, 2)) > 40)
    assert (filled[0], filled[-1]) == (16, 47)


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_frames_are_resized_as_images_are(resize, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC))
    size = {"height": 20, "width": 40, "resize": resize, "channels": channels}
    (clip,) = decode(film([picture] * 3), VideoFormat(num_frames=1, **size))
    image = decode(photos.encoded(Image.fromarray(picture), "PNG"), ImageFormat(**size))
    # What the encoder loses, colour at half the resolution above all, is all that differs.
    assert np.abs(clip.astype(int) - image.astype(int)).mean() < 5


def see_through(codec: str) -> bytes:
    """WebM of a red frame whose left half is 0, 50, 100 … opaque and whose right half half so."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as output:
        video = output.add_stream(codec, rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuva420p"
        video.options = {"auto-alt-ref": "0", "deadline": "realtime", "crf": "4"}
        for number in range(5):
            pixels = np.zeros((48, 64, 4), np.uint8)
            pixels[..., 0], pixels[:, :32, 3], pixels[:, 32:, 3] = 200, 50 * number, 128
            frame = av.VideoFrame.from_ndarray(pixels, "rgba").reformat(format="yuva420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_alpha_beside_the_frames_of_webm_is_laid_over_white(codec):
    fmt = VideoFormat(num_frames=5, frames_per_second=25, height=48, width=64)
    for number, frame in enumerate(decode(see_through(codec), fmt)):
        share = 50 * number / 255
        left = [200 * share + 255 * (1 - share), *[255 * (1 - share)] * 2]
        assert frame[24, 16] == pytest.approx(left, abs=6)
        assert frame[24, 48] == pytest.approx([227, 127, 127], abs=6)


def test_alpha_that_ffmpeg_cannot_read_is_refused(monkeypatch):
    data = see_through("libvpx-vp9")
    monkeypatch.setattr(film_module, "LIBVPX", {"vp9": "libvpx-of-another-build"})
    told = reason(data, VideoFormat(num_frames=1, **SMALL))
    assert told.startswith("an alpha channel, which this FFmpeg cannot read without libvpx-of-")


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
        ((1, 0, 0, -1), lambda p: p[::-1]),
        ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    ],
)
def test_mirroring_in_the_header_is_applied(matrix, turn):
    fmt = VideoFormat(num_frames=1, height=32, width=32, resize="stretch")
    plain = film([quarters()] * 5)
    shown = decode(with_matrix(plain, *matrix), fmt)[0]
    wanted = turn(decode(plain, fmt)[0])
    assert np.abs(shown.astype(int) - wanted)[4:12, 4:12].max() < 8
    assert np.abs(shown.astype(int) - wanted)[20:28, 4:12].max() < 8


def test_the_containers_shape_of_pixels_counts_where_the_codec_has_none():
    data = film([quarters()] * 5, aspect=Fraction(1, 2), codec="libvpx-vp9")
    (clip,) = decode(data, VideoFormat(num_frames=1, height=48, width=64, resize="pad"))
    filled = np.flatnonzero(clip.max(axis=(0, 2)) > 40)
    assert (filled[0], filled[-1]) == (16, 47)
