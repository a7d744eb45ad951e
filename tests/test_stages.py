"""Records of stages that are done."""

import json

import pytest

from pipeline.errors import UserError
from pipeline.runs.records import RunRecord, read_run_record, write_run_record


def test_a_record_comes_back_as_it_was(tmp_path):
    assert read_run_record(tmp_path, "train") is None
    record = RunRecord("train", {"seed": 1, "shards": "ab"}, {"score": 0.5}, 1.5, done=True)
    write_run_record(tmp_path, record)
    assert read_run_record(tmp_path, "train") == record
    assert read_run_record(tmp_path, "tune") is None
    assert [path.name for path in (tmp_path / "stages").iterdir()] == ["train.json"]


def test_changed_settings_are_named():
    record = RunRecord("train", {"seed": 1, "epochs": 2}, {})
    record.refuse_changes({"epochs": 2, "seed": 1}, "runs/x")
    with pytest.raises(UserError) as caught:
        record.refuse_changes({"epochs": 3, "precision": "bf16"}, "runs/x")
    assert str(caught.value).startswith(
        "runs/x was made with other settings: epochs was 2, is 3; precision was None, is 'bf16'; "
        "seed was 1, is None. Give this one another name"
    )
    with pytest.raises(UserError, match="and 2 more"):
        record.refuse_changes({str(number): number for number in range(3)}, "runs/x")


@pytest.mark.parametrize("text", ["", "[1]", json.dumps({"name": "train", "unknown": 1})])
def test_a_damaged_record_is_refused_by_name(tmp_path, text):
    write_run_record(tmp_path, RunRecord("train", {}, {}))
    (tmp_path / "stages" / "train.json").write_text(text)
    with pytest.raises(UserError, match=r"stages/train\.json: damaged .*--fresh"):
        read_run_record(tmp_path, "train")
