"""Sources in WebDataset tars: keys, labels, ranges, and tars that are damaged or hostile."""

import io
import json
import tarfile
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from shard_server import ShardServer
from source_trees import (
    classes_of,
    listed,
    make_tar,
    make_tree,
    paths,
    refusal,
    refused,
    rows,
    uris,
)

from shards.retries import Retry

NO_CLASS = {"kind": "none"}


def labelled(count: int, start: int = 0, classes: int = 2) -> dict[str, bytes]:
    members = {}
    for number in range(start, start + count):
        members[f"{number:04d}.jpg"] = b"image %d" % number
        members[f"{number:04d}.cls"] = b"%d" % (number % classes)
    return members


def contents(root: Path, source_table, field: str = "image") -> dict[str, bytes]:
    """What the recorded ranges hold."""
    found = {}
    for row in rows(source_table):
        part = row["parts"][field]
        tar = (root / part["path"].decode()).read_bytes()
        assert part["size"] == part["length"]
        found[row["uri"]] = tar[part["offset"] : part["offset"] + part["length"]]
    return found


def test_members_of_a_key_are_a_sample_with_its_class(tmp_path):
    tar = make_tar(tmp_path / "a.tar", labelled(6, classes=3))
    source_table = listed(tar)
    assert source_table.classes == ("0", "1", "2")
    assert source_table.roots == {"train": str(tmp_path)}
    assert classes_of(source_table)["train/a.tar/0004"] == "1"
    assert contents(tmp_path, source_table) == {
        f"train/a.tar/{n:04d}": b"image %d" % n for n in range(6)
    }
    assert [set(row["parts"]) for row in rows(source_table)] == [{"image"}] * 6
    assert refused(source_table) == {}


def test_labels_have_the_names_that_listings_give_them(tmp_path):
    values = [True, "True", 1.0, 1, "1.0", "007", float("nan"), [1]]
    members = {f"{n}.json": json.dumps({"label": value}).encode() for n, value in enumerate(values)}
    members |= {f"{n}.jpg": b"x" for n in range(9)} | {"8.cls": b"1.0\n"}
    source_table = listed(make_tar(tmp_path / "a.tar", members))
    assert classes_of(source_table) == {
        f"train/a.tar/{n}": name
        for n, name in enumerate(["true", "true", "1", "1", "1", "007"])
    } | {"train/a.tar/8": "1"}  # fmt: skip
    assert set(refused(source_table)) == {"train/a.tar/6", "train/a.tar/7"}


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_style_and_long_names_are_read(tmp_path, style):
    folder = "f" * 90 + "/" + "g" * 60
    members = {f"{folder}/é{n}.image.png": b"%d" % n for n in range(3)}
    if style != tarfile.USTAR_FORMAT:
        members = {f"{'l' * 300}/{name}": data for name, data in members.items()}
    make_tar(tmp_path / "a.tar", members, format=style)
    source_table = listed(tmp_path / "a.tar", target=NO_CLASS)
    found = contents(tmp_path, source_table)
    assert sorted(found.values()) == [b"0", b"1", b"2"]
    assert all(f"{folder}/é" in uri and uri[-1].isdigit() for uri in found)


def test_modalities_labels_and_targets_are_told_by_extension(tmp_path):
    members = {
        "x/1.jpg": b"i", "x/1.flac": b"a", "x/1.txt": b"t", "x/1.json": b'{"label": "owl"}',
        "x/2.image.png": b"i", "x/2.audio.ogg": b"a", "x/2.text.md": b"t", "x/2.cls": b"cat",
        "x/2.json": b'{"label": "no"}', "x/2.other": b"?",
    }  # fmt: skip
    make_tar(tmp_path / "a.tar", members)
    source_table = listed(tmp_path / "a.tar", ("image", "audio", "text"))
    assert classes_of(source_table) == {"train/a.tar/x/1": "owl", "train/a.tar/x/2": "cat"}
    assert contents(tmp_path, source_table, "text") == dict.fromkeys(uris(source_table), b"t")
    masks = make_tar(tmp_path / "m.tar", {"1.jpg": b"i", "1.mask.png": b"m", "2.jpg": b"i"})
    source_table = listed(masks, target={"kind": "mask"})
    assert contents(tmp_path, source_table, "mask") == {"train/m.tar/1": b"m"}
    assert refused(source_table) == {"train/m.tar/2": "it has no mask"}


def test_numbers_are_classes_named_in_the_configuration(tmp_path):
    make_tar(tmp_path / "a.tar", labelled(4))
    source_table = listed(tmp_path / "a.tar", target={"classes": ["cat", "owl", "emu"]})
    assert source_table.classes == ("cat", "owl", "emu")
    assert classes_of(source_table)["train/a.tar/0001"] == "owl"
    make_tar(tmp_path / "b.tar", labelled(12, classes=12))
    message = refusal(tmp_path / "b.tar", target={"classes": ["cat", "owl", "emu"]})
    assert message.startswith("data.target.classes: has 3 names, and a sample has class ")
    assert listed(tmp_path / "b.tar").classes[9:] == ("9", "10", "11")


def test_many_tars_by_brace_glob_or_folder(tmp_path):
    for number in range(12):
        make_tar(tmp_path / "set" / f"s-{number:02d}.tar", labelled(2, start=2 * number))
    make_tree(tmp_path / "set", "README.md")
    braces = listed(tmp_path / "set" / "s-{00..11}.tar")
    assert len(uris(braces)) == 24 and braces.roots == {"train": str(tmp_path / "set")}
    assert uris(listed(tmp_path / "set" / "s-*.tar")) == uris(braces)
    folder = listed(tmp_path / "set", layout="tars")
    assert uris(folder) == uris(braces)
    assert folder.state_digest == braces.state_digest
    part = listed(
        tmp_path / "set" / "s-{00..03}.tar", validation=str(tmp_path / "set/s-0{4,5}.tar")
    )
    assert part.counts() == {"train": 8, "validation": 4}
    message = refusal(tmp_path / "set" / "s-{00..12}.tar")
    assert message.endswith(f"no such file: {tmp_path}/set/s-12.tar")
    assert "is not a range" in refusal(tmp_path / "set" / "s-{5..1}.tar")
    assert "names no .tar file" in refusal(tmp_path / "set" / "t-*.tar")
    assert "give data.layout=tars" in refusal(tmp_path / "set")


def test_a_tar_that_a_network_does_not_give_ends_the_run_lest_its_samples_be_lost(
    tmp_path, monkeypatch
):
    data = make_tar(tmp_path / "a.tar", labelled(4)).read_bytes()
    memory = fsspec.filesystem("memory")
    for name in ("a", "b"):
        memory.pipe(f"/half-there/{name}.tar", data)
    plain = MemoryFileSystem._open

    class ServerGoneError(Exception):
        """As networks' libraries raise it: no OSError."""

    def broken(self, path, *args, **options):
        if path.endswith("b.tar"):
            raise ServerGoneError("memory://half-there/b.tar")
        return plain(self, path, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", broken)
    monkeypatch.setattr(
        "pipeline.preprocess.sources.parts.RETRY", Retry(attempts=2, first_delay=0.0)
    )
    assert refusal("memory://half-there/{a,b}.tar") == (
        "data.train=memory://half-there/{a,b}.tar: b.tar: cannot be read (ServerGoneError: "
        "memory://half-there/b.tar); samples are read as ranges of their tar, which the server "
        "must give"
    )


def test_a_server_of_tars_may_fail_once_but_must_know_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.preprocess.sources.parts.RETRY", Retry(4, first_delay=0.05))
    make_tar(tmp_path / "a.tar", labelled(9))
    for failing in range(1, 7):
        with ShardServer(tmp_path) as server:
            server.fails = lambda path, times, failing=failing: 503 if times == failing else None
            assert len(uris(listed(f"{server.url}/a.tar"))) == 9
    with ShardServer(tmp_path) as server:
        server.knows_ranges = False
        server.fails = lambda path, times: 503 if times > 2 else None
        message = refusal(f"{server.url}/a.tar")
    assert message.startswith(f"data.train={server.url}/a.tar: a.tar: cannot be read (")
    assert message.endswith("which the server must give")


def test_tars_may_lie_at_any_url(tmp_path):
    make_tar(tmp_path / "a.tar", labelled(4))
    fsspec.filesystem("memory").pipe("/tars/a.tar", (tmp_path / "a.tar").read_bytes())
    source_table = listed("memory://tars/a.tar")
    assert source_table.roots == {"train": "memory:///tars"}
    assert uris(source_table) == uris(listed(tmp_path / "a.tar"))


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst", "s-{0..9}.tar.bz2"])
def test_compressed_tars_are_refused(tmp_path, name):
    assert refusal(tmp_path / name) == (
        f"data.train={tmp_path / name}: is compressed, and samples are read as ranges of a tar; "
        "unpack it to .tar first"
    )


# --- damaged and hostile ---


def test_the_good_part_of_a_damaged_tar_is_used(tmp_path):
    make_tar(tmp_path / "good.tar", labelled(4))
    whole = make_tar(tmp_path / "bad.tar", labelled(8)).read_bytes()
    at = whole.index(b"0005.jpg")
    for damaged, message in {
        whole[: at + 100]: f"it is cut short at byte {at + 100}",
        whole[: at + 514]: f"the member at byte {at} has 7 bytes, and 2 are left",
        whole[:at]: f"it ends at byte {at} without an end mark",
        whole[:at] + b"!" + whole[at + 1 :]: f"the checksum of the header at byte {at} is wrong",
    }.items():
        (tmp_path / "bad.tar").write_bytes(damaged)
        source_table = listed(tmp_path / "{good,bad}.tar")
        assert refused(source_table) == {
            "train/bad.tar": f"damaged: {message}; what lies before is used"
        }
        assert len(uris(source_table)) == 9


def test_a_tar_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "b.tar").write_bytes(b"")
    message = refusal(tmp_path / "{a,b}.tar")
    assert (
        "no sample is in its tars, for example 'a.tar': damaged: no tar header at byte 0" in message
    )
    assert "'b.tar': damaged: it ends at byte 0 without an end mark" in message


def test_links_devices_and_sparse_members_are_refused_and_names_are_no_paths(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in [
            ("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE), ("zero.jpg", tarfile.CHRTYPE),
            ("sparse.jpg", tarfile.GNUTYPE_SPARSE), ("odd.jpg", b"?"), ("dir.jpg", tarfile.DIRTYPE),
        ]:  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in ("../../up.jpg", "/etc/abs.jpg", "new\nline.jpg", ".hidden", "noextension"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"good"))
    source_table = listed(tmp_path / "a.tar", target=NO_CLASS)
    assert contents(tmp_path, source_table) == dict.fromkeys(
        ["train/a.tar/../../up", "train/a.tar//etc/abs", "train/a.tar/new\nline"], b"good"
    )
    assert set(paths(source_table).values()) == {"a.tar"}
    assert refused(source_table) == {
        "train/a.tar/link.jpg": "a symbolic link in a tar",
        "train/a.tar/hard.jpg": "a hard link in a tar",
        "train/a.tar/pipe.jpg": "a pipe in a tar",
        "train/a.tar/zero.jpg": "a device in a tar",
        "train/a.tar/sparse.jpg": "a sparse file in a tar",
        "train/a.tar/odd.jpg": "of an unknown kind in a tar",
    }


def header(name: bytes, size: int, kind: bytes = b"0", size_field: bytes | None = None) -> bytes:
    """A tar header that claims whatever it likes."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = size_field or b"%011o\0" % size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (header(b"x.jpg", 0o7777777777), "has 1073741823 bytes, and 1024 are left"),
        (header(b"x", 10, b"x", b"\x80" + b"\xff" * 11), "are left"),
        (header(b"x", 10, b"0", b"\xff" * 12), "has a negative length"),
        (header(b"x", 10, b"0", b"12345678xyz\0"), "has no length"),
        (header(b"x", 600, b"x"), "the extended header at byte 1536 is damaged"),
        (header(b"x", 20, b"x") + b"9999999 path=x\n".ljust(512, b"\0"), "is damaged"),
        (header(b"x", 11, b"x") + b"11 size=-1\n".ljust(512, b"\0") + header(b"y.jpg", 4),
         "has no length"),
    ],
)  # fmt: skip
def test_hostile_headers_end_a_tar_and_nothing_else(tmp_path, hostile, message):
    good = header(b"a.jpg", 4) + b"good".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(good + hostile + bytes(1024))
    source_table = listed(tmp_path / "a.tar", target=NO_CLASS)
    assert contents(tmp_path, source_table) == {"train/a.tar/a": b"good"}
    assert message in refused(source_table)["train/a.tar"]


def test_a_long_extended_header_is_not_read(tmp_path):
    good = header(b"a.jpg", 4) + b"good".ljust(512, b"\0")
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(good + header(b"x", 4 << 30, b"x"))
        file.truncate(5 << 30)  # sparse: takes no room
    source_table = listed(tmp_path / "a.tar", target=NO_CLASS)
    assert "has 4294967296 bytes, more than 1048576" in refused(source_table)["train/a.tar"]


def test_keys_that_come_twice_and_labels_that_are_none_are_refused(tmp_path):
    members = labelled(4) | {"0001.png": b"again", "0007.cls": b"1", "0002.cls": b"", "8.jpg": b""}
    members |= {"9.jpg": b"x", "9.json": json.dumps({"label": [1]}).encode()}
    make_tar(tmp_path / "a.tar", members)
    source_table = listed(tmp_path / "{a,a}.tar", target={"classes": ["0", "1"]})
    assert refused(source_table) == {
        "train/a.tar/0001": "two files of its name are image",
        "train/a.tar/0002": "it has no class: neither .cls nor 'label' in .json",
        "train/a.tar/0002.cls": "holds 0 bytes, and no class",
        "train/a.tar/0007": "none of its files is image",
        "train/a.tar/8": "it has no class: neither .cls nor 'label' in .json",
        "train/a.tar/9": "it has no class: neither .cls nor 'label' in .json",
    }
    assert len(uris(source_table)) == 2
