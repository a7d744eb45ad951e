"""Which files are predicted, and how predictions are written."""

import csv
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pipeline.config.folders import folder_at
from pipeline.errors import UserError
from pipeline.media import ImageFormat, MediaFormat, TextFormat
from pipeline.registry.predict_inputs import Input, Inputs
from pipeline.registry.predict_plan import Plan, read_plan, write_plan
from pipeline.registry.predict_reading import predict_inputs
from pipeline.registry.prediction_tables import encode_predictions
from pipeline.training.objectives.classification import ClassPrediction

# --- predictions as files ---

PREDICTIONS = [
    ClassPrediction("a, b.png", "cat", 0.75, {"cat": 0.75, "dog": 0.25}, None),
    ClassPrediction("bytes[1]", None, None, None, "no image,\nreally"),
    ClassPrediction("é.png", "dog", 1.0, {"cat": 0.0, "dog": 1.0}, None),
]


def test_predictions_are_written_as_json_lines():
    lines = encode_predictions(PREDICTIONS, ".jsonl", ClassPrediction).decode().splitlines()
    assert [ClassPrediction(**json.loads(line)) for line in lines] == PREDICTIONS


def test_predictions_are_written_as_csv():
    text = io.StringIO(
        encode_predictions(PREDICTIONS, ".csv", ClassPrediction).decode(), newline=""
    )
    assert [list(row.values()) for row in csv.DictReader(text)] == [
        ["a, b.png", "cat", "0.75", ""],
        ["bytes[1]", "", "", "no image,\nreally"],
        ["é.png", "dog", "1.0", ""],
    ]


def test_predictions_are_written_as_parquet():
    file = pa.BufferReader(encode_predictions(PREDICTIONS, ".parquet", ClassPrediction))
    rows = pq.read_table(file).to_pylist()
    for row in rows:
        row["probabilities"] = dict(row["probabilities"]) or None
    assert [ClassPrediction(**row) for row in rows] == PREDICTIONS


# --- which inputs there are, and in which order ---

IMAGES = ImageFormat(height=8, width=8, channels=1)


def listed(*given: str, media: MediaFormat = IMAGES) -> list[Input]:
    return list(Inputs(given, media))


@pytest.fixture
def media_folder(tmp_path) -> Path:
    root = tmp_path / "media"
    names = ("b.png", "a/2.png", "a/1.png", "a.png", ".hidden.png", ".git/x.png", "a/.cache/y.png")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_folders_give_their_files_sorted_and_files_themselves(media_folder):
    found = listed(str(media_folder / "b.png"), str(media_folder))
    names = [str(Path(each.source).relative_to(media_folder)) for each in found]
    assert names == ["b.png", "a/1.png", "a/2.png", "a.png", "b.png"]
    assert names[1:] == [
        str(path.relative_to(media_folder))
        for path in sorted(media_folder.rglob("*.png"))
        if not any(part.startswith(".") for part in path.relative_to(media_folder).parts)
    ]
    (hidden,) = listed(str(media_folder / ".hidden.png"))
    assert hidden.path == str(media_folder / ".hidden.png")


@pytest.mark.parametrize("given", [".", "..", "../media", "{root}/.git/../a"])
def test_a_folder_may_be_named_by_dots(media_folder, monkeypatch, given):
    monkeypatch.chdir(media_folder / "a" if given == ".." else media_folder)
    found = listed(given.format(root=media_folder))
    assert [Path(each.source).name for each in found][:2] == ["1.png", "2.png"]


def test_a_hidden_folder_may_be_given(media_folder):
    (found,) = listed(str(media_folder / ".git"))
    assert found.source == str(media_folder / ".git" / "x.png")


def test_what_is_not_there_is_refused(media_folder):
    with pytest.raises(UserError, match=r"nowhere\.png: no such file or folder"):
        listed(str(media_folder), str(media_folder / "nowhere.png"))
    with pytest.raises(UserError, match="nothing: no such file or folder"):
        listed("memory://nothing")
    with pytest.raises(UserError, match=r"x\{0\.\.1\}\.tar: no such file"):
        listed(str(media_folder / "x{0..1}.tar"))


def test_a_pipe_in_a_folder_is_passed_over_and_a_link_to_a_file_is_followed(media_folder):
    os.mkfifo(media_folder / "a" / "pipe")
    (media_folder / "a" / "link.png").symlink_to(media_folder / "b.png")
    (media_folder / "a" / "loop").symlink_to(media_folder)
    names = [Path(each.source).name for each in listed(str(media_folder / "a"))]
    assert names == ["1.png", "2.png", "link.png"]


def contents(inputs: Inputs) -> list[bytes | str]:
    """The bytes of each input, or why it cannot be read, as a model would get them."""

    class Echo:
        card = SimpleNamespace(objective=SimpleNamespace(prediction=ClassPrediction))

        def predict(self, items: list[Any]) -> list[ClassPrediction]:
            data = [item.read_bytes() if isinstance(item, Path) else item for item in items]
            return [ClassPrediction("", each.decode(), 1.0, None, None) for each in data]

    model: Any = Echo()
    found = [each for some in predict_inputs(model, iter(inputs), inputs.roots) for each in some]
    return [each.error if each.error is not None else str(each.label).encode() for each in found]


def test_objects_are_listed_in_the_order_of_files_and_named_by_their_address(
    tmp_path: Path,
) -> None:
    home: Any = folder_at(f"memory://{tmp_path.name}")
    for name in ("b.png", "a.png", ".hidden.png", "a/z.png", ".git/x.png"):
        home.fs.pipe_file(f"{home.path}/{name}", name.encode())
    inputs = Inputs([str(home), f"{home}/a.png"], IMAGES)
    expected = [f"{home}/{name}" for name in ("a/z.png", "a.png", "b.png", "a.png")]
    assert [each.source for each in inputs] == expected
    assert contents(inputs) == [b"a/z.png", b"a.png", b"b.png", b"a.png"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_listing_gives_its_rows_whose_paths_are_relative_to_its_folder(
    media_folder, suffix
) -> None:
    (media_folder / "b.png").write_bytes(b"b")
    table = pa.table({"n": [1, 2, 3, 4], "image": ["b.png", None, "a/1.png", "a/nothing.png"]})
    listing = media_folder / f"list{suffix}"
    if suffix == ".csv":
        pyarrow.csv.write_csv(table, listing)
    elif suffix == ".parquet":
        pq.write_table(table, listing)
    else:
        listing.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    found = listed(str(listing))
    sources = ["b.png", f"{listing}:row 2", "a/1.png", "a/nothing.png"]
    assert [each.source for each in found] == sources
    assert [each.error for each in found] == [None, "column 'image' is empty", None, None]
    assert found[0].path == str(media_folder / "b.png")
    with pytest.raises(UserError, match="no column 'image'"):
        (media_folder / "other.csv").write_text("file\nb.png\n")
        listed(str(media_folder / "other.csv"))


def test_rows_that_name_addresses_elsewhere_or_with_passwords_are_errors(tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text("image\nhttps://u:pass@h/x.png\nmemory://elsewhere/x.png\n")
    secret, elsewhere = contents(Inputs([str(listing)], IMAGES))
    assert "holds a password" in str(secret)
    assert "lies outside the listing's folder" in str(elsewhere)
    assert "pass" not in " ".join(f"{each.source}{each.path}" for each in listed(str(listing)))


def test_inline_content_of_a_listing_is_the_input(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"one", b"two"]}), tmp_path / "a.parquet")
    inputs = Inputs([str(tmp_path / "a.parquet")], IMAGES)
    assert contents(inputs) == [b"one", b"two"]
    (tmp_path / "b.jsonl").write_text('{"text": "hello"}\n')
    assert contents(Inputs([str(tmp_path / "b.jsonl")], TextFormat(max_length=8))) == [b"hello"]


def test_tars_give_their_members_of_the_modality_in_order(tmp_path: Path) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for name in ("b.png", "b.cls", "deep/a.jpg", "note.txt"):
                member = tarfile.TarInfo(name)
                member.size = len(name)
                tar.addfile(member, io.BytesIO(name.encode()))
            link = tarfile.TarInfo("c.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    inputs = Inputs([str(tmp_path / "{0..1}.tar")], IMAGES)
    names = [
        f"{tmp_path}/{n}.tar/{name}" for n in range(2) for name in ("b.png", "deep/a.jpg", "c.png")
    ]
    assert [each.source for each in inputs] == names
    assert contents(inputs) == [b"b.png", b"deep/a.jpg", "a symbolic link in a tar"] * 2
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:1600])
    *_, last = listed(str(tmp_path / "1.tar"))
    assert last.error is not None and last.error.startswith("damaged: ")


# --- a plan on disk ---


def test_a_plan_gives_every_input_back_and_its_digest_tells_them_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.registry.predict_plan.PART_INPUTS", 2)
    inputs = [
        Input("a", path="a/\udcff.png", stamp="1:2"),
        Input("b", path="x.tar", root=0, offset=512, length=3),
        Input("c", row={"x": 1.5, "c": "r", "gone": None, "f": Path("/p/\udcff"), "t": b"\xff"}),
        Input("d", content=b"\xff\x00"),
        Input("e", error="why"),
    ]

    def planned(inputs: list[Input]) -> Plan:
        class Given(Inputs):
            def __iter__(self) -> Iterator[Input]:
                return iter(inputs)

        return write_plan(Given([], IMAGES, ["root"]), tmp_path)

    plan = planned(inputs)
    assert (plan.parts, plan.inputs, plan.roots) == (3, 5, ("root",))
    assert [each for part in range(3) for each in read_plan(tmp_path, part)] == inputs
    assert planned(inputs) == plan
    digests = {
        planned([replace(inputs[0], stamp="1:3"), *inputs[1:]]).digest,
        planned([inputs[1], inputs[0], *inputs[2:]]).digest,
        planned(inputs[:4]).digest,
    }
    assert len(digests | {plan.digest}) == 4
