"""Which files are predicted, and how predictions are written."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.inference import Prediction
from pipeline.predict import list_inputs, write_predictions

# --- predictions as files ---

PREDICTIONS = [
    Prediction("a, b.png", "cat", 0.75, {"cat": 0.75, "dog": 0.25}, None),
    Prediction("bytes[1]", None, None, None, "no image,\nreally"),
    Prediction("é.png", "dog", 1.0, {"cat": 0.0, "dog": 1.0}, None),
]


def test_predictions_are_written_as_json_lines(tmp_path):
    path = tmp_path / "deep" / "out.jsonl"
    write_predictions(PREDICTIONS, path)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [Prediction(**row) for row in rows] == PREDICTIONS
    assert [file.name for file in path.parent.iterdir()] == ["out.jsonl"]


def test_predictions_are_written_as_csv(tmp_path):
    path = tmp_path / "out.csv"
    write_predictions(PREDICTIONS, path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], row["label"], row["probability"], row["error"]) for row in rows] == [
        (
            p.source,
            p.label or "",
            "" if p.probability is None else str(p.probability),
            p.error or "",
        )
        for p in PREDICTIONS
    ]


def test_predictions_are_written_as_parquet(tmp_path):
    path = tmp_path / "out.parquet"
    write_predictions(PREDICTIONS, path)
    rows = pq.read_table(path).to_pylist()
    for row, prediction in zip(rows, PREDICTIONS, strict=True):
        assert dict(row.pop("probabilities")) == (prediction.probabilities or {})
        assert row == {
            "source": prediction.source,
            "label": prediction.label,
            "probability": prediction.probability,
            "error": prediction.error,
        }


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_an_older_file_is_replaced(tmp_path, kind):
    path = tmp_path / f"out.{kind}"
    write_predictions(PREDICTIONS, path)
    size = path.stat().st_size
    write_predictions(PREDICTIONS[:1], path)
    assert path.stat().st_size < size
    assert list(tmp_path.iterdir()) == [path]


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
