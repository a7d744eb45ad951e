"""Objectives of texts: Python's own manual, masked and continued, as bytes."""

import csv
import math
import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any
from zoneinfo import available_timezones

import numpy as np
import pytest
import torch
from gate_runs import track
from trainings import config_here, evaluated_as_trained, train_and_report

from perceiver_model.adapters.configs import TextInput, TokenEmbeddingConfig
from perceiver_model.adapters.text import MASK, encode_bytes, pad_tokens
from perceiver_model.config import DecoderConfig, EncoderConfig
from perceiver_model.families.autoregressive import next_token_loss
from perceiver_model.families.autoregressive_config import ARConfig
from perceiver_model.families.language_config import LanguageConfig
from pipeline.config.load import validate
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.preprocess import preprocess
from pipeline.registry.predict import predict
from pipeline.registry.promote import promote
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.training.objectives import Batch
from pipeline.training.objectives.autoregressive import Autoregression
from pipeline.training.objectives.masked_language import MaskedLanguage
from pipeline.training.train import train

LENGTH = 64


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 passages of 64 bytes from Python's manual, and the names of the time zones."""
    folder = tmp_path_factory.mktemp("manual")
    words = re.sub(r"\s+", " ", " ".join(topics.values())).encode("ascii", "ignore").decode()
    write_texts(folder / "manual.csv", [words[n : n + LENGTH] for n in range(0, 128_000, LENGTH)])
    write_texts(folder / "zones.csv", sorted(available_timezones()))
    return folder


def write_texts(path: Path, texts: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text",))
        writer.writerows((text,) for text in texts)


def unigram_bits(path: Path) -> float:
    """The entropy of the bytes: what a model takes that knows only how common each one is."""
    with path.open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    data = np.frombuffer("".join(texts).encode(), np.uint8)
    shares = np.bincount(data) / len(data)
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())


MODELS: dict[str, dict[str, Any]] = {
    "masked_language": {
        "adapter": {"kind": "token_embedding", "num_channels": 48},
        "encoder": {
            "num_latents": 32, "latent_dim": 64, "num_blocks": 1, "num_cross_attends": 1,
            "num_self_attends": 1, "num_self_heads": 4, "num_cross_heads": 4,
            "latent_init_std": 1.0,
        },
    },
    "autoregressive": {
        "autoregressive": {
            "num_latents": LENGTH, "channels": 64, "num_self_attends": 1, "num_heads": 4,
            "widening": 2, "dropout": 0.0,
        },
    },
}  # fmt: skip


def config_of(
    folder: Path, kind: str, objective: Any = None, texts: str = "manual.csv", **training: Any
) -> Config:
    name = kind.replace("_", "-")
    sections = {
        "shards": str(folder / f"shards-{kind}"),
        "data": {
            "train": str(folder / texts),
            "validation": 0.1,
            "text": {"max_length": LENGTH},
            "columns": {"text": "text"},
            "target": {"kind": "none"},
        },
        "model": MODELS[kind],
        "objective": {"kind": kind, **(objective or {})},
    }  # fmt: skip
    return config_here(
        name, folder, sections, **{"epochs": 5, "batch_size": 32, "learning_rate": 4e-3, **training}
    )


def learned(folder: Path, config: Config, text: str, console: Console) -> tuple[Any, Any]:
    preprocess(config, console)
    trained = train_and_report(config, console)
    worst = evaluated_as_trained(config, trained, console)["worst"][0]
    assert worst["target"] and worst["answer"]
    assert worst["attention"]["text"]["kind"] == "parts"
    mlflow_client = client(config.tracking_uri)
    track(config.tracking_uri)
    promoted = promote(mlflow_client, trained["run_id"], console)
    # The mean over texts, and not over bytes.
    assert promoted["sample_bits_per_byte"] == pytest.approx(trained["score"], rel=0.25)
    asked = folder / "asked.txt"
    asked.write_text(text)
    found = predict(mlflow_client, promoted["model_uri"], [str(asked)], console)
    return trained, found["predictions"][0]


def test_masked_bytes_are_learned(ray_cluster: None, manual: Path, console: Console) -> None:
    options = {"whole_words": False, "blank": "?"}
    config = config_of(manual, "masked_language", options, "zones.csv", epochs=20)
    trained, answer = learned(manual, config, "Am?rica/Chicago", console)
    bits = unigram_bits(manual / "zones.csv")
    assert trained["score"] == trained["metrics"]["val_bits_per_byte"] < bits - 1
    assert answer["text"] == "America/Chicago"


def test_next_bytes_are_learned(ray_cluster: None, manual: Path, console: Console) -> None:
    config = config_of(manual, "autoregressive", {"continue_bytes": 20})
    trained, answer = learned(manual, config, "the value of the expression", console)
    assert (
        trained["score"]
        == trained["metrics"]["val_bits_per_byte"]
        < unigram_bits(manual / "manual.csv") - 1
    )
    assert 1 <= len(answer["continuation"].encode()) <= 20


# --- losses and answers ---


def texts_batch(texts: list[str], *, weights: list[float] | None = None, seed: int = 0) -> Batch:
    ids, mask = pad_tokens([encode_bytes(text) for text in texts])
    size = len(texts)
    return Batch(
        inputs=ids,
        mask=mask,
        targets=torch.full((size,), -1),
        target_lengths=torch.ones(size, dtype=torch.int64),
        weights=torch.tensor(weights or [1.0] * size),
        numbers=torch.arange(size),
        seed=seed,
    )


def masked_language(**options: Any) -> MaskedLanguage:
    return MaskedLanguage(
        LanguageConfig(
            input=TextInput(max_length=40),
            adapter=TokenEmbeddingConfig(num_channels=16),
            encoder=EncoderConfig(
                num_latents=4, latent_dim=16, num_blocks=1, num_cross_attends=1, num_self_attends=1
            ),
            decoder=DecoderConfig(query_residual=False),
        ),
        **options,
    )


TEXTS = [
    "Perceivers read bytes, one by one",
    "short",
    "and a text of thirty-nine bytes, with some"[:40],
]


def test_a_text_is_masked_alike_in_every_batch_and_anew_in_every_step() -> None:
    own = masked_language(mask_probability=0.4)
    together = own.targets(texts_batch(TEXTS, seed=3))
    for number, text in enumerate(TEXTS):
        alone = texts_batch([text], seed=3)
        alone = Batch(**{**vars(alone), "numbers": torch.tensor([number]), "cache": {}})
        assert torch.equal(own.targets(alone)[0], together[number, : len(text)])
    assert not torch.equal(own.targets(texts_batch(TEXTS, seed=4)), together)
    assert (together[1, len("short") :] == -100).all()


def test_the_loss_is_the_mean_over_masked_bytes() -> None:
    own = masked_language(mask_probability=0.5, whole_words=False)
    batch = texts_batch(TEXTS, weights=[1.0, 1.0, 0.0])
    model = own.build_model().eval()
    with torch.inference_mode():
        outputs = own.outputs(model, batch, training=False)
    losses = own.losses(outputs, batch, training=False)
    weights = own.loss_weights(batch)
    targets = own.targets(batch)[:2]
    expected = torch.nn.functional.cross_entropy(outputs[:2].flatten(0, 1), targets.flatten())
    assert (losses * weights).sum() / weights.sum() == pytest.approx(float(expected), rel=1e-5)
    bits, accuracy = own.metric_values(own.sums(outputs, batch).tolist(), 1.0)
    assert bits == pytest.approx(float(expected) / math.log(2), rel=1e-5)
    counted = targets != -100
    right = (outputs[:2].argmax(dim=-1) == targets)[counted]
    assert accuracy == pytest.approx(float(right.float().mean()))


def test_only_blanks_are_filled_in() -> None:
    own = masked_language()
    model = own.build_model().eval()
    seen = []

    def watched(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        seen.append(ids)
        return model(ids, mask)

    batch = texts_batch(["a_b__", "none"])
    with torch.inference_mode():
        answers = own.predictions(own.answers(watched, batch), ["x", "y"])
    assert seen[0][0].tolist() == [ord("a") + 6, MASK, ord("b") + 6, MASK, MASK]
    assert [answers[0].text[0], answers[0].text[2], answers[1].text] == ["a", "b", "none"]  # type: ignore[attr-defined]  # of FilledText


@pytest.mark.parametrize("num_latents", [4, 64])
def test_the_autoregressive_loss_is_that_of_texts_one_by_one(num_latents: int) -> None:
    own = Autoregression(
        ARConfig(max_length=48, num_latents=min(num_latents, 48), channels=16, num_self_attends=1,
                 num_heads=2, dropout=0.0)
    )  # fmt: skip
    torch.manual_seed(0)
    model = own.build_model().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    batch = texts_batch(TEXTS)
    with torch.inference_mode():
        outputs = own.outputs(model, batch, training=False)
        losses = own.losses(outputs, batch, training=False)
        for row, text in enumerate(TEXTS):
            ids = torch.cat([torch.tensor([1]), encode_bytes(text)]).unsqueeze(0)  # BOS first
            expected = next_token_loss(model(ids[:, :-1]), ids)
            assert float(losses[row]) == pytest.approx(float(expected), rel=1e-4)
    assert own.loss_weights(batch).tolist() == [min(len(text), num_latents) for text in TEXTS]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"model": {"adapter": {"kind": "token_embedding"}}}, "needs the section model.autoregr"),
        (
            {"model": {**MODELS["autoregressive"], "pixel_mean": [0.1]}},
            "model.pixel_mean is given, which a Perceiver AR does not use",
        ),
        (
            {"training": {"activation_checkpointing": 0.5}},
            "training.activation_checkpointing is for models with an encoder",
        ),
        ({"objective": {"kind": "autoregressive", "top_k": 5}}, "objective.top_k is given, but"),
        (
            {"objective": {"kind": "masked_language"}},
            "model.autoregressive is for objective 'autoregressive'; objective.kind is 'masked",
        ),
        (
            {"model": MODELS["masked_language"],
             "objective": {"kind": "masked_language", "blank": "é"}},
            "objective.blank is 'é', which is more than one byte",
        ),
        ({"objective": None}, None),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    tmp_path: Path, values: dict[str, Any], line: str | None, console: Console
) -> None:
    tree = {**config_of(tmp_path, "autoregressive").tree(), **values}
    if line is None:  # a set of texts alone may be made; only a training needs the objective
        tree["model"] = MODELS["masked_language"]
        with pytest.raises(UserError, match=r"objective.kind is missing.*masked_language, autoreg"):
            train(validate({**tree, "shards": str(tmp_path / "none")}, "x"), console)
        return
    with pytest.raises(UserError, match=line):
        validate(tree, "x")


@pytest.mark.parametrize(
    "own",
    [
        masked_language(blank=35),
        Autoregression(ARConfig(max_length=8, num_latents=4, channels=16, num_heads=2), 7, 0.5, 3),
    ],
    ids=lambda own: own.name,
)
def test_a_card_gives_the_objective_back(own: Any) -> None:
    again = type(own).from_card(own.to_card())
    assert again == own or again.to_card() == own.to_card()
    assert again.forward_flops() > 0
