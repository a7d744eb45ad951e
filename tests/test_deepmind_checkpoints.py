"""Checkpoints of Perceivers: what is read, what is refused, what is written."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from transformers_models import assert_alike, inputs_of, logits_of, ours_of, random_transformers

from perceiver_model.adapters.configs import (
    AudioInput,
    ChunksConfig,
    ConvStemConfig,
    ImageInput,
    PixelsConfig,
)
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, LearnedPositions
from perceiver_model.deepmind import from_transformers_state, load_pretrained, save_pretrained
from perceiver_model.deepmind.imagenet import MEAN, STD
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.language import MaskedLanguageModel


def test_pickled_weights_are_read_and_safetensors_preferred(tmp_path):
    theirs = random_transformers("language")
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "set-aside")
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    ids, _ = inputs_of("language")
    with torch.no_grad():
        expected = logits_of(theirs, ids)
        assert_alike(load_pretrained(tmp_path, fidelity="transformers")(ids), expected)
        (tmp_path / "set-aside").rename(tmp_path / "model.safetensors")
        (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
        assert_alike(load_pretrained(tmp_path, fidelity="transformers")(ids), expected)


class Exploit:
    def __reduce__(self):
        return os.mkdir, (os.environ["EXPLOITED"],)


def test_code_in_pickled_weights_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPLOITED", str(tmp_path / "exploited"))
    random_transformers("language").config.save_pretrained(tmp_path)
    for data in (
        pickle.dumps(Exploit(), 2),
        pickle.dumps({"perceiver.embeddings.latents": 1}, 2),
        b"",
    ):
        (tmp_path / "pytorch_model.bin").write_bytes(data)
        with pytest.raises(ValueError, match=r"pytorch_model.bin: not a (file of|state dict)"):
            load_pretrained(tmp_path)
    assert not (tmp_path / "exploited").exists()


def test_one_error_names_all_tensors_that_do_not_fit():
    theirs = random_transformers("conv")
    state_dict = theirs.state_dict()
    latents = state_dict.pop("perceiver.embeddings.latents")
    del state_dict["perceiver.encoder.self_attends.1.attention.self.key.bias"]
    state_dict["perceiver.embeddings.latent"] = latents
    name = "perceiver.encoder.self_attends.0.attention.self.value.weight"
    state_dict[name] = state_dict[name][:-1]
    with pytest.raises(ValueError) as error:
        from_transformers_state(state_dict, theirs.config.to_dict())
    message = str(error.value)
    assert "\n" not in message
    for expected in (
        "missing perceiver.embeddings.latents;",
        "missing perceiver.encoder.self_attends.1.attention.self.key.bias;",
        "unexpected perceiver.embeddings.latent;",
        f"{name} of shape [15, 16], expected [16, 16]",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("case", "settings", "options", "message"),
    [
        ("conv", {"num_latents": 6}, {}, r"latents of shape \[5, 16\], expected \[6, 16\]"),
        (
            "fourier",
            {"num_blocks": 0},
            {},
            "EncoderConfig.num_blocks is 0; must be greater than or equal to 1",
        ),
        ("fourier", {"hidden_act": "relu"}, {}, "hidden_act is 'relu'; must be one of gelu"),
        ("fourier", {"use_query_residual": False}, {}, "use_query_residual is false; must be true"),
        ("learned", {}, {"image_size": (6, 5)}, r"image_size is \(6, 5\); .* for \(6, 6\)"),
        (
            "language",
            {},
            {"image_size": (6, 6)},
            r"image_size is \(6, 6\); must be None for a model",
        ),
        ("fourier", {}, {"fidelity": "exact"}, "'exact': must be 'deepmind' or 'transformers'"),
        ("fourier", {"architectures": ["BertModel"]}, {}, r"\['BertModel'\]; must be one of Perc"),
        (
            "fourier",
            {"cross_attention_shape_for_attention": "k"},
            {},
            "attention is 'k'; must be 'q' or 'kv'",
        ),
    ],
)
def test_settings_that_are_no_models_of_ours_are_refused(case, settings, options, message):
    theirs = random_transformers(case)
    with pytest.raises(ValueError, match=message):
        from_transformers_state(theirs.state_dict(), theirs.config.to_dict() | settings, **options)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config.json: no such file"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"config.json: not the settings of a Perceiver"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "perceiver"}')
    with pytest.raises(ValueError, match=r"neither model.safetensors nor pytorch_model.bin"):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: not safetensors"):
        load_pretrained(tmp_path)
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="the state dict fits none of PerceiverForImageClass"):
        load_pretrained(tmp_path)


def image_classifier(**parts):
    torch.manual_seed(0)
    encoder = EncoderConfig(
        **{"num_latents": 4, "latent_dim": 16, "num_cross_attends": 1, "num_self_attends": 1}
        | parts.pop("encoder", {})
    )
    defaults = {
        "input": ImageInput(height=8, width=8),
        "adapter": PixelsConfig(),
        "positions": FourierConfig(num_bands=64, max_resolution=(224, 224)),
        "decoder": DecoderConfig(gelu=encoder.gelu),
        "num_classes": 3,
    }
    return PerceiverClassifier(ClassifierConfig(encoder=encoder, **defaults | parts)).eval()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"positions": FourierConfig(num_bands=8)}, r"positions.max_resolution = \[8, 8\], not "),
        ({"positions": FourierConfig(num_bands=8)}, r"positions.num_bands = 8, not 64"),
        ({"input": ImageInput(height=8, width=8, channels=1)}, "input.channels = 1, not 3"),
        ({"adapter": ConvStemConfig(norm="group")}, "adapter.norm = 'group', not 'batch'"),
        ({"decoder": DecoderConfig(num_heads=2)}, "decoder.num_heads = 2, not 1"),
        ({"decoder": DecoderConfig(gelu="erf")}, "decoder.gelu = 'erf', not 'tanh'"),
        ({"decoder": None}, "PerceiverClassifier: not a model of any of PerceiverForImageClass"),
        ({"encoder": {"num_cross_attends": 2}}, "encoder.num_cross_attends = 2, not 1"),
        ({"encoder": {"share_self_attends": False}}, "share_self_attends = False: transformers"),
        ({"encoder": {"self_channels": 8}}, "self_channels = 8, .*: transformers has no settings"),
        (
            {"adapter": PixelsConfig(num_channels=6), "positions": LearnedPositions()},
            "adapter.num_channels = 6, not 256",
        ),
        (
            {
                "input": ImageInput(height=8, width=4),
                "adapter": PixelsConfig(num_channels=256),
                "positions": LearnedPositions(),
            },
            "height = 8, width = 4: transformers has learned positions for square images only",
        ),
        (
            {
                "input": AudioInput(sample_rate=8_000, num_samples=640),
                "adapter": ChunksConfig(),
                "positions": FourierConfig(num_bands=2),
            },
            "PerceiverClassifier: not a model of any of",
        ),
    ],
)
@pytest.mark.parametrize("allow_differences", [False, True])
def test_models_that_transformers_does_not_have_are_not_written(
    parts, message, allow_differences, tmp_path
):
    model = image_classifier(**parts)
    with pytest.raises(ValueError, match=message):
        save_pretrained(model, tmp_path / "folder", allow_differences=allow_differences)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("parts", "difference"),
    [
        (
            {"adapter": ConvStemConfig(), "positions": FourierConfig(max_resolution=(56, 56))},
            "adapter.padding = 'same', not 'valid'",
        ),
        (
            {
                "adapter": PixelsConfig(num_channels=256),
                "positions": LearnedPositions(),
                "decoder": DecoderConfig(query_residual=False),
            },
            "decoder.query_residual = False, not True",
        ),
    ],
)
def test_what_transformers_would_compute_otherwise_is_written_on_request_only(
    parts, difference, tmp_path
):
    model = image_classifier(**parts)
    with pytest.raises(ValueError, match=f"{difference}; allow_differences=True writes it"):
        save_pretrained(model, tmp_path)
    save_pretrained(model, tmp_path, allow_differences=True)
    again = load_pretrained(tmp_path, image_size=(8, 8))
    images = torch.rand(2, 8, 8, 3)
    # What is left of ours: its own mean and std, which no checkpoint holds.
    standardised = (images - 0.5) / 0.5 * torch.tensor(STD) + torch.tensor(MEAN)
    with torch.no_grad():
        assert_alike(again(standardised), model(images))


def test_bfloat16_weights_are_written_as_such_and_read_as_float32(tmp_path):
    theirs = random_transformers("language")
    model = ours_of(theirs, "language").bfloat16()
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = type(theirs).from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    again = load_pretrained(tmp_path)
    assert isinstance(again, MaskedLanguageModel) and again.bias.dtype == torch.float32
    assert torch.equal(again.bias, model.bias.float())


def test_transformers_is_not_needed():
    code = "import sys, perceiver_model.deepmind; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
