"""Checkpoints of a training: whole or not there, the best and the last kept."""

import hashlib
import json
import math
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_checkpoints import load, part_of, save_as_before, save_checkpoint
from upath import UPath

from pipeline.errors import UserError
from pipeline.runs.storage import names
from pipeline.training.checkpoint_files import Checkpoint, TrainState
from pipeline.training.checkpoints import (
    best_checkpoint,
    choose_checkpoint,
    last_checkpoint,
    list_checkpoints,
    list_names,
    read_checkpoint,
)


def save(folder, step: int, score: float | None = None, **state: object) -> Checkpoint:
    weights = {"head.weight": torch.full((2, 3), float(step))}
    moments = {"exp_avg.head.weight": torch.rand(2, 3), "exp_avg_sq.head.weight": torch.rand(2, 3)}
    return save_checkpoint(folder, TrainState(step=step, score=score, **state), weights, moments)


def choose(folder) -> tuple[Checkpoint | None, list[str]]:
    return choose_checkpoint(folder, list_names(folder), Checkpoint.check)


def steps(folder) -> list[int]:
    return [checkpoint.state.step for checkpoint in list_checkpoints(folder)]


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = TrainState(
        step=7, epoch=2, samples=64, metrics={"validation.loss": 0.5}, score=0.75, sums=(1.0, 2.5)
    )
    weights = {"a": torch.randn(3, 4), "b": torch.tensor(2.0)}
    moments = {"exp_avg.a": torch.randn(3, 4), "exp_avg_sq.a": torch.rand(3, 4)}
    saved = save_checkpoint(tmp_path, state, weights, moments)
    read = read_checkpoint(tmp_path / "step-00000007")
    assert read == saved
    assert read.state == state
    for kind, expected in (("weights", weights), ("optimizer", moments)):
        found = load(read, kind)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not read.path.joinpath("model.safetensors").exists()


def test_a_checkpoint_of_an_older_version_is_read_like_a_new_one(tmp_path):
    weights = {"a": torch.randn(3, 4), "b": torch.tensor(2.0), "n": torch.arange(3)}
    moments = {"exp_avg.a": torch.randn(3, 4)}
    averaged = {name: tensor + 1 for name, tensor in weights.items()}
    state = TrainState(step=7, score=0.5)
    old = save_as_before(tmp_path / "old", state, model=weights, optimizer=moments, ema=averaged)
    new = save_checkpoint(tmp_path / "new", state, weights, moments, averaged)
    for kind in ("weights", "optimizer", "ema"):
        before, now = load(old, kind), load(new, kind)
        assert before.keys() == now.keys()
        assert all(torch.equal(before[name], now[name]) for name in before)
    old.check()
    old.check_layout()
    assert old.model_sha256() == new.model_sha256()
    assert old.model_sha256() == old.files["ema.safetensors"].sha256


def test_the_weights_are_written_into_one_file_as_safetensors_would(tmp_path):
    weights = {"b": torch.randn(3, 4), "a": torch.tensor(2.0), "n": torch.arange(3)}
    weights |= {"none": torch.zeros(0, 2), "mask": torch.tensor([True, False])}
    checkpoint = save_checkpoint(tmp_path, TrainState(step=1), weights, {})
    sha256 = checkpoint.export_model(tmp_path / "model.safetensors")
    save_file(weights, tmp_path / "whole.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    assert content == (tmp_path / "whole.safetensors").read_bytes()
    assert sha256 == checkpoint.model_sha256() == hashlib.sha256(content).hexdigest()
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    assert all(torch.equal(checkpoint.load_model()[name], loaded[name]) for name in loaded)


def test_the_weights_are_read_without_the_moments(tmp_path):
    checkpoint = save(tmp_path, 1)
    part_of(checkpoint, "optimizer").unlink()
    assert checkpoint.load_model().keys() == {"head.weight"}
    checkpoint.export_model(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"optimizer-.*: cannot be read"):
        checkpoint.check_layout()


def test_of_all_checkpoints_the_best_and_the_last_two_are_kept(tmp_path):
    kept = []
    for step, score in enumerate([0.2, 0.6, 0.4, None, 0.5, 0.6, None], start=1):
        save(tmp_path, step, score)
        kept.append(steps(tmp_path))
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [5, 6], [6, 7]]
    assert best_checkpoint(tmp_path).state.step == 6  # of equals the latest
    assert last_checkpoint(tmp_path).state.step == 7


def test_without_scores_the_last_is_the_best(tmp_path):
    assert last_checkpoint(tmp_path) is None and best_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert steps(tmp_path) == [2, 3]
    (tmp_path / "step-00000003").rename(tmp_path / "elsewhere")
    assert best_checkpoint(tmp_path).state.step == 2


def test_steps_are_ordered_as_numbers(tmp_path):
    save(tmp_path, 99_999_999, score=0.9)
    save(tmp_path, 100_000_000, score=0.1)
    assert last_checkpoint(tmp_path).state.step == 100_000_000
    assert best_checkpoint(tmp_path).state.step == 99_999_999


def test_a_step_may_be_saved_again(tmp_path):
    save(tmp_path, 3)
    save(tmp_path, 3, score=0.5)
    assert [c.state.score for c in list_checkpoints(tmp_path)] == [0.5]
    list_checkpoints(tmp_path)[0].check()


def test_what_a_killed_save_left_is_passed_over_and_removed(tmp_path):
    whole = save(tmp_path, 1, score=0.5)
    (whole.path / "weights-0badc0de-00000-of-00002.safetensors").write_bytes(b"half a fi")
    killed = tmp_path / "step-00000002"
    killed.mkdir()
    (killed / "weights-12345678-00000-of-00002.safetensors").write_bytes(b"half a fi")
    before = tmp_path / ".partial-step-00000003"  # an older version's
    before.mkdir()
    (before / "model.safetensors").write_bytes(b"half a fi")
    assert steps(tmp_path) == [1]
    save(tmp_path, 3, score=0.6)
    assert steps(tmp_path) == [1, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]
    assert {path.name for path in whole.path.iterdir()} == {"state.json", *whole.files}


def test_a_save_that_finds_no_room_says_so_and_leaves_nothing(tmp_path):
    save(tmp_path, 1, score=0.5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(UserError, match="step-00000002: cannot be written"):
            save_checkpoint(tmp_path, TrainState(step=2), {"w": torch.zeros(5000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("kind", ["weights", "optimizer"])
def test_a_damaged_part_is_refused_by_name(tmp_path, kind):
    checkpoint = save(tmp_path, 1)
    path = part_of(checkpoint, kind)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    checkpoint.check_layout()
    with pytest.raises(UserError, match=f"{path.name}: sha256 differs from state.json"):
        checkpoint.check()
    path.write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"{path.name}: sha256 differs.*it has [0-9]+ bytes"):
        checkpoint.check_layout()
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}: cannot be read"):
        checkpoint.check()


def test_parts_that_do_not_hold_a_tensor_whole_are_refused(tmp_path):
    checkpoint = save(tmp_path, 1)
    part = part_of(checkpoint, "weights")
    shapes = json.dumps({"head.weight": [2, 3]})
    for ranges in (
        {"head.weight@0": 5},
        {"head.weight@1": 5},
        {"head.weight@0": 6, "head.weight@5": 1},
    ):
        tensors = {name: torch.zeros(length) for name, length in ranges.items()}
        save_file(tensors, part, {"shapes": shapes})
        with pytest.raises(UserError, match=r"do not hold head\.weight whole, once"):
            checkpoint.tensors("weights")
    for name in ("head.weight", "head.weight@x", "other@0"):
        save_file({name: torch.zeros(6)}, part, {"shapes": shapes})
        with pytest.raises(UserError, match="is no range"):
            checkpoint.tensors("weights")
    save_file({"head.weight@0": torch.zeros(6, dtype=torch.float64)}, part, {"shapes": shapes})
    with pytest.raises(UserError, match="F64 and not float32"):
        checkpoint.tensors("weights")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"sha256": {}}',
        '{"sha256": {}, "sums": [], "stp": 1}',
        '{"step": 1, "parts": {}}',
        '{"step": 1, "parts": {"../weights.safetensors": {}}}',
        '{"step": 1, "parts": {"weights-00000000-00000-of-00001.safetensors": {"sha256": "0"}}}',
    ],
)
def test_a_damaged_state_is_refused_by_name(tmp_path, text):
    checkpoint = save(tmp_path, 1)
    (checkpoint.path / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"step-00000001/state\.json: damaged .*delete that folder"):
        read_checkpoint(checkpoint.path)
    assert last_checkpoint(tmp_path) is None
    with pytest.raises(UserError, match=r"damaged .* no other checkpoint there is whole.*--fresh"):
        choose(tmp_path)
    whole = save(tmp_path, 0)
    chosen, (note,) = choose(tmp_path)
    assert chosen is not None and chosen == whole
    assert "going on from step-00000000" in note
    assert (tmp_path / "damaged-step-00000001").is_dir()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["a.weight", "exp_avg_sq.a.weight"])
def test_what_is_not_finite_is_neither_saved_nor_loaded(tmp_path, where, value):
    tensors = {name: torch.zeros(2, 3) for name in ("a.weight", "exp_avg_sq.a.weight")}
    tensors[where][1, 2] = value
    weights, moments = ({n: t} for n, t in tensors.items())
    save(tmp_path, 1)
    told = f"{where} is not finite after step 2; lower training.learning_rate"
    with pytest.raises(UserError, match=told):
        save_checkpoint(tmp_path, TrainState(step=2), weights, moments)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    # As an older version may have saved it.
    written = save_as_before(tmp_path, TrainState(step=2), model=weights, optimizer=moments)
    with pytest.raises(UserError, match=f"{where} is not finite; this checkpoint cannot be used"):
        written.check()
    chosen, (note,) = choose(tmp_path)
    assert chosen is not None and chosen.state.step == 1
    assert "going on from step-00000001" in note


def test_a_part_with_a_value_that_is_not_finite_is_not_loaded(tmp_path):
    checkpoint = save(tmp_path, 1)
    part = part_of(checkpoint, "weights")
    content = bytearray(part.read_bytes())
    content[-4:] = torch.tensor([math.nan]).numpy().tobytes()
    part.write_bytes(content)
    state = json.loads((checkpoint.path / "state.json").read_text())
    state["parts"][part.name]["sha256"] = hashlib.sha256(content).hexdigest()
    (checkpoint.path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"head\.weight is not finite; this checkpoint cannot be"):
        read_checkpoint(checkpoint.path).load_model()


def test_checkpoints_in_object_storage_are_saved_kept_chosen_and_set_aside():
    folder = UPath("memory://bucket/run/checkpoints")
    assert steps(folder) == [] and choose(folder) == (None, [])
    (folder / "step-00000001" / "weights-12345678-00000-of-00001.safetensors").write_bytes(b"half")
    for step, score in ((2, 0.9), (3, 0.1), (4, 0.2), (5, None)):
        save(folder, step, score)
    assert names(folder) == ["step-00000002", "step-00000004", "step-00000005"]
    assert best_checkpoint(folder).state.step == 2
    last = last_checkpoint(folder)
    assert last.load_model()["head.weight"].eq(5).all()
    part = part_of(last, "optimizer")
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    chosen, (note,) = choose(folder)
    assert chosen.state.step == 4 and "going on from step-00000004" in note
    assert steps(folder) == [2, 4]
    assert (folder / "step-00000005" / "damaged.json").exists()
    save(folder, 5)  # the training has come to that step again
    assert steps(folder) == [2, 4, 5]
    again = read_checkpoint(folder / "step-00000005")
    assert names(again.path) == sorted(["state.json", *again.files])


def test_where_there_is_no_checkpoint_none_is_read(tmp_path):
    with pytest.raises(UserError, match="nothing: no checkpoint there"):
        read_checkpoint(tmp_path / "nothing")
