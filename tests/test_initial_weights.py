"""`model.init`: a training starts from weights, and trains a part of them or at other rates."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_checkpoints import load, save_checkpoint, sha256_of
from small_digits import digits_config
from trainings import cut_off_after, final_weights

from pipeline.config.load import with_values
from pipeline.config.sqlite_uri import sqlite_uri
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.initial_weights.sources import read_source
from pipeline.training.train import train

FEW_STEPS = {"training.epochs": 2, "training.learning_rate": 5e-3}


def from_source(config: Config, source: Path | str, **init: Any) -> Config:
    """The configuration with `model.init`."""
    return with_values(config, {"model.init": {"from": str(source), "strict": False, **init}})


@pytest.fixture(scope="module")
def database(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a database that the trainings of this file share."""
    copy = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    shutil.copy(empty_database, copy)
    return sqlite_uri(copy)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, database: str) -> Config:
    """A training on five digits."""
    folder = tmp_path_factory.mktemp("pretrained")
    values = {"training.epochs": 12, "tracking.uri": database}
    config = digits_config(folder, "five", (0, 1, 2, 3, 4), values)
    with (folder / "console.txt").open("w") as file:
        train(config, Console(file, file))
    return config


def test_fine_tuning_on_other_classes_beats_new_weights_after_as_many_steps(
    pretrained: Config, tmp_path: Path, console: Console
) -> None:
    values = FEW_STEPS | {"tracking.uri": pretrained.tracking_uri}
    scratch = digits_config(tmp_path, "scratch", (5, 6, 7), values)
    tuned = from_source(
        with_values(scratch, {"name": "tuned", "shards": scratch.shards_folder}), pretrained.folder
    )
    before = train(scratch, console)["metrics"]
    result = train(tuned, console)
    assert result["metrics"]["val_accuracy"] > 0.6 > 0.45 > before["val_accuracy"]
    init = result["init"]
    assert (init["loaded"], init["skipped"], init["new"]) == (len(final_weights(tuned)) - 2, 2, 0)

    shown = (tmp_path / "console.txt").read_text()
    assert "head.output.weight" in shown and "[5, 32] in the source" in shown
    run = client(tuned.tracking_uri).get_run(result["run_id"])
    assert run.data.tags["perceiver.init_sha256"] == init["sha256"]
    assert str(pretrained.folder) in run.data.tags["perceiver.init"]
    logged = json.loads(
        client(tuned.tracking_uri)
        .download_artifacts(run.info.run_id, "initial_weights.json", str(tmp_path))
        and (tmp_path / "initial_weights.json").read_text()
    )  # fmt: skip
    states = {tensor["name"]: tensor["state"] for tensor in logged["tensors"]}
    assert states["head.output.bias"] == "skipped"
    assert states["encoder.latents"] == "loaded"


def test_another_size_of_image_keeps_what_does_not_depend_on_it(
    pretrained: Config, tmp_path: Path, console: Console
) -> None:
    values = {"training.epochs": 1, "tracking.uri": pretrained.tracking_uri}
    config = digits_config(tmp_path, "small", (0, 1, 2, 3, 4), values, size=7)
    result = train(from_source(config, pretrained.folder), console)
    assert result["init"]["skipped"] == 1
    assert "[196, 16] in the source" in (tmp_path / "console.txt").read_text()


# --- frozen parameters and scaled learning rates ---

FREEZE = ["encoder.cross_attends.*", "positions.table"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, database: str) -> Config:
    """A training of one epoch, of five steps, on two digits."""
    folder = tmp_path_factory.mktemp("parent")
    values = {"training.epochs": 1, "training.checkpoint_steps": 2, "tracking.uri": database}
    config = digits_config(folder, "parent", (0, 1), values)
    with (folder / "console.txt").open("w") as file:
        train(config, Console(file, file))
    return config


def child_of(parent: Config, folder: Path, name: str, **values: Any) -> Config:
    """A training on the same digits."""
    own = {
        "name": name, "output": str(folder), "shards": parent.shards_folder,
        "tracking.uri": parent.tracking_uri,
    }  # fmt: skip
    return with_values(parent, own | values)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_frozen_weights_stay_and_a_cut_training_resumes_to_the_bit(
    parent: Config, tmp_path: Path, console: Console, stage: int
) -> None:
    def config(name: str) -> Config:
        made = child_of(
            parent, tmp_path, name,
            **{"training.zero_stage": stage, "training.ema_decay": 0.9, "training.epochs": 2},
        )  # fmt: skip
        scales = {"encoder.blocks.*": 0.5}
        return from_source(made, parent.folder, freeze=FREEZE, learning_rate_scale=scales)

    train(config("whole"), console)
    before, after = final_weights(parent), final_weights(config("whole"))
    frozen = {n for n in before if n.startswith("encoder.cross_attends.")} | {"positions.table"}
    assert {name for name in before if torch.equal(before[name], after[name])} == frozen

    checkpoints = tmp_path / "whole" / "train" / "checkpoints"
    last = last_checkpoint(checkpoints)
    assert last is not None
    moments = load(last, "optimizer")
    assert {name.partition(".")[2] for name in moments} == before.keys() - frozen

    with cut_off_after(3):
        train(config("cut"), console)
    train(config("cut"), console)
    resumed = last_checkpoint(tmp_path / "cut" / "train" / "checkpoints")
    assert resumed is not None and sha256_of(resumed) == sha256_of(last)


@pytest.mark.parametrize(
    ("optimizer", "stage"), [("adamw", 0), ("adamw", 2), ("adamw", 3), ("lamb", 2), ("muon", 0)]
)
def test_a_scaled_learning_rate_scales_the_first_step(
    parent: Config, tmp_path: Path, console: Console, optimizer: str, stage: int
) -> None:
    values = {
        "training.optimizer": optimizer, "training.zero_stage": stage, "training.batch_size": 160,
    }  # fmt: skip
    plain = child_of(parent, tmp_path, "plain", **values)
    scaled = with_values(plain, {"name": "scaled"})
    scales = {"encoder.blocks.*": 0.25, "*.bias": 4.0}
    with pytest.raises(UserError, match="both match"):
        train(from_source(scaled, parent.folder, learning_rate_scale=scales), console)
    scales["head.*.bias"] = scales.pop("*.bias")
    plain = from_source(plain, parent.folder)
    scaled = from_source(scaled, parent.folder, learning_rate_scale=scales)
    train(plain, console)
    train(scaled, console)
    start, one, other = map(final_weights, (parent, plain, scaled))
    for name, weight in start.items():
        if name.startswith("encoder.blocks."):
            factor = 0.25
        else:
            factor = 4.0 if name == "head.output.bias" else 1.0
        moved = (one[name] - weight) * factor
        torch.testing.assert_close(other[name] - weight, moved, rtol=1e-3, atol=1e-6)
    assert any((one[name] - start[name]).abs().max() > 1e-3 for name in start)


# --- the source ---


def test_the_weights_count_and_not_their_place(
    parent: Config, tmp_path: Path, console: Console
) -> None:
    first, moved, gone = (tmp_path / name for name in ("first", "moved", "gone"))
    shutil.copytree(parent.folder / "train" / "checkpoints", first)
    config = child_of(parent, tmp_path, "child")
    train(from_source(config, first), console)
    first.rename(moved)
    assert train(from_source(config, first), console)["skipped"], "its own copy serves"
    assert train(from_source(config, moved, strict=True), console)["skipped"]
    with pytest.raises(UserError, match="no such folder"):
        train(from_source(config, gone), console)
    other = child_of(parent, tmp_path, "other", seed=3)
    train(other, console)
    with pytest.raises(UserError, match=r"model\.init\.sha256 was"):
        train(from_source(config, other.folder), console)
    with pytest.raises(UserError, match=r"model\.init was .*|model\.init\.\w+ was"):
        train(config, console)
    with pytest.raises(UserError, match=r"model\.init"):
        train(from_source(config, moved, freeze=["head.*"]), console)


def test_a_training_of_before_this_section_goes_on(
    parent: Config, tmp_path: Path, console: Console
) -> None:
    config = child_of(parent, tmp_path, "older")
    train(config, console)
    path = config.folder / "stages" / "train.json"
    record = json.loads(path.read_text())
    assert record["fingerprint"].pop("model.init") is None
    path.write_text(json.dumps(record))
    assert train(config, console)["skipped"]


@pytest.mark.parametrize(
    ("init", "error"),
    [
        ({"freeze": ["nothing.*"]}, r"model\.init\.freeze: 'nothing\.\*' matches no parameter"),
        ({"freeze": ["*"]}, "nothing would be trained"),
        ({"learning_rate_scale": {"x": 0.5}}, r"learning_rate_scale: 'x' matches no parameter"),
        (
            {"freeze": ["head.*"], "learning_rate_scale": {"head.*": 0.5}},
            "matches only parameters that are not trained",
        ),
    ],
)
def test_patterns_that_change_nothing_are_refused(
    parent: Config, tmp_path: Path, console: Console, init: dict[str, Any], error: str
) -> None:
    config = from_source(child_of(parent, tmp_path, "bad"), parent.folder, **init)
    with pytest.raises(UserError, match=error):
        train(config, console)
    assert not (config.folder / "train").exists()


def test_what_does_not_fit_is_refused_by_name(
    parent: Config, pretrained: Config, tmp_path: Path, console: Console
) -> None:
    config = child_of(parent, tmp_path, "wider", **{"model.encoder.num_latents": 9})
    with pytest.raises(UserError, match=r"encoder\.latents \(\[8, 32\] in the source, \[9, 32\]"):
        train(from_source(config, parent.folder, strict=True), console)
    with pytest.raises(UserError, match=r"freeze: encoder\.latents cannot be loaded"):
        train(from_source(config, parent.folder, freeze=["encoder.latents"]), console)
    weights = {"other.weight": torch.zeros(3)}
    save_checkpoint(tmp_path / "foreign", TrainState(), weights, {})
    with pytest.raises(UserError, match=r"none of its 1 tensors fits.*other\.weight"):
        train(from_source(config, tmp_path / "foreign"), console)


def test_damaged_sources_are_refused(parent: Config, tmp_path: Path, console: Console) -> None:
    config = child_of(parent, tmp_path, "child")
    copied = tmp_path / "copied"
    shutil.copytree(parent.folder / "train" / "checkpoints", copied)
    for path in copied.glob("step-*/weights-*"):
        path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(UserError, match="sha256 differs"):
        train(from_source(config, copied), console)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no weights"):
        train(from_source(config, tmp_path / "empty"), console)


def test_a_source_may_be_a_run(parent: Config, tmp_path: Path) -> None:
    mlflow_client = client(parent.tracking_uri)
    (experiment,) = mlflow_client.search_experiments(filter_string="name = 'parent'")
    (run,) = mlflow_client.search_runs([experiment.experiment_id])
    config = child_of(parent, tmp_path, "child")
    for address in (run.info.run_id, f"runs:/{run.info.run_id}"):
        init = from_source(config, address).model.init
        assert init is not None
        source = read_source(init, parent.tracking_uri)
        expected = final_weights(parent)
        assert all(torch.equal(tensor, expected[n]) for n, tensor in source.tensors.items())
    missing = from_source(config, "0" * 32).model.init
    assert missing is not None
    with pytest.raises(UserError, match="MLflow has no such run"):
        read_source(missing, parent.tracking_uri)
