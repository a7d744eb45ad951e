"""transformers' Perceivers: read, computed alike, and written again."""

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from transformers_models import (
    CASES,
    CONV,
    FOURIER,
    LANGUAGE,
    LEARNED,
    assert_alike,
    inputs_of,
    logits_of,
    ours_of,
    random_transformers,
)

from perceiver_model.adapters.configs import ImageInput
from perceiver_model.adapters.stem import same_padding
from perceiver_model.attention.tokens import InputArray
from perceiver_model.config import FourierConfig
from perceiver_model.deepmind import (
    ARCHITECTURES,
    load_pretrained,
    save_pretrained,
    to_transformers_state,
)
from perceiver_model.deepmind.imagenet import MEAN, STD


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
    from perceiver_model.families.presets import PRESETS

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
