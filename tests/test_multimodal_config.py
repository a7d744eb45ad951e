"""Configurations of several modalities: what is refused, and what JSON keeps."""

import dataclasses
import json

import pydantic
import pytest
from multimodal_models import AUDIO, AUTOENCODER, LABEL, TEXT, classifier_config

from perceiver_model.adapters.configs import OneHotConfig, PatchesConfig
from perceiver_model.adapters.multimodal_config import MultimodalInput, PaddedModalities
from perceiver_model.config import DecoderConfig, FourierConfig
from perceiver_model.families.autoencoder_config import AutoencoderConfig, GridOutput, VectorOutput
from perceiver_model.families.kinetics_config import kinetics_autoencoder


@pytest.mark.parametrize(
    ("build_config", "message"),
    [
        (lambda: MultimodalInput(modalities={}), "modalities is {}; must be a mapping from ident"),
        (lambda: MultimodalInput(modalities={"a.b": AUDIO}), "must be a mapping from identifiers"),
        (
            lambda: dataclasses.replace(AUDIO, dropout=1.0),
            "dropout is 1.0; must be less than 1",
        ),
        (
            lambda: dataclasses.replace(AUDIO, mask_probability=1.5),
            "mask_probability is 1.5; must be less than or equal to 1",
        ),
        (
            lambda: dataclasses.replace(AUDIO, masked_in_evaluation=True),
            "masked_in_evaluation is True; must be False where mask_probability is None",
        ),
        (lambda: dataclasses.replace(LABEL, dropout=0.1), "dropout is 0.1; must be 0 where masked"),
        (
            lambda: dataclasses.replace(AUDIO, adapter=OneHotConfig()),
            "must be chunks, mel or mel_conv for audio",
        ),
        (
            lambda: dataclasses.replace(TEXT, positions=FourierConfig()),
            "must be None: token_embedding hold their own",
        ),
        (lambda: PaddedModalities(padding="ones"), "'ones'; must be 'learned' or 'zeros'"),
        (
            lambda: PaddedModalities(embedding_channels=0),
            "embedding_channels is 0; must be greater than",
        ),
        (
            lambda: dataclasses.replace(classifier_config(), adapter=PatchesConfig(patch_size=2)),
            "must be padded_modalities for multimodal",
        ),
        (
            lambda: dataclasses.replace(classifier_config(), positions=FourierConfig()),
            "positions is Fourier.*; must be None: padded_modalities hold their own",
        ),
        (lambda: dataclasses.replace(AUTOENCODER, outputs={}), "outputs is {}; must be a mapping"),
        (
            lambda: GridOutput(grid=(), num_channels=1),
            r"grid is \(\); must be a tuple of at least one integer",
        ),
        (
            lambda: GridOutput(
                grid=(2, 3), num_channels=1, positions=FourierConfig(max_resolution=(2,))
            ),
            "a tuple of 2 number",
        ),
        (
            lambda: GridOutput(grid=(2,), num_channels=1, spacing="even"),
            "spacing is 'even'; must be 'ends' or 'steps'",
        ),
        (
            lambda: VectorOutput(num_channels=0),
            "num_channels is 0; must be greater than or equal to 1",
        ),
        (
            lambda: dataclasses.replace(AUTOENCODER, decoder=DecoderConfig(num_heads=5)),
            "num_heads is 5; .* the latents' 32 channels",
        ),
        (
            lambda: kinetics_autoencoder(samples_per_token=1000),
            "samples_per_token is 1000; must be a divisor of num_samples = 30720",
        ),
    ],
)
def test_bad_configurations_are_refused(build_config, message):
    with pytest.raises(ValueError, match=message):
        build_config()


@pytest.mark.parametrize(
    "config", [classifier_config(), classifier_config("zeros", a=LABEL, b=TEXT), AUTOENCODER]
)
def test_json_round_trip(config):
    values = json.loads(json.dumps(config.to_dict()))
    assert type(config).from_dict(values) == config
    assert pydantic.TypeAdapter(type(config)).validate_json(json.dumps(values)) == config


def test_a_bad_modality_in_a_dictionary_is_named():
    values = AUTOENCODER.to_dict()
    values["input"]["modalities"]["audio"]["adapter"] = {"kind": "voxels"}
    with pytest.raises(ValueError, match=r"Modality.adapter: .* whose kind is one of \['pixels'"):
        AutoencoderConfig.from_dict(values)
    values["input"]["modalities"] = ["audio"]
    with pytest.raises(ValueError, match=r"MultimodalInput\.modalities: expected a mapping, got"):
        AutoencoderConfig.from_dict(values)
