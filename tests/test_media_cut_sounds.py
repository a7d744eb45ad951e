"""Recordings that are cut short, damaged, of unknown length, or have tags before or after them."""

import re
import struct

import numpy as np
import pytest
from small_media import refusal
from sounds import encoded, tone

from pipeline.media import AudioFormat, decode
from pipeline.media.audio.mp3 import find_frames

RATE = 8000
FORMAT = AudioFormat(sample_rate=RATE, seconds=1.0)
SOUND = tone(440, RATE)
PCM = {"subtype": "PCM_16"}
CONTAINERS = [
    "WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF",
    "AVR", "MAT4", "MAT5", "MPC2K", "NIST", "SVX", "VOC",
]  # fmt: skip
CODED = [
    ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "GSM610"), ("WAV", "ULAW"),
    ("W64", "GSM610"), ("AIFF", "IMA_ADPCM"), ("AU", "G721_32"), ("CAF", "ALAC_16"),
    ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16"),
    ("WVE", "ALAW"), ("SDS", "PCM_16"),
]  # fmt: skip


def sound_file(kind: str, subtype: str = "PCM_16") -> bytes:
    return encoded(SOUND, RATE, format=kind, subtype=subtype)


def told(data: bytes, name: str = "") -> str:
    return refusal(decode, data, FORMAT, name=name)


def id3(size: int) -> bytes:
    """An ID3v2.3 tag whose content is of this size."""
    sizes = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + sizes + bytes(size)


def ape(items: bytes = b"\4\0\0\0\0\0\0\0Year\0" + b"1999") -> bytes:
    """An APEv2 tag with a footer alone."""
    return items + b"APETAGEX" + struct.pack("<IIII", 2000, len(items) + 32, 1, 0) + bytes(8)


# --- cut short ---


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_container_with_fewer_samples_than_it_declares_is_refused(kind, share):
    data = sound_file(kind)
    assert len(decode(data, FORMAT)) == RATE
    cut = data[: int(share * len(data))]
    assert told(cut).startswith("cut short: ")
    if kind != "CAF":  # libsndfile refuses some of these by itself
        assert 0 < len(decode(cut, FORMAT, strict=False)) < RATE


@pytest.mark.parametrize(("kind", "subtype"), CODED)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_coded_sound_that_is_cut_is_refused(kind, subtype, share):
    data = sound_file(kind, subtype)
    decode(data, FORMAT)
    assert told(data[: int(share * len(data))])  # some by libsndfile, in words of its own


def test_the_reason_says_how_much_is_there():
    wav = sound_file("WAV")
    assert told(wav[: 44 + 2 * 3000]) == "cut short: 3000 of 8000 frames are there"
    assert told(wav[:-1]) == "cut short: 7999 of 8000 frames are there"
    adpcm = sound_file("WAV", "IMA_ADPCM")
    assert told(adpcm[:-100]).endswith("of 4096 bytes of sound are there")


def test_the_last_block_of_a_sample_dump_is_whole():
    sds = sound_file("SDS")
    assert told(sds[:-7]) == "cut short: its last block has 120 of 127 bytes"


def test_what_follows_the_samples_of_a_wav_is_no_matter():
    wav = sound_file("WAV")
    whole = decode(wav, FORMAT)
    comment = (
        b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"
    )
    for tail in (comment, comment[:20], b"TAG" + bytes(125), b"junk"):
        assert np.array_equal(decode(wav + tail, FORMAT), whole)
    odd = encoded(SOUND[:7999], RATE, format="WAV", subtype="PCM_U8")
    place = odd.index(b"data") + 8
    for unpadded in (odd, odd[: place + 7999]):
        assert len(decode(unpadded, FORMAT)) == 7999


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_flac_whose_samples_have_another_md5_is_refused_and_one_without_is_not(subtype, channels):
    sound = np.stack([SOUND, SOUND[::-1]][:channels], axis=1)
    flac = bytearray(encoded(sound, RATE, format="FLAC", subtype=subtype))
    assert any(flac[26:42]) and len(decode(bytes(flac), FORMAT)) == RATE
    flac[30] ^= 1
    assert told(bytes(flac)).startswith("damaged: the MD5 of its samples")
    assert len(decode(bytes(flac), FORMAT, strict=False)) == RATE
    flac[26:42] = bytes(16)
    assert len(decode(bytes(flac), FORMAT)) == RATE


def test_an_aiff_whose_frames_are_fewer_than_it_says_is_refused():
    aiff = bytearray(sound_file("AIFF"))
    place = aiff.index(b"COMM") + 10
    aiff[place : place + 4] = struct.pack(">I", 9000)
    assert told(bytes(aiff)) == "cut short: 8000 of 9000 frames are there"


# --- of unknown length ---


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "ULAW"])
@pytest.mark.parametrize("riff", [0, 0xFFFF_FFFF, 0x7FFF_F024, 36, None])
@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_F000, 0x8000_0000])
def test_a_wav_of_unknown_length_is_read_to_its_end(subtype, riff, size):
    whole = sound_file("WAV", subtype)
    data = bytearray(whole)
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", size)
    if riff is not None:
        data[4:8] = struct.pack("<I", riff)
    assert np.array_equal(decode(bytes(data), FORMAT), decode(whole, FORMAT))


def test_a_wav_without_samples_is_not_taken_for_one_of_unknown_length():
    empty = encoded(SOUND[:0], RATE, format="WAV", subtype="PCM_16")
    comment = b"LIST" + struct.pack("<I", 400) + bytes(400)
    for data in (empty, empty + comment):
        assert told(data).startswith("0 samples")


def _written_over(data: bytes, changes: dict[int, bytes]) -> bytes:
    changed = bytearray(data)
    for place, value in changes.items():
        changed[place : place + len(value)] = value
    return bytes(changed)


UNKNOWN = bytes.fromhex("ff" * 8)


@pytest.mark.parametrize("value", [UNKNOWN, bytes(8)])
def test_other_containers_of_unknown_length_are_read_to_their_end(value):
    rf64, w64, au = sound_file("RF64"), sound_file("W64"), sound_file("AU")
    caf, aiff = sound_file("CAF"), sound_file("AIFF")
    sizes = rf64.index(b"ds64") + 8
    streams = {
        "RF64": _written_over(rf64, {sizes: value, sizes + 8: value}),
        "W64": _written_over(w64, {16: value, w64.index(b"data") + 16: value}),
        "AU": _written_over(au, {8: value[:4]}),
        "CAF": _written_over(caf, {caf.index(b"data") + 4: UNKNOWN}),
        "AIFF": _written_over(aiff, {4: value[:4], aiff.index(b"SSND") + 4: value[:4]}),
    }
    whole = decode(sound_file("WAV"), FORMAT)
    for kind, data in streams.items():
        assert np.array_equal(decode(data, FORMAT), whole), kind


# --- tags ---


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "W64", "RF64", "CAF", "FLAC", "OGG", "MP3"])
def test_a_tag_in_front_takes_nothing_from_the_end(kind):
    subtype = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(kind, "PCM_16")
    data = sound_file(kind, subtype)
    whole = decode(data, FORMAT)
    for tag in (id3(20_000), id3(11) + id3(3000)):
        assert np.array_equal(decode(tag + data, FORMAT), whole)


MP3 = sound_file("MP3", "MPEG_LAYER_III")


@pytest.mark.parametrize(
    "tail", [b"TAG" + bytes(125), ape(), ape() + b"TAG" + bytes(125), bytes(999)]
)
def test_tags_and_zeros_behind_an_mp3_are_no_damage(tail):
    assert np.array_equal(decode(MP3 + tail, FORMAT), decode(MP3, FORMAT))


# --- MP3 and Ogg ---


def test_an_mp3_that_lacks_frames_of_its_table_is_refused():
    frames = find_frames(MP3)
    assert frames.has_table and frames.declared == frames.num
    half = MP3.index(MP3[:2], len(MP3) // 2)  # where a frame begins
    reason = told(MP3[:half])
    assert re.fullmatch(rf"cut short: \d+ of {frames.num} frames are there", reason)
    assert told(MP3[:half] + b"TAG" + bytes(125)) == reason


def test_an_mp3_without_a_table_ends_with_a_whole_frame():
    constant = encoded(
        SOUND, RATE, format="MP3", bitrate_mode="CONSTANT", compression_level=0.5
    )  # frames of 288 bytes
    bare = constant[288:]
    assert find_frames(bare).num * 288 == len(bare) and not find_frames(bare).has_table
    whole = decode(bare, FORMAT)
    for tail in (b"", ape(), ape() + b"TAG" + bytes(125), bytes(700)):
        assert np.array_equal(decode(bare + tail, FORMAT), whole)
    last = find_frames(bare).num
    assert told(bare[:-10]) == f"cut short: its frame {last} lacks 10 bytes"
    assert told(bare[:-10] + b"TAG" + bytes(125)) == f"cut short: its frame {last} lacks 10 bytes"
    assert told(bare[:-286]) == f"cut short: its frame {last} lacks 2 bytes"


def test_a_flac_that_declares_more_samples_than_its_frames_have_is_refused():
    flac = bytearray(sound_file("FLAC"))
    # The number of samples: the last 36 bits before the checksum of STREAMINFO.
    flac[18:26] = (int.from_bytes(flac[18:26], "big") + 3000).to_bytes(8, "big")
    fmt = AudioFormat(sample_rate=RATE, seconds=2.0)
    told = refusal(decode, bytes(flac), fmt)
    assert told == "cut short: 8000 of 11000 frames are there"
    assert len(decode(bytes(flac), fmt, strict=False)) == 8000


def test_an_mp3_with_bytes_between_its_frames_is_refused():
    half = MP3.index(b"\xff\xf3", len(MP3) // 2)
    assert "are no frame" in told(MP3[:half] + b"\x55" * 300 + MP3[half:])


def test_joined_mp3s_are_read_one_after_another():
    fmt = AudioFormat(sample_rate=RATE, seconds=5.0)
    one = decode(MP3, fmt)
    for between in (b"", b"TAG" + bytes(125) + id3(500)):
        both = decode(MP3 + between + MP3, fmt)
        # The second one's table is a silent frame of 576 samples to FFmpeg, and its delay is kept.
        assert 2 * RATE <= len(both) <= 2 * RATE + 4 * 576
        assert np.abs(both[: len(one)].astype(int) - one).max() <= 1
        loud = np.abs(both.astype(float)).reshape(-1)[RATE + 4 * 576 : 2 * RATE]
        assert loud.max() > 10_000
    half = AudioFormat(sample_rate=RATE, seconds=0.5)
    assert np.array_equal(decode(MP3 + MP3, half), decode(MP3, half))
    assert np.array_equal(decode(MP3 + MP3, fmt, strict=False), one)  # as before


def _pages(data: bytes) -> list[bytes]:
    return [b"OggS" + page for page in data.split(b"OggS")[1:]]


def test_ogg_pages_that_are_damaged_or_missing_are_refused():
    noise = np.random.default_rng(0).normal(0, 0.2, 4 * RATE).astype(np.float32)
    fmt = AudioFormat(sample_rate=RATE, seconds=4.0)
    for subtype in ("VORBIS", "OPUS"):
        data = encoded(noise, RATE, format="OGG", subtype=subtype)
        pages = _pages(data)
        assert len(pages) > 4 and len(decode(data, fmt)) > 0
        garbled = bytearray(data)
        garbled[len(data) // 2] ^= 1
        assert "checksum of its page" in refusal(decode, bytes(garbled), fmt)
        without = b"".join(pages[:3] + pages[4:])
        assert refusal(decode, without, fmt) == "damaged: 1 pages are missing before its page 4"
        assert "says that the recording ends" in refusal(decode, b"".join(pages[:-1]), fmt)
        between = b"".join(pages[:3]) + b"junk" + b"".join(pages[3:])
        assert "are no page" in refusal(decode, between, fmt)
        assert np.array_equal(decode(data + b"TAG" + bytes(125), fmt), decode(data, fmt))
