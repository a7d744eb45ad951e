"""Which files are predicted, and how predictions are written."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.folders import folder_at
from pipeline.errors import UserError
from pipeline.registry.predict_inputs import list_inputs, local_files
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


# --- which files to predict ---


@pytest.fixture
def media_folder(tmp_path) -> Path:
    root = tmp_path / "media"
    for name in ("b.png", "a/2.png", "a/1.png", ".hidden.png", ".git/x.png", "a/.cache/y.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_folders_give_their_files_sorted_and_files_themselves(media_folder):
    found = list_inputs([str(media_folder / "b.png"), str(media_folder)])
    names = [str(Path(path).relative_to(media_folder)) for path in found]
    assert names == ["b.png", "a/1.png", "a/2.png", "b.png"]
    assert list_inputs([str(media_folder / ".hidden.png")]) == [media_folder / ".hidden.png"]


@pytest.mark.parametrize("given", [".", "..", "../media", "{root}/.git/../a"])
def test_a_folder_may_be_named_by_dots(media_folder, monkeypatch, given):
    monkeypatch.chdir(media_folder / "a" if given == ".." else media_folder)
    found = list_inputs([given.format(root=media_folder)])
    assert [Path(path).name for path in found][:2] == ["1.png", "2.png"]


def test_a_hidden_folder_may_be_given(media_folder):
    assert list_inputs([str(media_folder / ".git")]) == [media_folder / ".git" / "x.png"]


def test_what_is_not_there_is_refused(media_folder):
    with pytest.raises(UserError, match=r"nowhere\.png: no such file or folder"):
        list_inputs([str(media_folder), str(media_folder / "nowhere.png")])
    (media_folder / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no files there"):
        list_inputs([str(media_folder / "empty")])


def test_files_at_a_url_are_read_as_copies_and_named_by_their_address(tmp_path: Path) -> None:
    home: Any = folder_at(f"memory://{tmp_path.name}")
    for name in ("b.png", "a.png", ".hidden.png", "deep/a.png", ".git/x.png"):
        home.fs.pipe_file(f"{home.path}/{name}", name.encode())
    found = list_inputs([str(home), f"{home}/a.png"])
    expected = [f"{home}/{name}" for name in ("a.png", "b.png", "deep/a.png", "a.png")]
    assert [*map(str, found)] == expected
    with local_files(found) as local:
        assert [path.read_bytes() for path in local.paths[:3]] == [
            b"a.png",
            b"b.png",
            b"deep/a.png",
        ]
        answers = [
            ClassPrediction.unusable(f"{path}:3", f"{path}: is no picture") for path in local.paths
        ]
        named = [*map(local.named, answers)]
    assert [each.source for each in named] == [f"{address}:3" for address in expected]
    assert [each.error for each in named] == [f"{address}: is no picture" for address in expected]
    assert not local.paths[0].exists()
    with pytest.raises(UserError, match="nothing: no such file or folder"):
        list_inputs([f"{home}/nothing"])
