"""Autoencoding: losses, metrics and answers of images, films, sounds and classes."""

import io
import math
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.load import validate
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.training.objectives import OBJECTIVES, Batch
from pipeline.training.objectives.autoencoding import Autoencoding


def config_of(target: str = "class", **objective: Any) -> Config:
    tree = {
        "name": "pairs",
        "output": "/nowhere",
        "data": {
            "train": "raw",
            "image": {"height": 8, "width": 6, "channels": 1},
            "audio": {"sample_rate": 1000, "seconds": 0.032},
            "target": {"kind": target},
            "allow_missing": ["audio"],
        },
        "model": {
            "modalities": {
                "image": {"adapter": {"kind": "pixels"}, "positions": {"num_bands": 2}},
                "audio": {"adapter": {"kind": "chunks", "chunk_size": 8},
                          "positions": {"num_bands": 2}},
            },
            "encoder": {"num_latents": 4, "latent_dim": 16, "num_blocks": 1,
                        "num_cross_attends": 1, "num_self_attends": 1, "cross_channels": 16},
        },
        "objective": {"kind": "autoencode", "samples_per_query": 4, "query_bands": 2,
                      "decoded_channels": 16, **objective},
    }  # fmt: skip
    return validate(tree, "pairs")


def objective_of(target: str = "class", **options: Any) -> Autoencoding:
    config = config_of(target, **options)
    assert config.trained_for is not None
    weights = options.get("weights", {})
    return Autoencoding(
        config.trained_for.model(config, 3),
        weights,
        options.get("loss", "l1"),
        options.get("train_queries"),
        7,
        ("a", "b", "c") if target == "class" else (),
    )


def some_batch(size: int = 5) -> Batch:
    """Samples of which the second has no sound and the last is padding."""
    draw = torch.Generator().manual_seed(0)
    heard = torch.ones(size, 32, dtype=torch.bool)
    heard[1] = False
    heard[2, 20:] = False
    sounds = torch.randint(-32768, 32767, (size, 32), generator=draw, dtype=torch.int16)
    return Batch(
        inputs={
            "image": torch.randint(0, 255, (size, 8, 6, 1), generator=draw, dtype=torch.uint8),
            "audio": sounds.masked_fill(~heard, 0),
        },
        mask={"audio": heard},
        targets=torch.tensor([0, 1, 2, 0, -1])[:size],
        target_lengths=torch.ones(size, dtype=torch.int64),
        weights=torch.tensor([1.0] * (size - 1) + [0.0]),
        numbers=torch.arange(size),
        seed=11,
    )


def test_the_whole_is_decoded_and_measured() -> None:
    own = objective_of(weights={"image": 2.0, "label": 0.5})
    torch.manual_seed(0)
    model = own.build_model().eval()
    batch = some_batch()
    with torch.inference_mode():
        outputs = own.outputs(model, batch, training=False)
    assert {name: list(output.shape) for name, output in outputs.items()} == {
        "image": [5, 48, 1], "audio": [5, 8, 4], "label": [5, 3],
    }  # fmt: skip
    assert isinstance(batch.inputs, dict)
    pixels = batch.inputs["image"].double().reshape(5, 48, 1) / 255
    sounds = batch.inputs["audio"].double().reshape(5, 8, 4) / 32768
    heard = batch.mask["audio"].reshape(5, 8, 4)  # type: ignore[index]  # masks by modality
    of_image = (outputs["image"] - pixels).abs().mean(dim=(1, 2))
    apart = (outputs["audio"] - sounds).abs() * heard
    of_audio = apart.sum(dim=(1, 2)) / heard.sum(dim=(1, 2)).clamp(min=1)
    shares = outputs["label"].double().log_softmax(dim=1)
    of_label = torch.tensor([-float(shares[n, t]) if t >= 0 else 0.0
                             for n, t in enumerate(batch.targets.tolist())])  # fmt: skip
    expected = 2 * of_image + of_audio + 0.5 * of_label
    losses = own.losses(outputs, batch, training=False)
    torch.testing.assert_close(losses.double(), expected.double(), rtol=1e-5, atol=1e-6)

    measures = own.measures()
    measures.update(*own.measured(outputs, batch))
    found = {name: float(value) for name, value in measures.compute().items()}
    squared = ((outputs["image"] - pixels) ** 2).mean(dim=(1, 2))[:4]
    right = (outputs["label"].argmax(dim=1) == batch.targets)[:4].double()
    assert found == {
        "image_psnr": pytest.approx(float((-10 * torch.log10(squared)).mean()), rel=1e-6),
        "audio_error": pytest.approx(float(of_audio[[0, 2, 3]].mean()), rel=1e-6),
        "label_accuracy": pytest.approx(float(right.mean())),
    }
    assert own.finite(outputs).all()
    assert own.sample_values(outputs, batch, ()) == pytest.approx(expected.numpy(), rel=1e-5)


def test_a_step_decodes_some_queries_the_same_on_every_rank() -> None:
    own = objective_of(train_queries=5)
    model, batch = own.build_model(), some_batch()
    outputs = own.outputs(model, batch, training=True)
    assert {name: list(output.shape) for name, output in outputs.items()} == {
        "image": [5, 5, 1], "audio": [5, 5, 4], "label": [5, 3],
    }  # fmt: skip
    other = Batch(**{**vars(some_batch()), "cache": {}, "numbers": torch.arange(5) + 100})
    for name, indices in own._indices(batch).items():
        theirs = own._indices(other)[name]
        if indices is None or theirs is None:
            assert indices is theirs
        else:
            assert torch.equal(indices, theirs)
    losses = own.losses(outputs, batch, training=True)
    (losses * batch.weights).sum().backward()
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())
    assert float(own.sums(outputs, batch)) == pytest.approx(float((losses * batch.weights).sum()))


def test_the_answers_are_files() -> None:
    own = objective_of()
    model, batch = own.build_model().eval(), some_batch()
    with torch.inference_mode():
        answers: Any = own.predictions(own.answers(model, batch), ["v", "w", "x", "y", "z"])
    image = np.asarray(Image.open(io.BytesIO(answers[0].image)))
    assert image.shape == (8, 6)
    with wave.open(io.BytesIO(answers[1].audio)) as file:
        assert (file.getframerate(), file.getnframes()) == (1000, 32)
    assert answers[0].label in own.classes and answers[0].video is None


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"weights": {"text": 1.0}}, "objective.weights names 'text'; the outputs are image, aud"),
        ({"weights": {"audio": 0.0}}, "objective.weights.audio is 0; must be above 0"),
        ({"samples_per_query": 5}, "samples_per_query is 5; must be a divisor of the 32 samples"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        config_of(**options)


def test_a_card_gives_the_objective_back(tmp_path: Path) -> None:
    own = objective_of("none", loss="mse")
    again = OBJECTIVES["autoencode"].from_card(own.to_card())
    assert again.to_card() == own.to_card()
    assert again.forward_flops() > 0
    with pytest.raises(ValueError, match="1 classes are not those of the model"):
        Autoencoding.from_card({**own.to_card(), "classes": ["a"]})


def tones(count: int, draw: torch.Generator, seed: int = 0) -> Batch:
    """Images of one grey, and tones of 100 to 200 Hz and any phase: 512 samples at 4 kHz."""
    hertz = 100 + 100 * torch.rand(count, 1, generator=draw)
    phase = 2 * math.pi * torch.rand(count, 1, generator=draw)
    sounds = 0.5 * torch.sin(2 * math.pi * hertz * torch.arange(512) / 4000 + phase)
    greys = torch.randint(0, 255, (count, 1, 1, 1), generator=draw, dtype=torch.uint8)
    return Batch(
        inputs={"image": greys.expand(count, 8, 8, 1).contiguous(),
                "audio": (sounds * 32768).round().to(torch.int16)},
        mask={"audio": torch.ones(count, 512, dtype=torch.bool)},
        targets=torch.full((count,), -1),
        target_lengths=torch.ones(count, dtype=torch.int64),
        weights=torch.ones(count),
        numbers=torch.arange(count),
        seed=seed,
    )  # fmt: skip


def test_sounds_and_images_are_learned() -> None:
    tree = config_of("none", loss="mse", samples_per_query=32, query_bands=8).tree()
    tree["data"] |= {"image": {"height": 8, "width": 8, "channels": 1},
                     "audio": {"sample_rate": 4000, "seconds": 0.128}}  # fmt: skip
    tree["objective"]["decoded_channels"] = 64
    modalities = tree["model"]["modalities"]
    modalities["audio"] |= {"adapter": {"kind": "chunks", "chunk_size": 32},
                            "positions": {"num_bands": 8}}  # fmt: skip
    modalities["image"]["positions"] = {"num_bands": 4}
    tree["model"] |= {
        "encoder": {"num_latents": 32, "latent_dim": 64, "num_blocks": 1, "num_cross_attends": 1,
                    "num_self_attends": 2, "num_self_heads": 4, "latent_init_std": 1.0},
        "decoder": {"query_residual": False, "num_heads": 4},
    }  # fmt: skip
    config = validate(tree, "tones")
    assert config.trained_for is not None
    own = Autoencoding(config.trained_for.model(config, 0), {}, "mse")
    torch.manual_seed(0)
    model, draw = own.build_model(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    for step in range(160):
        rate = min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / 200)) / 2
        optimizer.param_groups[0]["lr"] = 4e-3 * rate
        batch = tones(32, draw, step)
        losses = own.losses(own.outputs(model, batch, training=True), batch, training=True)
        optimizer.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    batch, measures = tones(64, torch.Generator().manual_seed(7)), own.measures()
    with torch.inference_mode():
        measures.update(*own.measured(own.outputs(model, batch, training=False), batch))
    found = measures.compute()
    silence = float(batch.inputs["audio"].float().abs().mean()) / 32768  # type: ignore[call-overload]  # by modality
    assert found["audio_error"] < 0.75 * silence and found["image_psnr"] > 20
