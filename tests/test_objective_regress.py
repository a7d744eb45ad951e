"""Regression of real numbers, from a CSV file to the registered model's answer."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gate_runs import track
from sklearn.datasets import load_diabetes
from sklearn.metrics import mean_absolute_error, r2_score
from trainings import evaluated_as_trained, train_and_report

from perceiver_model.adapters.configs import ImageInput, PixelsConfig
from perceiver_model.config import EncoderConfig
from perceiver_model.families.queries_config import QueriesConfig
from pipeline.config.load import validate
from pipeline.config.tree import Config
from pipeline.errors import GateRefusedError
from pipeline.preprocess.preprocess import preprocess
from pipeline.registry.predict import predict
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training.objectives import Batch
from pipeline.training.objectives.regression import Regression
from pipeline.training.target_statistics import target_statistics
from pipeline.training.train import train
from shards import ShardSet


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """442 patients: ten measurements each, and how their diabetes went on a year later."""
    folder = tmp_path_factory.mktemp("diabetes")
    data = load_diabetes(scaled=False)
    rows = np.column_stack([data.data, data.target])
    with (folder / "patients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*data.feature_names, "progress"])
        writer.writerows(rows.tolist())
    return folder


def config_of(folder: Path, name: str, **training: Any) -> Config:
    encoder = {
        "num_latents": 8, "latent_dim": 32, "num_blocks": 1, "num_cross_attends": 1,
        "num_self_attends": 1, "num_self_heads": 2, "latent_init_std": 1.0, "cross_channels": 32,
    }  # fmt: skip
    tree = {
        "name": name,
        "output": str(folder / "runs"),
        "shards": str(folder / "shards"),
        "data": {
            "train": str(folder / "patients.csv"),
            "validation": 0.25,
            "table": {"numeric": load_diabetes().feature_names},
            "target": {"kind": "regression", "column": "progress"},
        },
        "model": {"adapter": {"kind": "columns", "num_channels": 32}, "encoder": encoder},
        "objective": {"kind": "regress", "loss": "huber"},
        "training": {
            "epochs": 20, "batch_size": 32, "learning_rate": 2e-3, "weight_decay": 0.01,
            "schedule": {"warmup_epochs": 1}, **training,
        },
        "cluster": {"num_workers": 0},
        "tracking": {"system_metrics": False},
    }  # fmt: skip
    return validate(tree, name)


def test_it_learns_more_than_the_mean_and_is_registered_and_asked(
    ray_cluster: None, patients: Path, console: Console
) -> None:
    config = config_of(patients, "patients")
    preprocess(config, console)
    trained = train_and_report(config, console)
    metrics = trained["metrics"]
    targets = load_diabetes().target
    baseline = np.abs(targets - np.median(targets)).mean()
    assert metrics["val_mae"] == trained["score"] < 0.8 * baseline
    assert metrics["val_r2"] > 0.3
    assert metrics["val_mae"] < metrics["val_rmse"]

    found = evaluated_as_trained(config, trained, console)
    assert found["classes"][0]["mae"] == pytest.approx(metrics["val_mae"])
    assert found["worst"][0]["target"].keys() == {"progress"}

    mlflow_client = client(config.tracking_uri)
    track(config.tracking_uri)
    first = promote(mlflow_client, trained["run_id"], console)
    assert first["mae"] == pytest.approx(metrics["val_mae"], rel=1e-5)
    short = train(config_of(patients, "short", epochs=1, schedule={"warmup_epochs": 0}), console)
    with pytest.raises(GateRefusedError, match=r"has mae \d+\.\d+ on \d+ samples, where the"):
        promote(mlflow_client, short["run_id"], console)

    answers = patients / "answers.csv"
    asked = patients / "asked.csv"
    asked.write_text("\n".join((patients / "patients.csv").read_text().splitlines()[:3]) + "\n")
    found = predict(mlflow_client, first["model_uri"], [str(asked)], console, output=answers)
    values = [answer["values"]["progress"] for answer in found["predictions"]]
    assert all(25 < value < 346 for value in values), "the numbers are in the targets' own units"
    written = list(csv.DictReader(answers.open()))
    assert [float(row["progress"]) for row in written] == pytest.approx(values)

    # Statistics of a set of which a part cannot be read are not kept for when it is whole again.
    cut, kept = patients / "cut", patients / "kept"
    shutil.copytree(config.shards_folder, cut)
    whole = target_statistics(ShardSet.open(cut), kept)
    (statistics_file,) = kept.iterdir()
    statistics_file.unlink()
    shard = cut / "shard-00000.tar"
    shard.write_bytes(shard.read_bytes()[:40_000])
    assert target_statistics(ShardSet.open(cut), kept) != whole
    assert list(kept.iterdir()) == []


def objective(**options: Any) -> Regression:
    return Regression(
        QueriesConfig(
            input=ImageInput(height=4, width=4),
            adapter=PixelsConfig(),
            encoder=EncoderConfig(
                num_latents=4, latent_dim=16, num_blocks=1, num_cross_attends=1, num_self_attends=1
            ),
            num_queries=2,
            output_channels=1,
        ),
        names=("a", "b"),
        means=(10.0, -2.0),
        stds=(4.0, 0.5),
        **options,
    )


def batch_of(targets: np.ndarray, weights: list[float]) -> Batch:
    size = len(targets)
    return Batch(
        inputs=torch.rand(size, 4, 4, 3),
        mask=None,
        targets=torch.from_numpy(targets.astype(np.float32)),
        target_lengths=torch.full((size,), 2),
        weights=torch.tensor(weights),
        numbers=torch.arange(size),
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda e: (e**2).mean(axis=1)),
        ({"loss": "l1"}, lambda e: np.abs(e).mean(axis=1)),
        (
            {"loss": "huber", "huber_delta": 0.5},
            lambda e: np.where(np.abs(e) <= 0.5, e**2 / 2, 0.5 * (np.abs(e) - 0.25)).mean(axis=1),
        ),
    ],
)
def test_the_losses_are_of_standardised_numbers(options: dict[str, Any], expected: Any) -> None:
    draw = np.random.default_rng(0)
    targets, outputs = draw.normal(size=(5, 2)) * 4 + 10, draw.normal(size=(5, 2))
    batch = batch_of(targets, [1.0] * 5)
    found = objective(**options).losses(
        torch.from_numpy(outputs.astype(np.float32)), batch, training=True
    )
    errors = outputs - (targets - [10.0, -2.0]) / [4.0, 0.5]
    np.testing.assert_allclose(found.numpy(), expected(errors), rtol=1e-5)


def test_metrics_and_answers_are_in_the_units_of_the_targets_and_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(1)
    targets, outputs = draw.normal(size=(40, 2)) * [4, 0.5] + [10, -2], draw.normal(size=(40, 2))
    weights = [1.0] * 37 + [0.0] * 3
    batch, own = batch_of(targets, weights), objective()
    tensor = torch.from_numpy(outputs)
    true, predicted = batch.targets.double().numpy()[:37], outputs[:37] * [4, 0.5] + [10, -2]
    measures = own.measures()
    measures.update(*own.measured(tensor, batch))
    found = {name: float(value) for name, value in measures.compute().items()}
    (found["mae"],) = own.metric_values(own.sums(tensor, batch).tolist(), 37.0)
    assert found == {
        "mae": pytest.approx(mean_absolute_error(true, predicted), abs=1e-6),
        "rmse": pytest.approx(float(np.sqrt(np.mean((true - predicted) ** 2))), abs=1e-6),
        "r2": pytest.approx(r2_score(true, predicted), abs=1e-6),
    }
    answers = own.predictions(tensor, ["x"] * 40)
    assert answers[0].values == {
        "a": pytest.approx(predicted[0, 0]), "b": pytest.approx(predicted[0, 1])
    }  # fmt: skip


def test_a_card_with_other_statistics_than_outputs_is_refused() -> None:
    card = objective().to_card()
    assert Regression.from_card(card) == objective()
    for change in ({"means": [1.0]}, {"stds": [1.0, 0.0]}, {"names": ["a", "a"]}):
        with pytest.raises(ValueError, match=r"for 2 outputs|not above 0|named twice"):
            Regression.from_card({**card, **change})
