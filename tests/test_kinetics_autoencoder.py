"""DeepMind's autoencoder of Kinetics: transformers' weights and outputs, both ways."""

import dataclasses

import pytest
import torch
from multimodal_models import AUTOENCODER, ENCODER
from transformers import PerceiverConfig, PerceiverForMultimodalAutoencoding
from transformers_models import SMALL_ENCODER, randomised

from perceiver_model.adapters.multimodal_config import MultimodalInput, PaddedModalities
from perceiver_model.config import FourierConfig
from perceiver_model.deepmind import (
    from_transformers_state,
    load_pretrained,
    save_pretrained,
    to_transformers_state,
)
from perceiver_model.families.autoencoder import MultimodalAutoencoder
from perceiver_model.families.kinetics_config import kinetics_autoencoder
from perceiver_model.families.presets import preset
from perceiver_model.flops import num_parameters

SETTINGS = PerceiverConfig(
    **SMALL_ENCODER,
    num_labels=7,
    num_frames=2,
    audio_samples_per_frame=32,
    samples_per_patch=4,
    image_size=3,
    output_shape=[1, 2, 8, 12],
    output_num_channels=24,
    _label_trainable_num_channels=20,
)


def video_and_sound():
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(2, 2, 8, 12, 3, generator=generator)
    return {"image": video, "audio": torch.rand(2, 64, generator=generator) - 0.5, "label": None}


def in_transformers(model, indices):
    inputs = video_and_sound()
    with torch.no_grad():
        return model(
            inputs={
                "image": inputs["image"].permute(0, 1, 4, 2, 3),
                "audio": inputs["audio"].unsqueeze(-1),
                "label": torch.zeros(2, 7),
            },
            subsampled_output_points=indices,
        ).logits


INDICES = {"image": torch.tensor([0, 100, 191, 57]), "audio": torch.tensor([15, 2, 3])}


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_pytorch_tanh"])
def test_transformers_weights_give_transformers_outputs(hidden_act):
    settings = PerceiverConfig(**SETTINGS.to_dict() | {"hidden_act": hidden_act})
    theirs = randomised(PerceiverForMultimodalAutoencoding(settings), gain=1.2)
    ours = from_transformers_state(theirs.state_dict(), settings.to_dict(), fidelity="transformers")
    expected = in_transformers(theirs, INDICES | {"label": None})
    with torch.no_grad():
        outputs = ours(video_and_sound(), indices=INDICES | {"label": None})
        whole = ours(video_and_sound())
    expected["audio"] = expected["audio"].unflatten(1, (3, 4))
    for name, tensor in expected.items():
        assert tensor.abs().mean() > 0.1
        torch.testing.assert_close(outputs[name], tensor, rtol=0, atol=1e-5)
    pixels = whole["image"].flatten(1, 3)[:, INDICES["image"]]
    torch.testing.assert_close(pixels, expected["image"], rtol=0, atol=1e-5)


def test_other_video_sizes_keep_the_trained_frequencies():
    state = randomised(PerceiverForMultimodalAutoencoding(SETTINGS), gain=1.2).state_dict()
    model = from_transformers_state(state, SETTINGS.to_dict(), image_size=(16, 4))
    assert model.config.input.modalities["image"].max_resolution == (2, 3, 3)
    inputs = video_and_sound() | {"image": torch.rand(2, 2, 16, 4, 3)}
    assert model(inputs)["image"].shape == (2, 2, 16, 4, 3)


def test_our_weights_give_our_outputs_in_transformers(tmp_path):
    theirs = PerceiverForMultimodalAutoencoding(SETTINGS)
    ours = randomised(
        from_transformers_state(theirs.state_dict(), SETTINGS.to_dict(), fidelity="transformers"),
        gain=1.2,
    )
    save_pretrained(ours, tmp_path)
    theirs = PerceiverForMultimodalAutoencoding.from_pretrained(tmp_path).eval()
    expected = in_transformers(theirs, INDICES | {"label": None})
    with torch.no_grad():
        outputs = ours(video_and_sound(), indices=INDICES | {"label": None})
    for name, tensor in expected.items():
        torch.testing.assert_close(outputs[name].flatten(), tensor.flatten(), rtol=0, atol=1e-5)
    again = load_pretrained(tmp_path, fidelity="transformers")
    assert again.config == ours.config
    state = theirs.state_dict()
    exported = to_transformers_state(again)
    assert set(exported) == set(state)
    assert all(torch.equal(exported[name], state[name]) for name in state)


def test_deepminds_autoencoder_has_the_gelu_by_tanh():
    theirs = randomised(PerceiverForMultimodalAutoencoding(SETTINGS), gain=1.2)
    ours = from_transformers_state(theirs.state_dict(), SETTINGS.to_dict())
    assert ours.config.encoder.gelu == ours.config.decoder.gelu == "tanh"
    expected = in_transformers(theirs, INDICES | {"label": None})["label"]
    difference = ours(video_and_sound(), indices={"label": None})["label"] - expected
    assert 1e-5 < difference.abs().max() < 1e-1


def test_an_autoencoder_that_transformers_has_not_is_not_exported():
    config = kinetics_autoencoder(
        num_frames=2,
        height=8,
        width=8,
        num_samples=64,
        sample_rate=800,
        samples_per_token=4,
        num_classes=7,
        max_resolution=(2, 2, 2),
        encoder=ENCODER,
        label_query_channels=20,
        decoded_channels=24,
    )
    # 2 × 2 tokens of 2 frames: the resolution that the configuration names is the default.
    image = config.input.modalities["image"]
    square = dataclasses.replace(image, positions=FourierConfig(num_bands=32))
    modalities = config.input.modalities | {"image": square}
    for known in (
        config,
        dataclasses.replace(config, input=MultimodalInput(modalities=modalities)),
    ):
        assert len(to_transformers_state(MultimodalAutoencoder(known))) > 50
    ends = dataclasses.replace(config.outputs["image"], spacing="ends")
    for change, message in [
        ({"query_embedding_channels": 3}, "query_embedding_channels = 3, not 2"),
        ({"outputs": config.outputs | {"image": ends}}, "spacing = 'ends', not 'steps'"),
        ({"adapter": PaddedModalities(embedding_channels=5)}, "embedding_channels = 5, not 4"),
    ]:
        model = MultimodalAutoencoder(dataclasses.replace(config, **change))
        with pytest.raises(ValueError, match=message):
            to_transformers_state(model)
    with pytest.raises(ValueError, match="MultimodalAutoencoder: not a model of any of"):
        to_transformers_state(MultimodalAutoencoder(AUTOENCODER))


def test_the_presets_have_the_published_sizes():
    config = preset("io-kinetics-autoencoder")
    settings = PerceiverConfig(
        num_latents=784,
        d_latents=512,
        num_blocks=1,
        num_self_attends_per_block=8,
        num_self_attention_heads=8,
        num_cross_attention_heads=1,
        num_labels=700,
    )
    with torch.device("meta"):
        assert num_parameters(MultimodalAutoencoder(config)) == 19_858_855
        assert num_parameters(PerceiverForMultimodalAutoencoding(settings)) == 19_858_855
    assert (config.num_tokens, config.input_channels) == (52_097, 704)
    assert (config.num_outputs, config.query_channels) == (804_737, 1026)
    # The paper's counts are those of four times as many samples of sound to a token.
    papers = kinetics_autoencoder(samples_per_token=64)
    assert (papers.num_tokens, papers.num_outputs) == (50_657, 803_297)
    both = preset("audioset-audio-video")
    assert both.token_grid == (480 + 12_544,)
    assert both.input_channels == 2 * 8 * 8 * 3 + 3 * 129 + 4
