"""`model.init.from`: transformers checkpoints, and models that were registered."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_runs import track
from safetensors.torch import load_file
from small_digits import digits_config
from trainings import final_weights
from transformers_models import random_transformers

from perceiver_model.deepmind import load_pretrained
from perceiver_model.deepmind.imagenet import MEAN, STD
from pipeline.config.load import with_values
from pipeline.config.sqlite_uri import sqlite_uri
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.registry.predict import load_model
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training.initial_weights.sources import InitSource, read_source
from pipeline.training.train import train
from pipeline.tuning.tune import tune


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> str:
    """The URI of an empty database."""
    return sqlite_uri(shutil.copy(empty_database, tmp_path / "mlflow.db"))


def source_of(address: Path | str, config: Config) -> InitSource:
    init = with_values(config, {"model.init": {"from": str(address)}}).model.init
    assert init is not None
    return read_source(init, config.tracking_uri)


# `transformers_models.SMALL`, in our words.
SMALL_MODEL = {
    "adapter": {"kind": "pixels", "num_channels": 256},
    "positions": {"kind": "learned"},
    "encoder": {
        "num_latents": 5, "latent_dim": 16, "num_blocks": 2, "num_cross_attends": 1,
        "num_self_attends": 2, "num_self_heads": 4, "cross_widening": 3, "self_widening": 2,
    },
    "decoder": {"query_residual": False},
    "pixel_mean": list(MEAN),
    "pixel_std": list(STD),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of transformers, of 7 classes and images of 14 x 14."""
    folder = tmp_path_factory.mktemp("transformers")
    random_transformers("learned", image_size=14).save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path, database: str) -> Config:
    """A training of such a model on three digits."""
    values = {"training.epochs": 1, "tracking.uri": database, "model": SMALL_MODEL}
    return digits_config(tmp_path, "digits", (0, 1, 7), values, channels=3)


def test_a_transformers_checkpoint_is_fine_tuned(
    checkpoint: Path, config: Config, console: Console, tmp_path: Path
) -> None:
    init: dict[str, Any] = {"from": str(checkpoint), "freeze": ["positions.*"]}
    with pytest.raises(UserError, match=r"2 tensors do not fit.*head\.decoder\.output\.weight"):
        train(with_values(config, {"model.init": init}), console)
    tuned = with_values(config, {"model.init": init | {"strict": False}})
    result = train(tuned, console)
    theirs = load_pretrained(checkpoint).state_dict()
    assert result["init"]["loaded"] == len(theirs) - 2
    assert result["init"]["skipped"] == 2
    after = final_weights(tuned)
    assert torch.equal(after["positions.table"], theirs["positions.table"])
    moved = (after["encoder.latents"] - theirs["encoder.latents"]).abs().max()
    assert 0 < moved < 0.3, "it starts from their latents, of which none is small"

    other = {"encoder.num_self_heads": 2}
    odd = with_values(tuned, {f"model.{name}": value for name, value in other.items()})
    train(with_values(odd, {"name": "odd", "shards": config.shards_folder}), console)
    told = " ".join((tmp_path / "console.txt").read_text().split())
    assert "encoder.num_self_heads is 4 in the source, and 2 in the model" in told
    assert told.count("in the source, and") == 1


def test_a_bin_file_is_read_without_running_its_code(checkpoint: Path, config: Config) -> None:
    folder = Path(config.output) / "bin"
    folder.mkdir()
    shutil.copy(checkpoint / "config.json", folder)
    expected = load_pretrained(checkpoint).state_dict()
    torch.save(load_file(checkpoint / "model.safetensors"), folder / "pytorch_model.bin")
    found = source_of(folder, config).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "ran",))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="not a file of tensors alone"):
        source_of(folder, config)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_latents": 1 << 40},
        {"d_latents": 1 << 30},
        {"num_self_attends_per_block": 1 << 40},
        {"image_size": 1 << 20},
        {"num_latents": "many"},
        {"architectures": ["PerceiverForOpticalFlow"], "train_size": [1 << 20, 1 << 20]},
    ],
)
def test_hostile_settings_take_no_memory(
    checkpoint: Path, config: Config, settings: dict[str, Any]
) -> None:
    folder = Path(config.output) / "hostile"
    shutil.copytree(checkpoint, folder)
    theirs = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(theirs | settings))
    with pytest.raises(UserError, match="no transformers checkpoint of a Perceiver"):
        source_of(folder, config)


def test_registered_models_are_sources_and_results(
    config: Config, console: Console, tmp_path: Path
) -> None:
    parent = with_values(config, {"registry.model_name": "parent"})
    run_id = train(parent, console)["run_id"]
    mlflow_client = client(parent.tracking_uri)
    track(parent.tracking_uri)
    promote(mlflow_client, run_id, console)
    expected = final_weights(parent)
    for address in ("models:/parent@champion", "models:/parent/1"):
        source = source_of(address, parent)
        assert source.origin == "version 1 of the registered model parent"
        assert all(torch.equal(source.tensors[name], tensor) for name, tensor in expected.items())
        assert source.settings["encoder.num_self_heads"] == 4
    for address in ("models:/nobody@champion", "models:/parent/9"):
        with pytest.raises(UserError, match=f"{address}: the registry has no such model"):
            source_of(address, parent)

    values = {"name": "child", "shards": parent.shards_folder, "registry.model_name": "child"}
    values |= {"model.init": {"from": "models:/parent@champion", "freeze": ["encoder.*"]}}
    child = with_values(parent, values)
    run_id = train(child, console)["run_id"]
    promote(mlflow_client, run_id, console)
    tags = mlflow_client.get_model_version("child", "1").tags
    assert tags["perceiver.init"] == "version 1 of the registered model parent"
    assert len(tags["perceiver.init_sha256"]) == 64

    # The alias moves to another version, and the source is gone: both leave the child as it is.
    other = with_values(parent, {"name": "other", "seed": 5, "shards": parent.shards_folder})
    second = promote(mlflow_client, train(other, console)["run_id"], console, alias="second")
    mlflow_client.set_registered_model_alias("parent", "champion", second["version"])
    assert train(child, console)["skipped"]
    told = " ".join((tmp_path / "console.txt").read_text().split())
    assert "is now version 2 of the registered model parent; this training goes on" in told
    mlflow_client.delete_registered_model("parent")
    shutil.rmtree(parent.folder / "train")
    assert train(child, console)["skipped"]
    assert load_model(mlflow_client, "models:/child@champion").card.objective.classes


def test_a_study_whose_trials_do_not_fit_the_weights_is_refused(
    config: Config, console: Console
) -> None:
    train(config, console)
    values = {
        "shards": config.shards_folder, "model.init": {"from": str(config.folder)},
        "name": "sizes",
        "study": {"search": "grid", "space": {"model.encoder.num_latents": {"choice": [5, 6]}}},
    }  # fmt: skip
    sizes = with_values(config, values)
    with pytest.raises(UserError, match=r"encoder\.latents \(\[5, 16\] in the source, \[6, 16\]"):
        tune(sizes, console)
    assert not (sizes.folder / "tune").exists()
