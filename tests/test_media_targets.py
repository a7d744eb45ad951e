"""Targets: from values and files to members of a shard."""

import json
from typing import Any

import numpy as np
import pytest
from photos import encoded
from PIL import EpsImagePlugin, Image
from small_media import refusal

from pipeline.config.load import load_config
from pipeline.errors import UserError
from pipeline.media import ImageFormat, MediaError
from pipeline.media.decode import decode
from pipeline.media.targets import TargetConfig, target_members
from shards import decode_npy

SQUARE = ImageFormat(height=8, width=8)


def made(kind: str, target: Any = None, parts: dict | None = None, classes=(), **fields) -> Any:
    """The target's array, or the text of its `cls`."""
    config = TargetConfig(kind=kind, **fields)
    members = target_members(config, tuple(classes), {"target": target}, parts or {}, SQUARE)
    if kind == "class":
        return members["cls"]
    assert list(members) == ["target.npy"]
    return decode_npy(members["target.npy"])


def refused(*args: Any, **fields: Any) -> str:
    return refusal(made, *args, **fields)


def image_bytes(pixels: np.ndarray, mode: str | None = None) -> bytes:
    image = Image.fromarray(pixels)
    return encoded(image.convert(mode) if mode else image, "PNG")


def mask_of(pixels: np.ndarray, fmt: ImageFormat = SQUARE, classes=(), mode=None) -> np.ndarray:
    parts = {"mask": (image_bytes(pixels, mode), "1.mask.png")}
    members = target_members(TargetConfig(kind="mask"), tuple(classes), {}, parts, fmt)
    return decode_npy(members["target.npy"])


def test_a_class_is_its_number_and_none_is_nothing():
    assert made("class", 12) == b"12"
    assert target_members(TargetConfig(kind="none"), (), {}, {}, None) == {}
    assert refused("class") == "no target"


def test_labels_are_marks():
    marks = made("multi_label", ["b", "d"], classes="abcd")
    assert marks.dtype == np.uint8 and marks.tolist() == [0, 1, 0, 1]
    assert made("multi_label", " a; c;", classes="abcd").tolist() == [1, 0, 1, 0]
    assert made("multi_label", "a|c", classes="abc", separator="|").tolist() == [1, 0, 1]
    assert made("multi_label", [], classes="ab").tolist() == [0, 0]
    assert refused("multi_label", ["x"], classes="ab") == "label 'x' is none of the 2 classes"
    assert refused("multi_label", [1], classes="ab").startswith("labels are neither a list")


def test_numbers_are_float32():
    numbers = made("regression", [1, 2.5], columns=("a", "b"))
    assert numbers.dtype == np.float32 and numbers.tolist() == [1.0, 2.5]
    assert made("regression", 3).tolist() == [3.0]
    assert refused("regression", [1, 2]) == "target has 2 numbers, not 1"
    assert refused("regression", "x") == "target holds what is no number"
    assert refused("regression", True) == "target holds what is no number"
    beyond = "target holds a number that is not finite, or beyond float32"
    assert refused("regression", float("nan")) == refused("regression", 1e39) == beyond
    assert refused("regression", 10**400) == "target holds a number beyond float32"


def test_numbers_may_lie_in_a_text_file_parted_by_white_space():
    def file(text: bytes) -> dict:
        return {"target": (text, "a/1.txt")}

    numbers = made("regression", None, file(b"\xef\xbb\xbf 1.5\n-2e1\t7 \n"), num_values=3)
    assert numbers.dtype == np.float32 and numbers.tolist() == [1.5, -20.0, 7.0]
    assert refused("regression", None, file(b"")) == "target has 0 numbers, not 1"
    assert refused("regression", None, file(b"1 2")) == "target has 2 numbers, not 1"
    for word in ("much", "1,5", "1_0", "0x1"):
        told = refused("regression", None, file(f"3 {word}\n".encode()))
        assert told == f"target: {word!r} is no number"
    assert refused("regression", None, file(b"\xff\x00" * 99)).isprintable()
    assert "not finite" in refused("regression", None, file(b"nan"))
    assert "more than 1048576" in refused("regression", None, file(b"1 " * 2**20))


def test_tokens_are_int32_and_a_text_is_its_bytes_plus_6():
    tokens = made("tokens", [0, 7, 2**31 - 1])
    assert tokens.dtype == np.int32 and tokens.tolist() == [0, 7, 2**31 - 1]
    assert made("tokens", "é").tolist() == [0xC3 + 6, 0xA9 + 6]
    assert made("tokens", None, {"target": (b"ab", "1.txt")}).tolist() == [103, 104]
    assert refused("tokens", []) == "no tokens"
    assert refused("tokens", [1, 2, 3], max_length=2) == "3 tokens, more than max_length=2"
    for value in ([-1], [2**31], [1.5], [True], {"a": 1}):
        assert refused("tokens", value).startswith("tokens are neither")


def test_a_json_file_holds_the_target_under_its_key():
    def file(value: Any) -> dict:
        return {"target": (json.dumps(value).encode(), "a/1.json")}

    assert made("regression", None, file({"label": [1, 2]}), num_values=2).tolist() == [1.0, 2.0]
    assert made("regression", None, file({"y": 4}), column="y").tolist() == [4.0]
    assert made("multi_label", None, file(["b"]), classes="ab").tolist() == [0, 1]
    assert refused("tokens", None, file({"x": 1})) == "target: its JSON has no 'label'"
    assert refused("tokens", None, {"target": (b"{", "1.json")}) == "target: not JSON"
    deep = b"[" * 500_000
    assert refused("tokens", None, {"target": (deep, "1.json")}) == "target: not JSON"
    long = b'"' + b"x" * 2**20 + b'"'
    assert "more than 1048576" in refused("tokens", None, {"target": (long, "1.json")})


# --- masks ---


def test_a_mask_of_the_right_size_is_kept_as_it_is():
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    mask = mask_of(pixels)
    assert mask.dtype == np.uint8 and (mask == pixels).all()


def test_a_mask_is_brought_to_size_as_its_image_is():
    """A picture whose left is black and right white, and a mask that says so: both agree."""
    rng = np.random.default_rng(0)
    for resize in ("crop", "pad", "stretch"):
        for height, width in ((40, 64), (64, 40), (8, 30), (5, 5)):
            fmt = ImageFormat(height=16, width=24, channels=1, resize=resize)
            border = int(rng.integers(width // 3, 2 * width // 3))
            pixels = np.zeros((height, width), np.uint8)
            pixels[:, border:] = 1
            mask = mask_of(pixels, fmt)
            image = decode(image_bytes(pixels * 255), fmt)[..., 0]
            known = mask != 255
            assert mask.shape == (16, 24) and set(np.unique(mask)) <= {0, 1, 255}
            differ = (image > 127) != (mask == 1)
            assert differ[known].mean() <= 1.01 / 24 * 2, (resize, height, width)
            assert known.all() == (resize != "pad" or height * 24 == width * 16)
            assert (image[~known] == 0).all()


def test_a_palettes_numbers_are_the_classes():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = [200, 10, 10]
    image = Image.fromarray(pixels).quantize(2)
    parts = {"mask": (encoded(image, "PNG"), "")}
    members = target_members(TargetConfig(kind="mask"), (), {}, parts, SQUARE)
    assert (decode_npy(members["target.npy"]) == np.asarray(image)).all()


def test_masks_that_are_none_are_refused():
    wide = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(MediaError, match="mode RGB; it must have one channel"):
        mask_of(wide)
    with pytest.raises(MediaError, match="value 7 is none of 2 classes"):
        mask_of(np.full((8, 8), 7, np.uint8), classes="ab")
    assert (mask_of(np.full((8, 8), 255, np.uint8), classes="ab") == 255).all()
    small = ImageFormat(height=8, width=8, max_pixels=50)
    with pytest.raises(MediaError, match="8x8 pixels, more than max_pixels=50"):
        mask_of(np.zeros((8, 8), np.uint8), small)
    good = image_bytes(np.random.default_rng(1).integers(0, 9, (64, 64), np.uint8))
    for end in range(0, len(good) - 30, 7):
        assert refused("mask", None, {"mask": (good[:end], "")}).startswith("mask: ")
    assert refused("mask") == "no mask"


def test_a_mask_is_never_run_as_postscript(monkeypatch):
    postscript = encoded(Image.new("L", (8, 8)), "EPS")
    asked = []
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", lambda self: asked.append(self))
    told = refused("mask", None, {"mask": (postscript, "1.mask.png")})
    assert told == "mask: no image format that Pillow knows"
    assert asked == []


# --- configuration ---


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.target.kind=classes", "data.target.kind: is 'classes'; must be 'class', 'multi_l"),
        ("data.target={kind: none, column: x}", "takes neither column nor classes"),
        ("data.target={kind: class, columns: [a]}", "columns is for kind 'regression'"),
        ("data.target.classes=[a, a]", "classes names 'a' twice"),
        ("data.target={kind: tokens, max_length: 0}", "max_length: is 0"),
        ("data.target.colum=x", "data.target.colum: unknown key; did you mean 'column'"),
        ("data.allow_missing=[audio]", "allow_missing names 'audio', which has no section"),
        ("data.columns.audio=x", "columns.audio is given, but not the section 'audio'"),
        ("data.image=null", "give at least one of the sections image, audio, video, points, text"),
    ],
)
def test_what_cannot_be_configured_is_refused(override, told):
    with pytest.raises(UserError) as caught:
        load_config("digits", [override])
    assert told in str(caught.value) and "\n" not in str(caught.value)
