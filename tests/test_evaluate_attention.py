"""Where the latents look in a sample, for each modality and each kind of model."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modality_samples import FORMATS, make_config, make_shards
from PIL import Image
from test_objective_autoencode import objective_of as autoencoding
from test_objective_autoencode import some_batch
from test_objectives_text import masked_language, texts_batch

from perceiver_model.attention_maps import cross_attention_maps
from perceiver_model.families.autoregressive_config import ARConfig
from pipeline.evaluation.attention import attention_views
from pipeline.inputs.batches import inputs_on
from pipeline.inputs.modality import ModalityInputs
from pipeline.media import AudioFormat, ImageFormat, TextFormat
from pipeline.registry.reading import Reading
from pipeline.training.objectives import Batch, Objective, objective_of
from pipeline.training.objectives.autoregressive import Autoregression
from pipeline.training.samples import batch_of
from shards.loader import ShardBatch

CPU = torch.device("cpu")
AUTOREGRESSION = Autoregression(
    ARConfig(max_length=40, num_latents=4, channels=16, num_self_attends=1, num_heads=2)
)


def model_of(objective: Objective) -> torch.nn.Module:
    torch.manual_seed(0)
    return objective.build_model().eval()


def one_batch(fields: dict[str, torch.Tensor], **options: Any) -> ShardBatch:
    lengths = {name: torch.tensor([len(values[0])]) for name, values in fields.items()}
    return ShardBatch(
        fields, {**lengths, **options}, torch.tensor([0]), torch.ones(1), torch.arange(1), (), 1
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_each_modality_has_a_view_of_all_weights(kind: str, tmp_path: Path) -> None:
    config = make_config(kind, tmp_path)
    shard_set = make_shards(kind, tmp_path, config, count=2)
    objective, fmt = objective_of(config, shard_set), FORMATS[kind]
    batch = next(iter(Reading(fmt, fmt).loader(shard_set, "validation", batch_size=1)))
    inputs, mask = inputs_on(batch, {fmt.modality: fmt}, CPU)
    samples = batch_of(batch, inputs, mask, objective.target, CPU)
    model = model_of(objective)
    (view,) = attention_views(objective, model, {fmt.modality: fmt}, batch, samples).values()
    (weights,) = cross_attention_maps(model, inputs, mask, index=0)
    mean = weights[0].mean(dim=(0, 1)).double().numpy()
    assert view["share"] == pytest.approx(1, abs=1e-5)
    if kind in ("sound", "mel", "video"):
        over_time = mean.reshape(len(view["weights"]), -1).sum(axis=1)
        assert view["weights"] == pytest.approx(over_time.tolist(), abs=1e-6)
        assert (view["axis"], view["to"]) == (
            ("frames", 4) if kind == "video" else ("seconds", 0.5)
        )
    else:
        largest = max(part["weight"] for part in view["parts"])
        assert view["parts"][0]["weight"] == largest >= np.max(mean) - 1e-6
        assert len(view["parts"]) <= 10
    if kind == "video":
        assert Image.open(io.BytesIO(view["png"])).size == (8, 8)
    if kind == "text":
        assert view["parts"][0]["part"] in ("naïve", "0", "aaaaa")
    if kind == "table":
        assert {part["part"] for part in view["parts"]} == {"x", "y", "c"}
    if kind == "points":
        assert view["parts"][0]["part"].startswith("point ")


@pytest.mark.parametrize("objective", [masked_language(), AUTOREGRESSION], ids=lambda o: o.name)
def test_texts_of_language_models_have_their_words(objective: Objective) -> None:
    samples = texts_batch(["the words of a text"])
    fields = {"text": torch.tensor([list(b"the words of a text")], dtype=torch.uint8)}
    (view,) = attention_views(
        objective, model_of(objective), {"text": TextFormat(max_length=40)}, one_batch(fields),
        samples,
    ).values()  # fmt: skip
    assert view["kind"] == "parts" and view["parts"][0]["weight"] > 0
    assert sum(part["weight"] for part in view["parts"]) <= 1 + 1e-5


def test_modalities_share_the_attention_and_a_missing_one_has_none() -> None:
    objective, whole = autoencoding(), some_batch()
    formats = {
        "image": ImageFormat(height=8, width=6, channels=1),
        "audio": AudioFormat(sample_rate=1000, seconds=0.032),
    }
    model = model_of(objective)
    for row, heard in ((0, True), (1, False)):
        samples = row_of(whole, row)
        fields = {name: samples.inputs[name] for name in formats}  # type: ignore[index]  # several
        batch = one_batch(fields, audio=torch.tensor([32 * heard]))
        views = attention_views(objective, model, formats, batch, samples)
        assert views.keys() == formats.keys(), "the class is no input"
        assert views["image"]["kind"] == "picture"
        assert views["audio"]["kind"] == ("curve" if heard else "none")
        # The class that the model hides from itself gets the rest.
        assert 0 < sum(view.get("share", 0) for view in views.values()) < 1


def row_of(whole: Batch, row: int) -> Batch:
    one = slice(row, row + 1)
    assert isinstance(whole.inputs, dict) and isinstance(whole.mask, dict)
    return Batch(
        inputs={name: values[one] for name, values in whole.inputs.items()},
        mask={name: values[one] for name, values in whole.mask.items()},
        targets=whole.targets[one],
        target_lengths=whole.target_lengths[one],
        weights=whole.weights[one],
        numbers=whole.numbers[one],
    )


def test_a_modality_without_a_view_is_named() -> None:
    stored = torch.zeros(5, dtype=torch.uint8)
    view = ModalityInputs[TextFormat]().attention_view(
        np.ones(5), stored, stored[None], TextFormat(max_length=40)
    )
    reason = "there is no view of attention for the modality 'text'"
    assert view == {"kind": "none", "reason": reason}
