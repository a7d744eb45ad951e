"""A corpus of media that is damaged, mislabelled or hostile: the same bytes at every run."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import trimesh
from PIL import Image

IMAGES = ("png", "jpg", "gif", "webp", "bmp", "tiff", "ppm")
SOUNDS = ("wav", "flac", "ogg", "mp3", "gsm")
FILMS = ("mp4", "avi")
MESHES = ("obj", "ply", "off", "stl", "glb")
CUTS = (1, 2, 4, 8, 12, 16, 24, 32, 44, 64, 100, 128)
"""Where headers and their fields end in one format or another, bytes."""
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
FLIPPED_EACH = 9
HEADER_BYTES = 160


def write_corpus(folder: Path, seed: int = 0) -> list[Path]:
    """Write more than 500 files in one folder for each kind of damage; the paths, sorted.

    All but a few cannot be used. Some are links: out of the folder, to nothing, to themselves.
    """
    contents = {
        "cut": _cut(),
        "mislabelled": _mislabelled(),
        "flipped": _flipped(np.random.default_rng(seed)),
        "bombs": _bombs(),
        "names": _odd_names(),
    }
    for kind, files in contents.items():
        (folder / kind).mkdir(parents=True)
        for name, data in files:
            (folder / kind / os.fsdecode(name)).write_bytes(data)
    links = folder / "links"
    links.mkdir()
    (links / "out-of-the-tree.jpg").symlink_to("/etc/passwd")
    (links / "folder-above.jpg").symlink_to("../..")
    (links / "dangling.png").symlink_to("no-such-file.png")
    (links / "itself.wav").symlink_to("itself.wav")
    found = [Path(where, name) for where, _, names in os.walk(folder) for name in names]
    return sorted([*found, links / "folder-above.jpg"], key=os.fsencode)


def valid_files() -> dict[str, bytes]:
    """One small sound file of each kind, by its extension."""
    return {**images(), **sounds(), **films(), **meshes(), "txt": _text().encode()}


def images() -> dict[str, bytes]:
    """40 x 30 pixels."""
    y, x = np.mgrid[0:30, 0:40]
    noise = np.random.default_rng(1).integers(0, 40, (30, 40))
    pixels = np.stack([x * 5 + noise, y * 7 + noise, (x + y) * 3], axis=-1).astype(np.uint8)
    kinds = {"jpg": "JPEG"}
    files = {}
    for extension in IMAGES:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kinds.get(extension, extension.upper()))
        files[extension] = buffer.getvalue()
    return files


def sounds() -> dict[str, bytes]:
    """A third of a second at 8 kHz."""
    time = np.arange(2640) / 8000
    tone = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    kinds = {
        "wav": {"format": "WAV", "subtype": "PCM_16"},
        "flac": {"format": "FLAC"},
        "ogg": {"format": "OGG", "subtype": "VORBIS"},
        "mp3": {"format": "MP3"},
        "gsm": {"format": "RAW", "subtype": "GSM610"},
    }
    files = {}
    for extension, kind in kinds.items():
        buffer = io.BytesIO()
        soundfile.write(buffer, tone, 8000, **kind)
        files[extension] = buffer.getvalue()
    files["ogg"] = _numbered(files["ogg"], serial=1)
    return files


def _numbered(ogg: bytes, serial: int) -> bytes:
    """An Ogg stream under another serial number: libsndfile takes one at random."""
    pages = [b"OggS" + page for page in ogg.split(b"OggS")[1:]]
    numbered = (
        page[:14] + struct.pack("<I", serial) + page[18:22] + bytes(4) + page[26:] for page in pages
    )
    return b"".join(
        page[:22] + struct.pack("<I", _ogg_checksum(page)) + page[26:] for page in numbered
    )


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 of the usual polynomial, but not reflected, from 0."""
    check = 0
    for byte in page:
        check ^= byte << 24
        for _ in range(8):
            check = (check << 1) ^ (0x104C11DB7 if check >> 31 else 0)
    return check


def films() -> dict[str, bytes]:
    """Twelve frames of 32 x 24 pixels."""
    files = {}
    for extension in FILMS:
        buffer = io.BytesIO()
        options = {"fflags": "+bitexact"}
        with av.open(buffer, "w", format=extension, options=options) as container:
            stream = container.add_stream("mpeg4", rate=Fraction(12))
            stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
            stream.codec_context.flags |= av.codec.context.Flags.bitexact
            for number in range(12):
                pixels = np.full((24, 32, 3), 20 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        files[extension] = buffer.getvalue()
    return files


def meshes() -> dict[str, bytes]:
    """A sphere of 80 triangles."""
    sphere = trimesh.creation.icosphere(subdivisions=1)
    files = {}
    for extension in MESHES:
        content = sphere.export(file_type=extension)
        files[extension] = content.encode() if isinstance(content, str) else content
    return files


def _text() -> str:
    return "Ein Satz, une phrase, 一句话.\n" * 20


Files = Iterator[tuple[bytes, bytes]]
"""Names and contents."""


def _cut() -> Files:
    for extension, data in valid_files().items():
        ends = {0, *CUTS, *(int(share * len(data)) for share in SHARES), len(data) - 1}
        for end in sorted(end for end in ends if end < len(data)):
            yield f"{extension}-{end:06d}.{extension}".encode(), data[:end]


def _mislabelled() -> Files:
    files = valid_files()
    extensions = list(files)
    for place, (extension, data) in enumerate(files.items()):
        for step in (3, 7):
            wrong = extensions[(place + step) % len(extensions)]
            yield f"{extension}-as.{wrong}".encode(), data
    yield b"letter.jpg", b"Dear sir,\nno image here.\n" * 100
    yield b"noise.wav", np.random.default_rng(2).bytes(20_000)
    yield b"gzip.jpg", gzip.compress(files["jpg"], mtime=0)
    yield b"page.png", b"<!DOCTYPE html><html><body>404</body></html>"


def _flipped(rng: np.random.Generator) -> Files:
    for extension, data in valid_files().items():
        for number in range(FLIPPED_EACH):
            damaged = bytearray(data)
            for _ in range(1 + number):
                damaged[rng.integers(min(HEADER_BYTES, len(data)))] ^= 1 << int(rng.integers(8))
            yield f"{extension}-{number}.{extension}".encode(), bytes(damaged)


def _bombs() -> Files:
    files = valid_files()
    yield b"claims-1e10-pixels.png", png(100_000, 100_000, zlib.compress(b"\0"))
    yield b"120-megapixels.png", png(12_000, 10_000, zlib.compress(bytes(1501 * 10_000), 9), bits=1)
    yield b"text-chunk.png", _png_with_text(files["png"])
    yield b"65535-pixels-square.jpg", _jpeg_claiming(files["jpg"], 65_535, 65_535)
    yield b"no-height.jpg", _jpeg_claiming(files["jpg"], 0, 40)
    yield b"twelve-bits.jpg", files["jpg"].replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c")
    yield b"ten-thousand-scans.jpg", _jpeg_of_scans()
    yield b"huge-canvas.gif", files["gif"][:6] + b"\xff\xff\xff\xff" + files["gif"][10:]
    yield b"huge-canvas.webp", _webp_claiming()
    yield (
        b"huge-canvas.bmp",
        files["bmp"][:18] + struct.pack("<ii", 2**30, 2**30) + files["bmp"][26:],
    )
    yield b"negative.bmp", files["bmp"][:18] + struct.pack("<ii", -40, -(2**31)) + files["bmp"][26:]
    yield b"huge-canvas.ppm", b"P6\n1000000000 1000000000\n255\n" + bytes(100)
    yield b"no-numbers.ppm", b"P6\n" + b"9" * 5000 + b" -7\n255\n" + bytes(100)
    yield b"circle-of-directories.tiff", _tiff_of([(256, 40), (257, 30)], following=8)
    yield b"huge-strip.tiff", _tiff_of([(256, 2**31), (257, 2**31), (273, 8), (279, 2**32 - 1)])
    yield b"starts-a-program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n" * 9
    yield b"hour-of-silence.flac", _silence("FLAC", 3600)
    yield b"hour-of-silence.ogg", files["ogg"][:27] + b"\xff" * 200
    for name, where, field in (
        ("absurd-length.wav", 40, struct.pack("<I", 0xFFFF_FFFE)),
        ("absurd-rate.wav", 24, struct.pack("<I", 0xFFFF_FFFF)),
        ("no-rate.wav", 24, bytes(4)),
        ("no-channels.wav", 22, bytes(2)),
        ("65535-channels.wav", 22, b"\xff\xff"),
        ("no-bits.wav", 34, bytes(2)),
    ):
        wav = files["wav"]
        yield name.encode(), wav[:where] + field + wav[where + len(field) :]
    yield b"absurd-length.flac", files["flac"][:21] + b"\xff" * 5 + files["flac"][26:]
    yield b"a-billion-points.ply", _ply_claiming(10**9)
    yield b"four-billion-triangles.stl", bytes(80) + b"\xff\xff\xff\xff" + bytes(500)
    yield b"a-billion-faces.off", b"OFF\n8 1000000000 0\n" + b"0 0 0\n" * 8
    yield b"far-corners.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 999999999\nf -9 -8 -7\n"
    yield b"reads-a-file.obj", b"mtllib ../../../../etc/passwd\n" + files["obj"][:200]
    yield b"endless.obj", b"v nan inf 1e999\n" * 50 + b"f 1 2 3\n" * 50
    yield b"latin-1.txt", "Käse, naïveté".encode("latin-1") * 50
    yield b"utf-16.txt", _text().encode("utf-16")
    yield b"only-zeros.txt", bytes(5000)
    yield b"zeros.zip", _zip_of_zeros()
    yield b"zeros.jpg", _zip_of_zeros()
    yield b"zeros.tar", _tar([("zeros.jpg", bytes(2_000_000))])
    yield b"zeros.tar.gz", gzip.compress(_tar([("zeros.jpg", bytes(50_000_000))]), 9, mtime=0)
    yield b"climbs-out.tar", _tar([("../../evil.jpg", files["jpg"]), ("/tmp/evil.jpg", b"x")])
    yield b"claims-8-exabytes.tar", _tar_claiming(8 * 2**60)
    yield b"cut.tar", _tar([("0001.jpg", files["jpg"]), ("0002.jpg", files["jpg"])])[:1500]


def _odd_names() -> Files:
    data = images()["png"][:200]
    yield b"two\nlines.png", data
    yield b"\n.png", data
    yield b"tab\tand\rreturn.png", data
    yield b"not-utf-8-\xff\xfe.png", data
    yield b"caf\xe9.jpg", data
    yield "東京 🗼.png".encode(), data
    yield b"-rf.png", data
    yield b"..png", data
    yield b"...jpg", data
    yield b"back\\slash\\..\\x.png", data
    yield b"quote\"and'and`.png", data
    yield b"$(reboot).png", data
    yield b"%2e%2e%2fescaped.png", data
    yield b"*?[a].png", data
    yield b"s3:::bucket.png", data
    yield b"a" * 251 + b".png", data
    yield b"UPPER.PNG", data
    yield b"two.dots.in.it.png", data
    yield b"nul-like-\x01\x7f.png", data
    yield b" leading and trailing .png ", data


def png(width: int, height: int, pixels: bytes, *, bits: int = 8) -> bytes:
    """A grey PNG with any compressed pixels behind its header."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def _png_with_text(data: bytes) -> bytes:
    """With 60 MB of zeros in a compressed comment."""
    return (
        data[:33]
        + png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(60_000_000), 9))
        + data[33:]
    )


def _jpeg_claiming(data: bytes, height: int, width: int) -> bytes:
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def _jpeg_of_scans() -> bytes:
    """A progressive JPEG whose last scan comes ten thousand times."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(3).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", progressive=True, quality=20)
    data = buffer.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last[: 10 + 200] * 10_000 + data[-2:]


def _webp_claiming() -> bytes:
    """Lossless, 16384 x 16384 pixels, without any."""
    size = (16_383 | 16_383 << 14).to_bytes(4, "little")
    body = b"WEBPVP8L" + struct.pack("<I", 6) + b"\x2f" + size + b"\0"
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff_of(tags: list[tuple[int, int]], following: int = 0) -> bytes:
    """One directory at byte 8 of 32-bit values; `following` is where the next one is."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value % 2**32) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", 8) + directory


def _silence(kind: str, seconds: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(seconds * 8000, np.int16), 8000, format=kind)
    return buffer.getvalue()


def _ply_claiming(points: int) -> bytes:
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {points}\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz")
    return header.encode() + b"end_header\n" + bytes(120)


def _zip_of_zeros() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for number in range(4):
            member = zipfile.ZipInfo(f"{number}.bmp")
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, bytes(20_000_000))
    return buffer.getvalue()


def _tar(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _tar_claiming(size: int) -> bytes:
    member = tarfile.TarInfo("huge.jpg")
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
