"""Several modalities in one input array, and out of one decoder: classifier and autoencoder."""

import dataclasses
import json

import pydantic
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import PerceiverConfig, PerceiverForMultimodalAutoencoding

from perceiver_model.adapters import build_adapter
from perceiver_model.adapters.classes import OneHotAdapter
from perceiver_model.adapters.table import TableRows
from perceiver_model.attention import set_attention_path
from perceiver_model.autoencoder import MultimodalAutoencoder
from perceiver_model.autoencoder_config import AutoencoderConfig, GridOutput, VectorOutput
from perceiver_model.classifier import PerceiverClassifier
from perceiver_model.classifier_config import ClassifierConfig
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig, LearnedPositions
from perceiver_model.deepmind import (
    from_transformers_state,
    load_pretrained,
    save_pretrained,
    to_transformers_state,
)
from perceiver_model.flops import forward_flops, num_parameters
from perceiver_model.inputs import (
    AudioInput,
    Chunks,
    ClassInput,
    Columns,
    ImageInput,
    OneHot,
    Patches,
    TableInput,
    TextInput,
    TokenEmbedding,
)
from perceiver_model.kinetics_config import kinetics_autoencoder
from perceiver_model.modality_padding import ModalityPadding
from perceiver_model.multimodal_config import Modality, MultimodalInput, PaddedModalities
from perceiver_model.presets import preset

ENCODER = EncoderConfig(
    num_latents=8,
    latent_dim=32,
    num_blocks=1,
    num_cross_attends=1,
    num_self_attends=2,
    num_self_heads=4,
    latent_init_std=1.0,
)
AUDIO = Modality(
    input=AudioInput(sample_rate=8_000, num_samples=60),
    adapter=Chunks(chunk_size=10),
    positions=FourierConfig(num_bands=4),
)
IMAGE = Modality(
    input=ImageInput(height=8, width=6),
    adapter=Patches(patch_size=2),
    positions=LearnedPositions(num_channels=5, projected_channels=7),
)
TEXT = Modality(
    input=TextInput(max_length=9), adapter=TokenEmbedding(num_channels=8), positions=None
)
TABLE = Modality(input=TableInput(num_numeric=2), adapter=Columns(num_channels=6), positions=None)
LABEL = Modality(
    input=ClassInput(num_classes=3),
    adapter=OneHot(),
    positions=None,
    mask_probability=0.5,
    masked_in_evaluation=True,
)
MEDIA = MultimodalInput(modalities={"audio": AUDIO, "image": IMAGE, "text": TEXT, "table": TABLE})


def classifier_config(padding="learned", **modalities):
    media = MultimodalInput(modalities=modalities) if modalities else MEDIA
    return ClassifierConfig(
        input=media,
        adapter=PaddedModalities(padding=padding),
        positions=None,
        encoder=ENCODER,
        num_classes=3,
    )


AUTOENCODER = AutoencoderConfig(
    input=MultimodalInput(modalities={"audio": AUDIO, "image": IMAGE, "label": LABEL}),
    encoder=ENCODER,
    outputs={
        "audio": GridOutput(grid=(6,), num_channels=10, positions=FourierConfig(num_bands=4)),
        "image": GridOutput(
            grid=(8, 6), num_channels=3, positions=FourierConfig(num_bands=4), spacing="ends"
        ),
        "depth": GridOutput(
            grid=(4, 3),
            num_channels=1,
            positions=LearnedPositions(num_channels=5, projected_channels=6),
        ),
        "label": VectorOutput(num_channels=3, query_channels=12),
    },
    decoded_channels=16,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(model_type, config):
    torch.manual_seed(0)
    return model_type(config).eval()


def inputs_for(*names, batch=2):
    generator = torch.Generator().manual_seed(1)
    every = {
        "audio": torch.rand(batch, 60, generator=generator) - 0.5,
        "image": torch.rand(batch, 8, 6, 3, generator=generator),
        "text": torch.randint(6, 262, (batch, 7), generator=generator),
        "table": TableRows(
            torch.randn(batch, 2, generator=generator), torch.zeros(batch, 0, dtype=torch.int64)
        ),
        "label": torch.randint(0, 3, (batch,), generator=generator),
    }
    return {name: every[name] for name in names or MEDIA.modalities}


@pytest.mark.parametrize("padding", ["learned", "zeros"])
def test_tokens_are_content_positions_and_padding_of_one_width(padding):
    config = classifier_config(padding)
    torch.manual_seed(0)
    adapter = build_adapter(config)
    content, mask = adapter(inputs_for())
    # The widest: 2 × 2 pixels of 3 channels and 7 of positions, or 10 samples and 9: 19, and 4.
    assert content.shape == (2, 6 + 12 + 7 + 2, 23) and mask.all()
    assert config.token_grid == (6 + 12 + 9 + 2,) and config.input_channels == 23
    image, _ = build_adapter(IMAGE)(inputs_for()["image"])
    tokens = content[:, 6:18]
    torch.testing.assert_close(tokens[..., :12], image)
    (positions,) = adapter.positions["image"]()
    torch.testing.assert_close(tokens[1, :, 12:19], positions)
    text, table = content[:, 18:25], content[:, 25:]
    for name, narrow, width in [("text", text, 8), ("table", table, 6)]:
        appended = narrow[..., width:]
        assert torch.equal(appended, appended[:1, :1].expand_as(appended))
        learned = adapter.padding.vectors[name]
        assert learned.shape == (1, 23 - width if padding == "learned" else 4)
        torch.testing.assert_close(appended[0, 0, -learned.shape[1] :], learned[0])
        assert padding == "learned" or not appended[0, 0, :-4].any()
    assert not torch.equal(text[0, 0, -4:], table[0, 0, -4:])


@pytest.mark.parametrize("padding", ["learned", "zeros"])
def test_a_classifier_reads_every_modality(padding):
    model = build(PerceiverClassifier, classifier_config(padding))
    inputs = inputs_for()
    logits = model(inputs)
    assert logits.shape == (2, 3)
    for name, changed in inputs_for(batch=3).items():
        other = TableRows(*(part[1:] for part in changed)) if name == "table" else changed[1:]
        assert not torch.allclose(model(inputs | {name: other}), logits, atol=1e-4), name


def test_samples_in_a_batch_do_not_touch_each_other():
    model = build(PerceiverClassifier, classifier_config())
    inputs = inputs_for()
    first = {name: value[:1] for name, value in inputs.items() if name != "table"}
    first["table"] = TableRows(*(part[:1] for part in inputs["table"]))
    torch.testing.assert_close(model(first), model(inputs)[:1], rtol=1e-4, atol=1e-5)


def test_a_modality_masked_throughout_is_a_missing_one():
    model = build(PerceiverClassifier, classifier_config())
    inputs = inputs_for()
    lacks_sound = {"audio": torch.tensor([[True], [False]]).expand(2, 60)}
    logits = model(inputs, lacks_sound)
    torch.testing.assert_close(logits[0], model(inputs)[0], rtol=1e-4, atol=1e-5)
    without = model(inputs | {"audio": None})
    torch.testing.assert_close(logits[1], without[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits[1], model(inputs)[1], atol=1e-4)
    everywhere = {"audio": torch.ones(2, 60, dtype=torch.bool), "image": None}
    torch.testing.assert_close(model(inputs, everywhere), model(inputs), rtol=1e-4, atol=1e-5)


def test_dropped_modalities_are_lost_in_training_alone_and_never_all():
    media = {
        "audio": dataclasses.replace(AUDIO, dropout=0.9),
        "image": dataclasses.replace(IMAGE, dropout=0.3),
    }
    adapter = build_adapter(classifier_config(**media))
    inputs = inputs_for("audio", "image", batch=400)
    torch.manual_seed(0)
    _, mask = adapter(inputs)
    audio, image = mask[:, :6], mask[:, 6:]
    for part in (audio, image):
        assert torch.equal(part.any(dim=1), part.all(dim=1))
    assert mask.any(dim=1).all()
    # 0.27 of samples would lose both, and lose none instead.
    assert (~audio[:, 0]).float().mean().item() == pytest.approx(0.9 - 0.27, abs=0.06)
    assert (~image[:, 0]).float().mean().item() == pytest.approx(0.3 - 0.27, abs=0.03)
    assert adapter.eval()(inputs)[1] is None


def test_a_sample_that_lacks_one_modality_keeps_the_other():
    adapter = build_adapter(
        classifier_config(audio=dataclasses.replace(AUDIO, dropout=0.9), image=IMAGE)
    )
    masks = {"image": torch.zeros(50, 8, 6, dtype=torch.bool)}
    _, mask = adapter(inputs_for("audio", "image", batch=50), masks)
    assert mask[:, :6].all() and not mask[:, 6:].any()
    # Mask tokens of unknown labels are no modality to be left with.
    audio = dataclasses.replace(AUDIO, dropout=0.9)
    adapter = build_adapter(classifier_config(audio=audio, label=LABEL))
    _, mask = adapter(inputs_for("audio", "label", batch=50) | {"label": None})
    assert mask.all()


def test_mask_tokens_replace_tokens_with_their_probability_in_training():
    audio = dataclasses.replace(AUDIO, mask_probability=0.25)
    adapter = build_adapter(classifier_config(audio=audio, image=IMAGE))
    inputs = inputs_for("audio", "image", batch=200)
    torch.manual_seed(0)
    content, mask = adapter(inputs)
    masked = (content[:, :6] == adapter.mask_tokens["audio"]).all(dim=-1)
    assert masked.float().mean().item() == pytest.approx(0.25, abs=0.04) and mask is None
    unmasked, _ = adapter.eval()(inputs)
    torch.testing.assert_close(content[:, :6][~masked], unmasked[:, :6][~masked])
    torch.testing.assert_close(content[:, 6:], unmasked[:, 6:])
    assert list(adapter.mask_tokens) == ["audio"]
    sound = (torch.arange(60) < 20).expand(200, -1)
    _, mask = adapter.train()(inputs, {"audio": sound})
    assert mask[0].tolist() == [True] * 2 + [False] * 4 + [True] * 12


def test_a_label_is_read_in_training_and_masked_in_evaluation():
    config = classifier_config(audio=AUDIO, label=LABEL)
    adapter = build_adapter(config)
    inputs = inputs_for("audio", "label", batch=100)
    token = adapter.mask_tokens["label"]
    content, _ = adapter(inputs)
    masked = (content[:, 6] == token).all(dim=-1)
    assert 20 < masked.sum() < 80
    one_hot = F.one_hot(inputs["label"], 3).float()
    torch.testing.assert_close(content[~masked, 6, :3], one_hot[~masked])
    # A sample without a label has the mask token, which evaluation shows for all.
    known = torch.arange(100) < 50
    content, mask = adapter(inputs, {"label": known})
    assert mask is None and (content[50:, 6] == token).all()
    for given in (inputs, inputs | {"label": None}):
        for masks in (None, {"label": known}):
            content, mask = adapter.eval()(given, masks)
            assert mask is None and (content[:, 6] == token).all()


def test_label_tokens_are_one_hot_or_probabilities():
    adapter = OneHotAdapter(ClassInput(num_classes=3))
    content, mask = adapter(torch.tensor([2, 0]))
    assert content.tolist() == [[[0, 0, 1]], [[1, 0, 0]]] and mask is None
    probabilities = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    assert torch.equal(adapter(probabilities)[0], probabilities.unsqueeze(1))
    content, mask = adapter(torch.tensor([2, 99]), torch.tensor([True, False]))
    assert content[1].tolist() == [[0, 0, 0]] and mask.tolist() == [[True], [False]]
    for bad, message in [
        (torch.zeros(2, 4), r"\[2, 4\]: expected \[batch, 3\]"),
        (torch.zeros(2, 3).long(), r"\[2, 3\]: expected \[batch\]"),
        (torch.zeros(2, 3).int(), "torch.int32: expected floating"),
    ]:
        with pytest.raises(ValueError, match=message):
            adapter(bad)


def test_a_classifier_learns_from_two_modalities_what_neither_tells():
    torch.manual_seed(0)
    config = classifier_config(audio=AUDIO, table=TABLE)
    model = PerceiverClassifier(dataclasses.replace(config, num_classes=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    def batch(size):
        loud, positive = torch.randint(0, 2, (2, size))
        sound = (0.05 + 0.4 * loud.unsqueeze(1)) * torch.randn(size, 60)
        numeric = (2 * positive - 1).unsqueeze(1) + 0.1 * torch.randn(size, 2)
        rows = TableRows(numeric, torch.zeros(size, 0, dtype=torch.int64))
        return {"audio": sound, "table": rows}, loud ^ positive

    for _ in range(80):
        inputs, labels = batch(32)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    inputs, labels = batch(200)
    assert (model.eval()(inputs).argmax(dim=1) == labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("inputs", "masks", "message"),
    [
        ({"audio": torch.zeros(2, 60)}, None, r"inputs \['audio'\]: .*\['audio', 'image'\]"),
        (torch.zeros(2, 60), None, "inputs Tensor: expected a mapping"),
        ({"audio": None, "image": None}, None, "several batch sizes, or none"),
        (
            {"audio": torch.zeros(2, 60), "image": torch.zeros(3, 8, 6, 3)},
            None,
            "several batch sizes, or none: {'audio': 2, 'image': 3}",
        ),
        (inputs_for("audio", "image"), {"video": None}, r"masks for \['video'\]: modalities are"),
        (
            inputs_for("audio", "image"),
            {"audio": torch.ones(2, 59).bool()},
            r"mask of shape \[2, 59\]",
        ),
    ],
)
def test_wrong_inputs_are_refused(inputs, masks, message):
    model = build(PerceiverClassifier, classifier_config(audio=AUDIO, image=IMAGE))
    with pytest.raises(ValueError, match=message):
        model(inputs, masks)


@pytest.mark.parametrize(
    ("build_config", "message"),
    [
        (lambda: MultimodalInput(modalities={}), "modalities = {}: must be a mapping from ident"),
        (lambda: MultimodalInput(modalities={"a.b": AUDIO}), "must be a mapping from identifiers"),
        (lambda: dataclasses.replace(AUDIO, dropout=1.0), "dropout = 1.0: must be at least 0 and"),
        (
            lambda: dataclasses.replace(AUDIO, mask_probability=1.5),
            "mask_probability = 1.5: must be from 0 to 1",
        ),
        (
            lambda: dataclasses.replace(AUDIO, masked_in_evaluation=True),
            "masked_in_evaluation = True: must be False where mask_probability is None",
        ),
        (lambda: dataclasses.replace(LABEL, dropout=0.1), "dropout = 0.1: must be 0 where masked"),
        (lambda: dataclasses.replace(AUDIO, adapter=OneHot()), "must be chunks or mel for audio"),
        (
            lambda: dataclasses.replace(TEXT, positions=FourierConfig()),
            "must be None: token_embedding hold their own",
        ),
        (lambda: PaddedModalities(padding="ones"), "'ones': must be one of 'learned', 'zeros'"),
        (lambda: PaddedModalities(embedding_channels=0), "embedding_channels = 0: must be an int"),
        (
            lambda: dataclasses.replace(classifier_config(), adapter=Patches(patch_size=2)),
            "must be padded_modalities for multimodal",
        ),
        (
            lambda: dataclasses.replace(classifier_config(), positions=FourierConfig()),
            "positions = Fourier.*: must be None: padded_modalities hold their own",
        ),
        (lambda: dataclasses.replace(AUTOENCODER, outputs={}), "outputs = {}: must be a mapping"),
        (lambda: GridOutput(grid=(), num_channels=1), r"grid = \(\): must be a tuple of integers"),
        (
            lambda: GridOutput(
                grid=(2, 3), num_channels=1, positions=FourierConfig(max_resolution=(2,))
            ),
            "a tuple of 2 finite number",
        ),
        (
            lambda: GridOutput(grid=(2,), num_channels=1, spacing="even"),
            "spacing = 'even': must be one of 'ends', 'steps'",
        ),
        (lambda: VectorOutput(num_channels=0), "num_channels = 0: must be an integer"),
        (
            lambda: dataclasses.replace(AUTOENCODER, decoder=DecoderConfig(num_heads=5)),
            "num_heads = 5: .* the latents' 32 channels",
        ),
        (
            lambda: kinetics_autoencoder(samples_per_token=1000),
            "samples_per_token = 1000: must be a divisor of num_samples = 30720",
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
    assert pydantic.TypeAdapter(type(config)).validate_python(values) == config


def test_a_bad_modality_in_a_dictionary_is_named():
    values = AUTOENCODER.to_dict()
    values["input"]["modalities"]["audio"]["adapter"] = {"kind": "voxels"}
    with pytest.raises(ValueError, match=r"Modality.adapter: .* whose kind is one of \['pixels'"):
        AutoencoderConfig.from_dict(values)
    values["input"]["modalities"] = ["audio"]
    with pytest.raises(ValueError, match=r"MultimodalInput\.modalities: expected a mapping, got"):
        AutoencoderConfig.from_dict(values)


def test_every_output_is_the_same_alone_in_parts_and_for_each_sample():
    model = build(MultimodalAutoencoder, AUTOENCODER)
    inputs = inputs_for("audio", "image", "label")
    outputs = model(inputs)
    shapes = {name: tuple(output.shape) for name, output in outputs.items()}
    assert shapes == {
        "audio": (2, 6, 10),
        "image": (2, 8, 6, 3),
        "depth": (2, 4, 3, 1),
        "label": (2, 3),
    }
    latents = model.encode(inputs)
    assert list(model.decode(latents, indices={"label": None})) == ["label"]
    sizes = []
    hook = model.decoder.cross_attend.register_forward_pre_hook(
        lambda _, args: sizes.append(args[0].shape[1])
    )
    parts = model.decode(latents, chunk_size=5)
    hook.remove()
    assert sizes == [5, 1, *[5] * 9, 3, 5, 5, 2, 1]
    for name, output in outputs.items():
        assert output.std() > 1e-3
        torch.testing.assert_close(parts[name], output)
    shared, own = torch.tensor([3, 0]), torch.tensor([[5, 1, 1], [0, 2, 47]])
    some = model.decode(latents, indices={"audio": shared, "image": own})
    torch.testing.assert_close(some["audio"], outputs["audio"][:, shared])
    pixels = outputs["image"].flatten(1, 2)
    torch.testing.assert_close(some["image"], torch.stack([pixels[0, own[0]], pixels[1, own[1]]]))


def test_what_a_sample_lacks_is_not_encoded():
    model = build(MultimodalAutoencoder, AUTOENCODER)
    inputs = inputs_for("audio", "image", "label")
    masks = {"audio": torch.tensor([[True], [False]]).expand(2, 60)}
    latents = model.encode(inputs, masks)
    without = model.encode(inputs | {"audio": None})
    torch.testing.assert_close(latents[1], without[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(latents[0], without[0], atol=1e-3)


def test_outputs_that_there_are_not_are_refused():
    model = build(MultimodalAutoencoder, AUTOENCODER)
    latents = model.encode(inputs_for("audio", "image", "label"))
    for indices, message in [
        ({"video": None}, r"indices for \['video'\]: outputs are \['audio', 'image', 'depth'"),
        ({"audio": torch.tensor([6])}, r"indices\['audio'\] from 6 to 6: there are 6 outputs"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.decode(latents, indices=indices)


@pytest.mark.parametrize(
    ("model_type", "config", "names"),
    [
        (PerceiverClassifier, classifier_config(), ()),
        (MultimodalAutoencoder, AUTOENCODER, ("audio", "image", "label")),
    ],
)
def test_flops_are_those_of_the_plain_algorithm(model_type, config, names):
    inputs = inputs_for(*names, batch=1)
    if "text" in inputs:
        inputs["text"] = torch.full((1, 9), 7)
    model = build(model_type, config)
    set_attention_path(model, "reference")
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    assert forward_flops(config) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("model_type", "config", "names"),
    [
        (PerceiverClassifier, classifier_config(), ()),
        (MultimodalAutoencoder, AUTOENCODER, ("audio", "image", "label")),
    ],
)
def test_weights_survive_safetensors_and_bfloat16_is_near(model_type, config, names, tmp_path):
    model, inputs = build(model_type, config), inputs_for(*names)

    def run(some):
        outputs = some(inputs)
        parts = outputs.values() if isinstance(outputs, dict) else [outputs]
        return torch.cat([part.flatten() for part in parts])

    expected = run(model)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    restored = model_type(config).eval()
    restored.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(run(restored), expected, rtol=0, atol=0)
    assert run(model.double()).dtype == torch.float64
    cast = run(model.bfloat16())
    assert cast.dtype == torch.float32 and (cast - expected).norm() < 0.1 * expected.norm()


def test_every_parameter_learns():
    model = build(MultimodalAutoencoder, AUTOENCODER).train()
    loss = sum(
        output.square().sum() for output in model(inputs_for("audio", "image", "label")).values()
    )
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_compiles_into_one_graph():
    config = classifier_config(
        audio=dataclasses.replace(AUDIO, dropout=0.5), image=IMAGE, label=LABEL
    )
    model = build(PerceiverClassifier, config)
    inputs = inputs_for("audio", "image", "label")
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    torch.testing.assert_close(compiled(inputs), model(inputs))
    assert compiled.train()(inputs).isfinite().all()


def test_padding_tells_equal_vectors_of_two_modalities_apart():
    padding = ModalityPadding({"a": 3, "b": 5}, embedding_channels=2)
    tokens = torch.ones(1, 2, 3)
    assert (
        padding("a", tokens).shape == (1, 2, 7) and padding("b", torch.ones(1, 2, 5)).shape[2] == 7
    )
    assert not torch.equal(
        padding("a", tokens)[..., 5:], padding("b", torch.ones(1, 2, 5))[..., 5:]
    )


# DeepMind's autoencoder of Kinetics

SETTINGS = PerceiverConfig(
    num_latents=8,
    d_latents=32,
    num_blocks=1,
    num_self_attends_per_block=2,
    num_self_attention_heads=4,
    num_cross_attention_heads=1,
    num_labels=7,
    num_frames=2,
    audio_samples_per_frame=32,
    samples_per_patch=4,
    image_size=3,
    output_shape=[1, 2, 8, 12],
    output_num_channels=24,
    _label_trainable_num_channels=20,
)


def randomised(model):
    """Weights as large as trained ones, so that what differs shows."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 4
        torch.nn.init.normal_(parameter, std=1.2 * fan_in**-0.5, generator=generator)
    return model.eval()


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
    theirs = randomised(PerceiverForMultimodalAutoencoding(settings))
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
    state = randomised(PerceiverForMultimodalAutoencoding(SETTINGS)).state_dict()
    model = from_transformers_state(state, SETTINGS.to_dict(), image_size=(16, 4))
    assert model.config.input.modalities["image"].max_resolution == (2, 3, 3)
    inputs = video_and_sound() | {"image": torch.rand(2, 2, 16, 4, 3)}
    assert model(inputs)["image"].shape == (2, 2, 16, 4, 3)


def test_our_weights_give_our_outputs_in_transformers(tmp_path):
    theirs = PerceiverForMultimodalAutoencoding(SETTINGS)
    ours = randomised(
        from_transformers_state(theirs.state_dict(), SETTINGS.to_dict(), fidelity="transformers")
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
    theirs = randomised(PerceiverForMultimodalAutoencoding(SETTINGS))
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
    with pytest.raises(ValueError, match="MultimodalAutoencoder: the model of none of"):
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
