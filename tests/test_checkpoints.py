"""Checkpoints of a training: whole or not there, the best and the last kept."""

import hashlib
import json
import math
import resource

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.training.checkpoint_files import Checkpoint, TrainState
from pipeline.training.checkpoints import (
    best_checkpoint,
    choose_checkpoint,
    last_checkpoint,
    list_checkpoints,
    list_names,
    read_checkpoint,
    save_checkpoint,
)


def save(folder, step: int, score: float | None = None, **state: object) -> Checkpoint:
    weights = {"head.weight": torch.full((2, 3), float(step))}
    moments = {"exp_avg.head.weight": torch.rand(2, 3), "exp_avg_sq.head.weight": torch.rand(2, 3)}
    return save_checkpoint(folder, TrainState(step=step, score=score, **state), weights, moments)


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
    for expected, found in zip((weights, moments), read.load(), strict=True):
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


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


def test_what_a_killed_save_left_is_passed_over(tmp_path):
    save(tmp_path, 1, score=0.5)
    killed = tmp_path / ".step-00000002.4711"
    killed.mkdir()
    (killed / "model.safetensors").write_bytes(b"half a fi")
    (killed / "state.json").write_text("{}")
    (tmp_path / "step-00000003").mkdir()
    assert steps(tmp_path) == [1]
    save(tmp_path, 2, score=0.6)
    assert steps(tmp_path) == [1, 2]
    assert not list(tmp_path.glob(".step-00000002.[!4]*"))


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


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_damaged_tensor_file_is_refused_by_name(tmp_path, name):
    checkpoint = save(tmp_path, 1)
    path = checkpoint.path / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{name}: sha256 differs from state.json"):
        checkpoint.load()
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        checkpoint.load()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"sha256": {}}', '{"sha256": {}, "sums": [], "stp": 1}']
)
def test_a_damaged_state_is_refused_by_name(tmp_path, text):
    checkpoint = save(tmp_path, 1)
    (checkpoint.path / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"step-00000001/state\.json: damaged .*delete that folder"):
        read_checkpoint(checkpoint.path)
    assert last_checkpoint(tmp_path) is None
    with pytest.raises(UserError, match=r"damaged .* no other checkpoint there is whole.*--fresh"):
        choose_checkpoint(tmp_path, list_names(tmp_path))
    whole = save(tmp_path, 0)
    chosen, (note,) = choose_checkpoint(tmp_path, list_names(tmp_path))
    assert chosen is not None and chosen.checkpoint == whole
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
    written = save(tmp_path, 2).path
    for name, content in (("model", weights), ("optimizer", moments)):
        save_file(content, written / f"{name}.safetensors")
    state = json.loads((written / "state.json").read_text())
    state["sha256"] = {
        name: hashlib.sha256((written / name).read_bytes()).hexdigest() for name in state["sha256"]
    }
    (written / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=f"{where} is not finite; this checkpoint cannot be used"):
        read_checkpoint(written).load()
    chosen, (note,) = choose_checkpoint(tmp_path, list_names(tmp_path))
    assert chosen is not None and chosen.state.step == 1
    assert "going on from step-00000001" in note


def test_where_there_is_no_checkpoint_none_is_read(tmp_path):
    with pytest.raises(UserError, match="nothing: no checkpoint there"):
        read_checkpoint(tmp_path / "nothing")
