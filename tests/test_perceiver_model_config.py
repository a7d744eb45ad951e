"""Configurations: what is refused, what is derived, what survives JSON, and what imports torch."""

import dataclasses
import json
import math
import subprocess
import sys
from importlib import import_module

import pydantic
import pytest

import perceiver_model
from perceiver_model.adapters.configs import (
    AudioInput,
    ChunksConfig,
    ConvConfig,
    ImageInput,
    MelConfig,
    PatchesConfig,
    PixelsConfig,
    PointsConfig,
    PointsInput,
)
from perceiver_model.adapters.points_config import default_max_resolution
from perceiver_model.config import EncoderConfig, FourierConfig
from perceiver_model.config_checks import write_config
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.presets import PRESETS, preset
from pipeline.media import MelFormat, PointsFourier

IMAGE = ImageInput(height=28, width=21, channels=1)
AUDIO = AudioInput(sample_rate=16_000, num_samples=16_001)
SMALL = EncoderConfig(num_latents=4, latent_dim=16, num_blocks=2, num_cross_attends=1)


@pytest.mark.parametrize(
    ("config_type", "values", "message"),
    [
        (ImageInput, {"height": 0, "width": 2}, "height is 0; must be greater than or equal to 1"),
        (ImageInput, {"height": 2, "width": 2.0}, "width is 2.0; must be a valid integer"),
        (ImageInput, {"height": 2, "width": 2, "mean": (0.1, 0.2)}, "mean is .*a tuple of 1 or 3"),
        (ImageInput, {"height": 2, "width": 2, "std": (0.0,)}, "std.0 is .* greater than 0"),
        (MelConfig, {"hop": 0.0}, "hop is 0.0; must be greater than 0"),
        (MelConfig, {"hop": 0.03}, "hop is 0.03; must be at most window = 0.025"),
        (
            FourierConfig,
            {"max_resolution": (8, True)},
            "max_resolution.1 is True; .* a valid number",
        ),
        (ImageInput, {"height": True, "width": 2}, "height is True; must be a valid integer"),
        (EncoderConfig, {"depth": 8}, "EncoderConfig.depth is an unknown key"),
        (
            EncoderConfig,
            {"num_latents": 0, "gelu": "x", "dropout": 1.0},
            "num_latents is 0.*; EncoderConfig.gelu is 'x'.*; EncoderConfig.dropout is 1.0",
        ),
        (FourierConfig, {"num_bands": 0}, "num_bands is 0; must be greater than or equal to 1"),
        (
            FourierConfig,
            {"max_resolution": (0.0,)},
            "max_resolution.0 is 0.0; must be greater than 0",
        ),
        (EncoderConfig, {"num_cross_attends": 9}, "num_cross_attends is 9; .* num_blocks = 8"),
        (EncoderConfig, {"latent_dim": 100}, "latent_dim is 100; .* num_self_heads = 8"),
        (EncoderConfig, {"cross_channels": 9, "num_cross_heads": 2}, "cross_channels is 9; .* 2"),
        (
            EncoderConfig,
            {"share_cross_attends": "some"},
            "'some'; must be 'all', 'after_first' or 'none'",
        ),
        (EncoderConfig, {"cross_attend_layout": "last"}, "'last'; must be 'interleaved'"),
        (
            EncoderConfig,
            {"dropout": 1.0},
            "dropout is 1.0; must be less than 1",
        ),
    ],
)
def test_a_bad_field_is_refused_by_name_and_value(config_type, values, message):
    with pytest.raises(ValueError, match=message):
        config_type(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"input": AUDIO, "adapter": PixelsConfig()},
            "adapter is Pixels.*; must be chunks, mel or mel_conv",
        ),
        (
            {"input": IMAGE, "adapter": ChunksConfig()},
            "adapter is Chunks.*; must be pixels, patches, conv, conv_stem or backbone",
        ),
        ({"input": IMAGE, "adapter": PatchesConfig(patch_size=4)}, "patch_size is 4; .* 28 × 21"),
        ({"input": AUDIO, "adapter": MelConfig(num_mels=512)}, "num_mels is 512; must be lower"),
        ({"input": IMAGE, "positions": FourierConfig(max_resolution=(8,))}, "a tuple of 2 number"),
        (
            {"input": IMAGE, "encoder": dataclasses.replace(SMALL, num_cross_heads=2)},
            "num_cross_heads is 2; must be a divisor of the cross-attend's 259 channels",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ClassifierConfig(
            **{"adapter": PixelsConfig(), "encoder": SMALL, "num_classes": 10} | values
        )


@pytest.mark.parametrize(
    ("media", "adapter", "token_grid", "content_channels"),
    [
        (IMAGE, PixelsConfig(), (28, 21), 1),
        (IMAGE, PatchesConfig(patch_size=7), (4, 3), 49),
        (IMAGE, ConvConfig(num_channels=8), (14, 11), 8),
        (AUDIO, ChunksConfig(), (126,), 128),
        # 400-sample windows every 160: 98 end at or before sample 15,920, one more reaches 16,001.
        (AUDIO, MelConfig(), (99,), 64),
    ],
)
def test_token_grid_and_channels(media, adapter, token_grid, content_channels):
    config = ClassifierConfig(input=media, adapter=adapter, encoder=SMALL, num_classes=10)
    assert config.token_grid == config.max_resolution == token_grid
    assert config.content_channels == content_channels
    assert config.input_channels == content_channels + len(token_grid) * 129


def test_cross_attends_are_spread_evenly_from_the_first_block():
    def before_blocks(**values):
        return EncoderConfig(num_blocks=8, **values).cross_attends_before_block

    assert before_blocks(num_cross_attends=8) == (1,) * 8
    assert before_blocks(num_cross_attends=2) == (1, 0, 0, 0, 1, 0, 0, 0)
    assert before_blocks(num_cross_attends=3) == (1, 0, 1, 0, 0, 1, 0, 0)
    assert before_blocks(num_cross_attends=8, cross_attend_layout="first") == (8,) + (0,) * 7


@pytest.mark.parametrize(
    "config",
    [
        *PRESETS.values(),
        ClassifierConfig(input=AUDIO, adapter=MelConfig(hop=0.02), encoder=SMALL, num_classes=3),
    ],
)
def test_json_round_trip(config):
    values = json.loads(json.dumps(config.to_dict()))
    assert values == config.to_dict()
    assert type(config).from_dict(values) == config
    assert pydantic.TypeAdapter(type(config)).validate_json(json.dumps(values)) == config


def test_integers_in_fields_of_numbers_stay_integers_in_python_and_are_floats_from_json():
    config = FourierConfig(max_resolution=(224, 0.5))
    assert json.dumps(write_config(config)["max_resolution"]) == "[224, 0.5]"
    read = pydantic.TypeAdapter(FourierConfig).validate_json('{"max_resolution": [224, 0.5]}')
    assert read == config
    assert json.dumps(write_config(read)["max_resolution"]) == "[224.0, 0.5]"


def test_from_dict_refuses_unknown_and_missing_keys():
    values = PRESETS["imagenet"].to_dict()
    with pytest.raises(ValueError, match=r"EncoderConfig: unknown key\(s\) depth; known: num_lat"):
        ClassifierConfig.from_dict(values | {"encoder": {"depth": 8}})
    with pytest.raises(ValueError, match=r"ClassifierConfig: unknown key\(s\) head"):
        ClassifierConfig.from_dict(values | {"head": {}})
    with pytest.raises(ValueError, match=r"PatchesConfig: missing key\(s\) patch_size"):
        ClassifierConfig.from_dict(values | {"adapter": {"kind": "patches"}})
    with pytest.raises(ValueError, match=r"kind is one of .*'pixels'.*, got .*'voxels'"):
        ClassifierConfig.from_dict(values | {"adapter": {"kind": "voxels"}})
    del values["num_classes"]
    with pytest.raises(ValueError, match=r"ClassifierConfig: missing key\(s\) num_classes"):
        ClassifierConfig.from_dict(values)


def test_pydantic_forbids_unknown_keys_and_runs_the_checks():
    adapter = pydantic.TypeAdapter(EncoderConfig)
    with pytest.raises(pydantic.ValidationError, match="Unexpected keyword argument"):
        adapter.validate_json(json.dumps({"depth": 8}))
    with pytest.raises(pydantic.ValidationError, match="num_self_heads = 8"):
        adapter.validate_json(json.dumps({"latent_dim": 100}))


def test_unknown_preset_names_the_nearest():
    assert preset("imagenet") is PRESETS["imagenet"]
    with pytest.raises(ValueError, match="no preset 'imagnet': did you mean 'imagenet'"):
        preset("imagnet")


def test_configuration_imports_without_torch_or_numpy():
    code = (
        "import sys, perceiver_model.config, perceiver_model.flops\n"
        "import perceiver_model.families.presets\n"
        "perceiver_model.preset, perceiver_model.forward_flops, perceiver_model.MelConfig\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_found_in_its_module():
    for name, module in perceiver_model._MODULE_OF.items():
        found = getattr(import_module(module), name)
        assert getattr(perceiver_model, name) is found
    assert sorted(perceiver_model._MODULE_OF) == sorted(perceiver_model.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Perceiver'"):
        _ = perceiver_model.Perceiver


@pytest.mark.parametrize(
    ("num_points", "num_dims", "expected"),
    [
        (2048, 3, math.sqrt(2048 / math.pi)),
        (2048, 4, math.sqrt(2048 / math.pi)),
        (2048, 2, math.sqrt(2048)),
        (2048, 1, 2048.0),
        (4, 3, 2.0),
        (1, 1, 2.0),
    ],
)
def test_points_are_read_as_finely_as_they_lie(num_points, num_dims, expected):
    assert default_max_resolution(num_points, num_dims) == pytest.approx(expected, rel=1e-12)
    points = PointsInput(num_points=num_points, num_dims=num_dims)
    assert PointsConfig().resolution(points) == default_max_resolution(num_points, num_dims)
    if num_dims == 3:  # What preprocessing stores is what the model computes.
        assert PointsFourier().resolution(num_points) == PointsConfig().resolution(points)


@pytest.mark.parametrize("mel", [MelConfig, MelFormat])
def test_the_fft_is_the_smallest_power_of_two_that_holds_a_window(mel):
    sizes = {0.025: 512, 0.032: 512, 0.0321: 1024, 0.016: 256}
    for window, size in sizes.items():
        assert mel(window=window).fft_size(16_000) == size, window
