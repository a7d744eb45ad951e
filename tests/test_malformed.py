"""Malformed media end in an array or a reason, never in a dead process, a hang or lost memory."""

import hashlib
import os
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import HEADER_BYTES, IMAGES, SOUNDS, png, valid_files, write_corpus

from pipeline.media import AudioFormat, ImageFormat, MediaError, media_to_dict
from pipeline.media.sandbox.sandbox import Sandbox

FORMATS = {
    "image": ImageFormat(height=24, width=32),
    "audio": AudioFormat(sample_rate=8000, seconds=0.25),
}
VALID = {name: data for name, data in valid_files().items() if name in IMAGES + SOUNDS}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "files")


@pytest.fixture(scope="module")
def sandboxes() -> Iterator[dict[str, Sandbox]]:
    """One for each modality, that must never lose its child."""
    found = {modality: sandbox_of(modality) for modality in FORMATS}
    yield found
    for sandbox in found.values():
        sandbox.close()


def sandbox_of(modality: str, **limits: float) -> Sandbox:
    settings = media_to_dict(FORMATS[modality])
    return Sandbox("sandbox_functions:decode_media", settings, **limits)


def verdict(sandbox: Sandbox, data: bytes, name: str) -> str:
    """The reason, or the digest of what came out."""
    try:
        (members,) = sandbox.run({"file": (data, name)}, {})
    except MediaError as error:
        return str(error)
    return hashlib.sha256(b"".join(members.values())).hexdigest()


def verdicts(sandbox: Sandbox, files: list[Path]) -> dict[Path, str]:
    return {file: verdict(sandbox, file.read_bytes(), os.fspath(file)) for file in files}


def is_reason(text: str) -> bool:
    """One short line that is the same at every run: without paths and addresses."""
    return (
        text.isprintable()
        and 3 <= len(text) < 300
        and not re.search(r"0x[0-9a-f]{6}|/tmp|site-packages", text)
    )


def is_digest(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def readable(files: list[Path]) -> list[Path]:
    return [file for file in files if file.is_file()]


# --- the corpus ---


def test_the_corpus_is_large_of_every_kind_and_always_the_same(corpus, tmp_path):
    assert len(corpus) >= 600
    assert {file.parent.name for file in corpus} == {
        "cut", "mislabelled", "flipped", "bombs", "names", "links",
    }  # fmt: skip
    assert sum(file.is_symlink() for file in corpus) == 4
    assert any(b"\n" in os.fsencode(file.name) for file in corpus)
    again = write_corpus(tmp_path / "again")
    assert [file.name for file in again] == [file.name for file in corpus]
    assert all(
        one.read_bytes() == other.read_bytes()
        for one, other in zip(readable(corpus), readable(again), strict=True)
    )


@pytest.mark.parametrize("modality", FORMATS)
def test_the_undamaged_originals_can_be_decoded(modality, sandboxes):
    kinds = IMAGES if modality == "image" else SOUNDS
    for kind in kinds:
        assert is_digest(verdict(sandboxes[modality], VALID[kind], f"a.{kind}")), kind


# --- what becomes of it ---


@pytest.mark.parametrize("modality", FORMATS)
def test_every_file_ends_in_an_array_or_a_reason_and_no_memory_is_lost(modality, corpus, sandboxes):
    sandbox, files = sandboxes[modality], readable(corpus)
    first = verdicts(sandbox, files)
    child = psutil.Process(sandbox.child_pid)
    after_first = child.memory_info().rss
    second, third = verdicts(sandbox, files), verdicts(sandbox, files)
    assert first == second == third
    assert sandbox.child_pid == child.pid  # nothing crashed it
    assert child.memory_info().rss - after_first < 16 << 20
    usable = {file for file, text in first.items() if is_digest(text)}
    assert all(is_reason(text) for file, text in first.items() if file not in usable)
    kinds = IMAGES if modality == "image" else SOUNDS
    assert len(usable) < 0.6 * sum(file.suffix[1:] in kinds for file in files)
    with sandbox_of(modality) as fresh:
        assert verdicts(fresh, files[::9]) == {file: first[file] for file in files[::9]}


BOMBS = {
    "claims-1e10-pixels.png": "10000000000 pixels, more than max_pixels",
    "120-megapixels.png": "12000x10000 pixels, more than max_pixels",
    "text-chunk.png": "text chunk|Decompressed",
    "65535-pixels-square.jpg": "4294836225 pixels, more than max_pixels",
    "huge-canvas.gif": "4294836225 pixels, more than max_pixels",
    "huge-canvas.webp": "268435456 pixels, more than max_pixels",
    "huge-canvas.bmp": "pixels",
    "huge-canvas.ppm": "pixels",
    "huge-strip.tiff": "pixels",
    "starts-a-program.eps": "no image format",
    "zeros.jpg": "no image format",
    "gzip.jpg": "no image format",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_headers(name, corpus, sandboxes):
    (file,) = (file for file in corpus if file.name == name)
    started = time.process_time()
    assert re.search(BOMBS[name], verdict(sandboxes["image"], file.read_bytes(), name))
    assert time.process_time() - started < 0.5


def test_an_hour_of_silence_is_heard_for_its_first_moments(corpus, sandboxes):
    (file,) = (file for file in corpus if file.name == "hour-of-silence.flac")
    (members,) = sandboxes["audio"].run({"file": (file.read_bytes(), file.name)}, {})
    assert len(members["audio.npy"]) == 128 + 2 * 2000


def test_the_largest_image_allowed_fits_in_the_memory(sandboxes):
    rows, columns = 10_000, 10_000
    pixels = zlib.compress(bytes(rows * (1 + columns // 8)), 1)
    assert is_digest(verdict(sandboxes["image"], png(columns, rows, pixels, bits=1), "large.png"))


# --- fuzzed headers ---


@st.composite
def fuzzed(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid file with a few bytes of its header changed, put in or taken out."""
    kind = draw(st.sampled_from(sorted(VALID)))
    data = bytearray(VALID[kind])
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, min(HEADER_BYTES, len(data) - 1)))
        change = draw(st.sampled_from(["set", "flip", "insert", "delete", "fill"]))
        if change == "set":
            data[place] = draw(st.integers(0, 255))
        elif change == "flip":
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif change == "delete":
            del data[place : place + draw(st.integers(1, 8))]
        else:
            data[place : place + 4] = draw(
                st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f" + b"\xff" * 3])
            )
    return kind, bytes(data)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(file=fuzzed())
def test_fuzzed_headers_give_an_array_or_a_reason(file, sandboxes):
    kind, data = file
    sandbox = sandboxes["image" if kind in IMAGES else "audio"]
    before = sandbox.child_pid
    text = verdict(sandbox, data, f"a.{kind}")
    assert is_digest(text) or is_reason(text)
    assert before is None or sandbox.child_pid == before
