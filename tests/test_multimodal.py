"""Several modalities in one input array, and out of one decoder: classifier and autoencoder."""

import dataclasses

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from multimodal_models import (
    AUDIO,
    AUTOENCODER,
    IMAGE,
    LABEL,
    TABLE,
    build,
    classifier_config,
    inputs_for,
)
from torch.utils.flop_counter import FlopCounterMode

from perceiver_model.adapters.build import build_adapter
from perceiver_model.adapters.classes import OneHotAdapter
from perceiver_model.adapters.configs import ClassInput
from perceiver_model.adapters.modality_padding import ModalityPadding
from perceiver_model.adapters.table import TableRows
from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.families.autoencoder import MultimodalAutoencoder
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.flops import forward_flops


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
