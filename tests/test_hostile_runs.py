"""Checkpoints, records and class names that say what they like."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from saved_checkpoints import part_of, save_as_before, save_checkpoint

from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.runs.records import RunRecord, read_run_record, recorded_folder, write_run_record
from pipeline.training.checkpoint_files import TrainState, load_weights
from pipeline.training.checkpoints import list_checkpoints, read_checkpoint
from pipeline.training.progress import PROGRESS_FILE, read_progress
from pipeline.tuning.journal import StudyJournal
from pipeline.tuning.journal_lines import JOURNAL_FILE

WEIGHTS = {"head.weight": torch.ones(2, 3)}
MOMENTS = {"exp_avg.head.weight": torch.ones(2, 3), "exp_avg_sq.head.weight": torch.ones(2, 3)}
HEX = "0" * 64
PART = "weights-0a1b2c3d-00000-of-00001.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint of an older version, with names that do not change."""
    state = TrainState(step=5)
    return save_as_before(tmp_path / "run", state, model=WEIGHTS, optimizer=MOMENTS).path


def read(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    checkpoint.check()
    checkpoint.check_layout()


def put(folder: Path, field: str, value: Any) -> None:
    content = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(content | {field: value}))


FIELDS = [
    *(("sha256", bad) for bad in [
        {}, [], None, {"model.safetensors": HEX}, {"/etc/passwd": HEX}, {"../../secret": HEX},
        {"model.safetensors": HEX, "optimizer.safetensors": HEX, "../../secret": HEX},
        {"model.safetensors": "../x", "optimizer.safetensors": HEX},
        {"model.safetensors": 5, "optimizer.safetensors": HEX}]),
    *(("parts", bad) for bad in [
        {}, [], None, "x", {PART: None}, {PART: {}}, {PART: {"sha256": HEX}},
        {PART: {"sha256": HEX, "bytes": -1}}, {PART: {"sha256": HEX, "bytes": 1 << 80}},
        {PART: {"sha256": "../x", "bytes": 1}}, {PART: {"sha256": HEX, "bytes": 1, "more": 1}},
        {f"../{PART}": {"sha256": HEX, "bytes": 1}}, {f"{PART}\n": {"sha256": HEX, "bytes": 1}},
        {"model.safetensors": {"sha256": HEX, "bytes": 1}}]),
    *((field, bad) for field in ("step", "epoch", "samples")
      for bad in [-1, 1.5, "5", None, True, 1 << 80, []]),
    *(("metrics", bad) for bad in [5, [], {"a/b": 1}, {"\x1b": 1}, {"a": "x"}, {"a": True},
                                    {"a": 10**400}]),
    *(("score", bad) for bad in ["0.5", [], True, float("nan"), float("inf"), 10**400]),
    *((field, bad) for field in ("sums", "scores") for bad in [
        "12", 5, None, [None], [float("nan")], [10**400]]),
    *(("window", bad) for bad in [0, -1, "all", 1.5, True, []]),
    ("more", 1),
    ("__class__", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "bad"), FIELDS)
def test_a_checkpoint_s_state_is_checked_field_by_field(folder: Path, field: str, bad: Any) -> None:
    put(folder, field, bad)
    with pytest.raises(UserError, match=r"state\.json: damaged"):
        read_checkpoint(folder)
    assert list_checkpoints(folder.parent) == []


def test_json_that_is_nested_without_end_is_refused(folder: Path) -> None:
    (folder / "state.json").write_bytes(b"[" * 100_000)
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(folder)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "link", "device"])
def test_a_checkpoint_has_regular_files_only(
    folder: Path, tmp_path: Path, name: str, kind: str
) -> None:
    path = folder / name
    path.rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "elsewhere" if kind == "link" else "/dev/zero")
    with pytest.raises(UserError, match="regular files"):
        read(folder)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_part_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    checkpoint = save_checkpoint(tmp_path / "run", TrainState(step=5), WEIGHTS, MOMENTS)
    path = part_of(checkpoint, "optimizer")
    path.rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"regular files|sha256 differs"):
        read(checkpoint.path)


def seal(folder: Path) -> None:
    """Makes the state's checksums fit the files."""
    import hashlib

    names = ("model.safetensors", "optimizer.safetensors")
    put(folder, "sha256", {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names
    })  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("model", {"head.weight": torch.ones(2, 3).double()}, "F64"),
        ("model", {"head.weight": torch.ones(2, 3).bfloat16()}, "BF16"),
        ("model", {"head.weight": torch.ones(2, 3).to(torch.complex64)}, "C64"),
        ("optimizer", {"exp_avg.other": torch.ones(2, 3)}, "does not belong"),
        ("optimizer", {"exp_avg.head.weight": torch.ones(3, 2)}, "does not belong"),
        ("optimizer", {"head.weight": torch.ones(2, 3)}, "does not belong"),
    ],
)
def test_tensors_of_another_kind_are_refused(
    folder: Path, name: str, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, folder / f"{name}.safetensors")
    seal(folder)
    with pytest.raises(UserError, match=message):
        read(folder)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 100, (1 << 60).to_bytes(8, "little"), b"\x02" + bytes(7) + b"{}x"]
)
def test_what_is_no_safetensors_file_is_one_line(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    seal(folder)
    with pytest.raises(UserError) as refusal:
        read(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "other tensors"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(9)}, "the shape"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(3), "more": torch.ones(1)}, "more"),
    ],
)
def test_weights_of_another_model_are_named(weights: dict[str, torch.Tensor], message: str) -> None:
    model = torch.nn.Linear(2, 3)
    before = model.weight.clone()
    with pytest.raises(UserError, match=message):
        load_weights(model, weights, "here")
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "tune"},
        {"fingerprint": 5},
        {"result": []},
        {"seconds": "1"},
        {"seconds": -1},
        {"seconds": True},
        {"seconds": float("inf")},
        {"seconds": 10**400},
        {"name": None},
        {"done": 1},
        {"more": 1},
    ],
)
def test_a_record_is_checked_field_by_field(tmp_path: Path, change: dict[str, Any]) -> None:
    write_run_record(tmp_path, RunRecord("train", {}, {"checkpoint": "x"}, 1.0, True))
    assert read_run_record(tmp_path, "train") is not None
    path = tmp_path / "stages" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="damaged"):
        read_run_record(tmp_path, "train")


def test_json_without_end_is_one_line_in_every_file_of_a_run(tmp_path: Path) -> None:
    deep = b"[" * 100_000 + b"\n"
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "train.json").write_bytes(deep)
    with pytest.raises(UserError, match="damaged"):
        read_run_record(tmp_path, "train")
    (tmp_path / JOURNAL_FILE).write_bytes(deep * 2)
    with pytest.raises(UserError, match="line 1 is damaged"):
        StudyJournal(tmp_path)
    (tmp_path / PROGRESS_FILE).write_bytes(deep)
    assert read_progress(tmp_path) is None


@pytest.mark.timeout(30)
def test_a_record_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    os.mkfifo(tmp_path / "stages" / "train.json")
    with pytest.raises(UserError, match="regular files"):
        read_run_record(tmp_path, "train")


def test_a_record_names_no_folder_beside_its_run(tmp_path: Path) -> None:
    run, beside = tmp_path / "run", tmp_path / "run-2"
    for value in (str(beside), str(run), str(run / ".." / "run-2"), str(tmp_path)):
        with pytest.raises(UserError, match="is not a folder in"):
            recorded_folder(RunRecord("train", {}, {"checkpoint": value}), run, "checkpoint")
    run.mkdir()
    (run / "out").symlink_to("/etc")
    with pytest.raises(UserError, match="is not a folder in"):
        recorded_folder(RunRecord("train", {}, {"checkpoint": str(run / "out")}), run, "checkpoint")


@pytest.mark.parametrize("value", ["/etc", "../x", "", None, 5, ["x"], "a\0b"])
def test_a_record_names_only_a_folder_of_its_run(tmp_path: Path, value: Any) -> None:
    record = RunRecord("train", {}, {"best": {"checkpoint": value}})
    with pytest.raises(UserError, match=r"best\.checkpoint is not a folder in"):
        recorded_folder(record, tmp_path, "best", "checkpoint")
    inside = RunRecord("train", {}, {"checkpoint": str(tmp_path / "train" / "step-1")})
    assert recorded_folder(inside, tmp_path, "checkpoint") == tmp_path / "train" / "step-1"


def test_nothing_steers_the_terminal() -> None:
    file = io.StringIO()
    console = Console(file, file)
    hostile = "a\x1b[2Jb\x9bc\u202ed\x07e\rf"
    console.say(hostile)
    console.notice(hostile)
    console.table("t", ("split",), [(hostile,)])
    shown = file.getvalue()
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert shown.count(r"a\x1b[2Jb\x9bc\u202ed\x07e\rf") == 3
