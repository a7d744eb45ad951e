"""Checkpoints of transformers' Perceivers: read, computed alike, and written again."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from transformers import PerceiverConfig
from transformers.models.perceiver import modeling_perceiver

from perceiver_model.adapters.stem import same_padding
from perceiver_model.classifier import PerceiverClassifier
from perceiver_model.classifier_config import ClassifierConfig
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, LearnedPositions
from perceiver_model.deepmind import (
    ARCHITECTURES,
    from_transformers_state,
    load_pretrained,
    save_pretrained,
    to_transformers_state,
)
from perceiver_model.deepmind.imagenet import MEAN, STD
from perceiver_model.inputs import AudioInput, Chunks, ConvStem, ImageInput, Pixels
from perceiver_model.language import MaskedLanguageModel
from perceiver_model.tokens import InputArray

FOURIER, LEARNED, CONV, LANGUAGE, TEXT = (
    "PerceiverForImageClassificationFourier",
    "PerceiverForImageClassificationLearned",
    "PerceiverForImageClassificationConvProcessing",
    "PerceiverForMaskedLM",
    "PerceiverForSequenceClassification",
)
SMALL = {
    "num_latents": 5,
    "d_latents": 16,
    "num_blocks": 2,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
    "self_attention_widening_factor": 2,
    "cross_attention_widening_factor": 3,
    "num_labels": 7,
}
WIDTHS = {"qk_channels": 8, "v_channels": 16, "num_cross_attention_heads": 4}
WORDS = {"d_model": 24, "max_position_embeddings": 20, "vocab_size": 50}
# Each case: transformers' class, its settings, and the images' (height, width) or None for text.
CASES = {
    "fourier": (FOURIER, SMALL, (14, 11)),
    "fourier-shaped-as-latents": (
        FOURIER, SMALL | {"cross_attention_shape_for_attention": "q"}, (9, 9),
    ),
    "learned": (LEARNED, SMALL | {"image_size": 6}, (6, 6)),
    "learned-tanh": (LEARNED, SMALL | {"image_size": 5, "hidden_act": "gelu_new"}, (5, 5)),
    "conv": (CONV, SMALL, (30, 23)),
    "conv-narrow-queries": (CONV, SMALL | WIDTHS, (16, 16)),
    "language": (LANGUAGE, SMALL | WIDTHS | WORDS, None),
    "language-unshaped": (LANGUAGE, SMALL | WORDS | {"num_blocks": 1}, None),
    "text": (TEXT, SMALL | WIDTHS | WORDS, None),
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """The models are too small for several threads, which other processes would hold up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_transformers(case, **settings):
    """A model of transformers in which every tensor counts: none is 0, 1 or small."""
    name, small, _ = CASES[case]
    model = getattr(modeling_perceiver, name)(PerceiverConfig(**small | settings)).eval()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if key.endswith("running_var"):
            tensor.copy_(0.5 + noise.square())
        elif key.endswith("num_batches_tracked"):
            tensor.fill_(11)
        elif "embeddings" in key or tensor.ndim == 1:
            tensor.copy_((0.5 if tensor.ndim == 1 else 0.0) + 0.5 * noise)
        else:
            tensor.copy_(1.5 * noise * tensor[0].numel() ** -0.5)
    return model


def ours_of(theirs, case, **options):
    options = {"image_size": CASES[case][2]} | options
    return from_transformers_state(theirs.state_dict(), theirs.config.to_dict(), **options)


def inputs_of(case, dtype=torch.float32):
    """What transformers' model reads, and what ours reads: the same, by other conventions."""
    generator = torch.Generator().manual_seed(1)
    _, settings, size = CASES[case]
    if size is None:
        ids = torch.randint(0, settings["vocab_size"], (3, 13), generator=generator)
        return ids, ids
    pixels = torch.randn(3, 3, *size, generator=generator, dtype=dtype)
    images = pixels.permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)
    return pixels, images


@torch.no_grad()
def logits_of(theirs, inputs, **keywords):
    """transformers' logits, of as many places as there are ids."""
    logits = theirs(inputs, **keywords).logits
    return logits[:, : inputs.shape[1]] if logits.ndim == 3 else logits


def assert_alike(ours, theirs):
    """Equal to 1e-5, absolute, and to as much of the largest logit."""
    atol = 1e-5 * min(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_computes_what_transformers_does(case):
    theirs = random_transformers(case)
    ours = ours_of(theirs, case, fidelity="transformers")
    their_inputs, our_inputs = inputs_of(case)
    expected = logits_of(theirs, their_inputs)
    assert expected.std(dim=0).mean() > 0.01, "inputs that do not matter test nothing"
    with torch.no_grad():
        assert_alike(ours(our_inputs), expected)


@pytest.mark.parametrize("case", ["language", "text"])
def test_masks_padding_as_transformers_does(case):
    theirs = random_transformers(case)
    ours = ours_of(theirs, case, fidelity="transformers")
    ids, _ = inputs_of(case)
    mask = torch.arange(13) < torch.tensor([[13], [7], [1]])
    expected = logits_of(theirs, ids, attention_mask=mask)
    assert (expected - logits_of(theirs, ids)).abs().max() > 0.1
    with torch.no_grad():
        assert_alike(ours(ids, mask), expected)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_comes_back_as_it_was(case):
    theirs = random_transformers(case).state_dict()
    returned = to_transformers_state(ours_of(random_transformers(case), case))
    assert returned.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert returned[name].dtype == tensor.dtype, name
        assert torch.equal(returned[name], tensor), name


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_what_is_saved(case, tmp_path):
    theirs = random_transformers(case)
    save_pretrained(ours_of(theirs, case, fidelity="transformers"), tmp_path)
    model_type = type(theirs)
    loaded, report = model_type.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # which transformers 4 asks for
    inputs, _ = inputs_of(case)
    torch.testing.assert_close(
        logits_of(loaded.eval(), inputs), logits_of(theirs, inputs), rtol=1e-5, atol=1e-5
    )
    again = load_pretrained(tmp_path, fidelity="transformers", image_size=CASES[case][2])
    assert again.config == ours_of(theirs, case, fidelity="transformers").config


@pytest.mark.parametrize("case", CASES)
def test_folders_that_transformers_saves_are_loaded(case, tmp_path):
    theirs = random_transformers(case)
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path, fidelity="transformers", image_size=CASES[case][2])
    assert not ours.training
    their_inputs, our_inputs = inputs_of(case)
    with torch.no_grad():
        assert_alike(ours(our_inputs), logits_of(theirs, their_inputs))


class SameConv2DDownsample(torch.nn.Module):
    """transformers' stem, padded as DeepMind's."""

    def __init__(self, stem):
        super().__init__()
        self.stem = stem

    def forward(self, images):
        images = pad_same(images, 7)
        features = F.relu(self.stem.batchnorm(F.conv2d(images, self.stem.conv.weight, stride=2)))
        return F.max_pool2d(pad_same(features, 3), 3, 2)


def pad_same(maps, kernel):
    return F.pad(maps, same_padding(maps.shape[3], kernel) + same_padding(maps.shape[2], kernel))


@pytest.mark.parametrize("case", CASES)
def test_deepminds_function_is_transformers_with_its_departures_undone(case):
    ours = ours_of(random_transformers(case), case)
    theirs = random_transformers(case, hidden_act="gelu_pytorch_tanh")
    if CASES[case][0] == LEARNED:
        attention = theirs.perceiver.decoder.decoder.decoding_cross_attention.attention
        attention.use_query_residual = False
    if CASES[case][0] == CONV:
        preprocessor = theirs.perceiver.input_preprocessor
        preprocessor.convnet = SameConv2DDownsample(preprocessor.convnet)
    their_inputs, our_inputs = inputs_of(case)
    expected = logits_of(theirs, their_inputs)
    with torch.no_grad():
        assert_alike(ours(our_inputs), expected)
    if case != "learned-tanh":
        departed = logits_of(random_transformers(case), their_inputs)
        assert (departed - expected).abs().max() > 2e-5 * expected.abs().max()


def test_fourier_features_are_transformers_to_the_bit():
    theirs = random_transformers("fourier")
    positions = theirs.perceiver.input_preprocessor.position_embeddings
    expected = positions((14, 11), batch_size=1, device=None, dtype=torch.float32)[0]
    loaded = ours_of(theirs, "fourier", fidelity="transformers")
    assert loaded.config.positions.precision == "float32"
    assert torch.equal(InputArray(expected[None], loaded.positions()).positions(), expected)
    exact = ours_of(theirs, "fourier", fidelity="deepmind")
    assert exact.config.positions == FourierConfig(num_bands=64, max_resolution=(224, 224))
    assert not torch.equal(InputArray(expected[None], exact.positions()).positions(), expected)
    assert exact.config.input == ImageInput(height=14, width=11, mean=MEAN, std=STD)


def test_the_released_models_configurations_are_the_presets():
    from perceiver_model.presets import PRESETS

    image = {
        "num_latents": 512, "d_latents": 1024, "num_blocks": 8, "num_self_attends_per_block": 6,
        "num_cross_attention_heads": 1, "image_size": 224, "hidden_act": "gelu",
        "num_labels": 1000,
    }  # fmt: skip
    released = {
        "io-imagenet-fourier": (FOURIER, image),
        "io-imagenet-learned": (LEARNED, image),
        "io-imagenet-conv": (CONV, image),
        "io-mlm-bytes": (LANGUAGE, {"qk_channels": 256, "v_channels": 1280}),
    }
    for preset, (name, settings) in released.items():
        architecture = next(known for known in ARCHITECTURES if known.name == name)
        config = architecture.read_config(settings, {}, fidelity="deepmind", image_size=None)
        assert architecture.explicit(config) == architecture.explicit(PRESETS[preset]), preset


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
        ("fourier", {"num_blocks": 0}, {}, "EncoderConfig.num_blocks = 0: must be an integer"),
        ("fourier", {"hidden_act": "relu"}, {}, "hidden_act = 'relu': must be one of gelu"),
        ("fourier", {"use_query_residual": False}, {}, "use_query_residual = false: must be true"),
        ("learned", {}, {"image_size": (6, 5)}, r"image_size = \(6, 5\): .* for \(6, 6\)"),
        (
            "language",
            {},
            {"image_size": (6, 6)},
            r"image_size = \(6, 6\): must be None for a model",
        ),
        ("fourier", {}, {"fidelity": "exact"}, "'exact': must be 'deepmind' or 'transformers'"),
        ("fourier", {"architectures": ["BertModel"]}, {}, r"\['BertModel'\]: must be one of Perc"),
        (
            "fourier",
            {"cross_attention_shape_for_attention": "k"},
            {},
            "attention = 'k': must be 'q' or 'kv'",
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
    with pytest.raises(ValueError, match="a state dict of none of PerceiverForImageClass"):
        load_pretrained(tmp_path)


def image_classifier(**parts):
    torch.manual_seed(0)
    encoder = EncoderConfig(
        **{"num_latents": 4, "latent_dim": 16, "num_cross_attends": 1, "num_self_attends": 1}
        | parts.pop("encoder", {})
    )
    defaults = {
        "input": ImageInput(height=8, width=8),
        "adapter": Pixels(),
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
        ({"adapter": ConvStem(norm="group")}, "adapter.norm = 'group', not 'batch'"),
        ({"decoder": DecoderConfig(num_heads=2)}, "decoder.num_heads = 2, not 1"),
        ({"decoder": DecoderConfig(gelu="erf")}, "decoder.gelu = 'erf', not 'tanh'"),
        ({"decoder": None}, "PerceiverClassifier: the model of none of PerceiverForImageClass"),
        ({"encoder": {"num_cross_attends": 2}}, "encoder.num_cross_attends = 2, not 1"),
        ({"encoder": {"share_self_attends": False}}, "share_self_attends = False: transformers"),
        ({"encoder": {"self_channels": 8}}, "self_channels = 8, .*: transformers has no settings"),
        (
            {"adapter": Pixels(num_channels=6), "positions": LearnedPositions()},
            "adapter.num_channels = 6, not 256",
        ),
        (
            {
                "input": ImageInput(height=8, width=4),
                "adapter": Pixels(num_channels=256),
                "positions": LearnedPositions(),
            },
            "height = 8, width = 4: transformers has learned positions for square images only",
        ),
        (
            {
                "input": AudioInput(sample_rate=8_000, num_samples=640),
                "adapter": Chunks(),
                "positions": FourierConfig(num_bands=2),
            },
            "PerceiverClassifier: the model of none of",
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
            {"adapter": ConvStem(), "positions": FourierConfig(max_resolution=(56, 56))},
            "adapter.padding = 'same', not 'valid'",
        ),
        (
            {
                "adapter": Pixels(num_channels=256),
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
