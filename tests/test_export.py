"""Exported programs and ONNX files give what the model gives, for batches of any size."""

import pytest
import torch
from small_presets import example, example_mask, randomised, small_preset
from torch import nn

from perceiver_model import export
from perceiver_model.adapters.configs import (
    AudioInput,
    ChunksConfig,
    ColumnsConfig,
    ConvConfig,
    ImageInput,
    MelConfig,
    PatchesConfig,
    PixelsConfig,
    TableInput,
)
from perceiver_model.adapters.table import TableRows
from perceiver_model.attention.multi_head import set_attention_path
from perceiver_model.config import DecoderConfig, EncoderConfig, FourierConfig
from perceiver_model.export import export_onnx, export_program
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.dense import DensePredictor
from perceiver_model.families.dense_config import DenseConfig
from perceiver_model.families.presets import PRESETS

IMAGE = ImageInput(height=8, width=6, channels=2)
AUDIO = AudioInput(sample_rate=8_000, num_samples=1_000)
ENCODER = EncoderConfig(
    num_latents=4,
    latent_dim=16,
    num_blocks=2,
    num_cross_attends=2,
    num_self_attends=1,
    num_self_heads=2,
    latent_init_std=1.0,
)
ADAPTERS = {
    adapter.kind: (media, adapter)
    for media, adapter in [
        (IMAGE, PixelsConfig()),
        (IMAGE, PatchesConfig(patch_size=2)),
        (IMAGE, ConvConfig(num_channels=4)),
        (AUDIO, ChunksConfig(chunk_size=64)),
        (AUDIO, MelConfig(num_mels=8)),
    ]
}


def example_rows(batch):
    numeric = torch.randn(batch, 2)
    numeric[0, 0] = torch.nan
    return TableRows(numeric, torch.randint(-1, 3, (batch, 1)))


def check_program(program, model, *inputs):
    results, expected = program.module()(*inputs), model.eval()(*inputs)
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_exports_with_masks(name):
    torch.manual_seed(0)
    model, media = small_preset(name)
    (inputs, mask), (others, other_mask) = (
        (inputs, example_mask(media, inputs, size))
        for inputs, size in [(example(media, 2), 2), (example(media, 5), 5)]
    )
    check_program(export_program(model, (inputs, mask)), model, others, other_mask)


def classifier(kind="pixels", decoder=None):
    media, adapter = ADAPTERS[kind]
    config = ClassifierConfig(
        input=media,
        adapter=adapter,
        positions=FourierConfig(num_bands=3),
        encoder=ENCODER,
        decoder=decoder,
        num_classes=3,
    )
    return randomised(PerceiverClassifier(config))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_adapter_exports_and_loads_without_this_package(kind, masked, tmp_path):
    torch.manual_seed(0)
    media, _ = ADAPTERS[kind]
    model = classifier(kind, DecoderConfig() if masked else None)
    (inputs, mask), (others, other_mask) = (
        (inputs, example_mask(media, inputs, size) if masked else None)
        for inputs, size in [(example(media, 1), 1), (example(media, 3), 3)]
    )
    torch.export.save(export_program(model, (inputs, mask)), tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2")
    check_program(program, model, others, other_mask)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {getattr(call, "namespace", "aten") for call in calls} <= {"aten", "higher_order"}


def test_a_classifier_of_tables_exports_and_loads(tmp_path):
    config = ClassifierConfig(
        input=TableInput(num_numeric=2, num_categories=(3,)),
        adapter=ColumnsConfig(num_channels=6),
        positions=None,
        encoder=ENCODER,
        num_classes=3,
    )
    model = randomised(PerceiverClassifier(config))
    torch.export.save(export_program(model, (example_rows(2),)), tmp_path / "program.pt2")
    check_program(torch.export.load(tmp_path / "program.pt2"), model, example_rows(3))


def test_chosen_outputs_of_dense_prediction_export():
    config = DenseConfig(
        input=IMAGE,
        adapter=PixelsConfig(),
        positions=FourierConfig(num_bands=3),
        encoder=ENCODER,
        output_channels=2,
        query_positions=FourierConfig(num_bands=2),
        query_tokens=True,
    )
    model = randomised(DensePredictor(config))
    program = export_program(model, (example(IMAGE, 2),), {"indices": torch.randint(0, 48, (2, 5))})
    inputs, indices = example(IMAGE, 3), torch.randint(0, 48, (3, 5))
    torch.testing.assert_close(
        program.module()(inputs, indices=indices),
        model.eval()(inputs, indices=indices),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("path", ["reference", "fused", "factored"])
def test_the_program_computes_attention_by_the_path_asked_for(path):
    program = export_program(classifier(), (example(IMAGE, 2),), attention_path=path)
    calls = [str(node.target) for node in program.graph.nodes]
    assert any("scaled_dot_product_attention" in call for call in calls) == (path != "reference")
    # [x | p] and the learned query are all that is concatenated.
    assert any("aten.cat" in call for call in calls) == (path != "factored")


def test_keywords_are_arguments_of_the_program():
    model, state = classifier(), torch.randn(2, 4, 16)
    program = export_program(model, (example(IMAGE, 2),), {"state": state})
    inputs, state = example(IMAGE, 3), torch.randn(3, 4, 16)
    torch.testing.assert_close(
        program.module()(inputs, state=state), model(inputs, state=state), rtol=1e-4, atol=1e-4
    )


def attributes_of(model):
    """Those of every module, its mode and its parts among them, as they are now."""
    return {
        name: {
            key: dict(value) if isinstance(value, dict) else value
            for key, value in vars(module).items()
        }
        for name, module in model.named_modules()
    }


def test_the_model_is_left_as_it_was_and_shares_nothing_with_the_program():
    model = classifier().train()
    model.encoder.blocks.eval()
    set_attention_path(model, "separable")
    before = attributes_of(model)
    inputs = example(IMAGE, 2)
    program = export_program(model, (inputs,))
    result = program.module()(inputs)
    assert attributes_of(model) == before
    assert model.encoder.cross_attends[0].attention_path == "separable"
    nn.init.zeros_(model.head.output.weight)
    torch.testing.assert_close(program.module()(inputs), result, rtol=0, atol=0)


def test_a_compiled_model_exports():
    model = classifier()
    program = export_program(torch.compile(model, backend="eager"), (example(IMAGE, 2),))
    check_program(program, model, example(IMAGE, 3))


def test_a_program_of_one_batch_size_refuses_others():
    program = export_program(classifier(), (example(IMAGE, 2),), dynamic_batch=False)
    with pytest.raises(RuntimeError, match="to be equal to 2, but got 3"):
        program.module()(example(IMAGE, 3))


@pytest.mark.parametrize("change", [1e-3, float("nan")])
def test_a_program_with_other_results_is_refused(change, monkeypatch):
    def spoil(model):
        with torch.no_grad():
            model.head.output.bias += change

    monkeypatch.setattr(export, "_unpack_constants", spoil)
    with pytest.raises(ValueError, match=r"the exported program: its results differ .* by up to"):
        export_program(classifier(), (example(IMAGE, 2),))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="attention path 'separable': must be reference, fused"):
        export_program(classifier(), (example(IMAGE, 2),), attention_path="separable")
    with pytest.raises(ValueError, match=r"examples of shapes \[\[2, 8, 6, 2\], \[1, 4, 16\]\]"):
        export_program(classifier(), (example(IMAGE, 2),), {"state": torch.randn(1, 4, 16)})


@pytest.mark.parametrize("kind", ["pixels", "mel"])
def test_onnx_runtime_gives_what_the_model_gives(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export brings it")
    pytest.importorskip("onnxscript", reason="the extra export brings it")
    torch.manual_seed(0)
    media, _ = ADAPTERS[kind]
    model = classifier(kind, DecoderConfig())
    inputs = example(media, 1)
    export_onnx(model, tmp_path / "model.onnx", (inputs, example_mask(media, inputs, 1)))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    others = example(media, 3)
    mask = example_mask(media, others, 3)
    (logits,) = session.run(None, {"inputs": others.numpy(), "mask": mask.numpy()})
    expected = model.eval()(others, mask)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


def test_fast_features_of_points_keep_their_precision_in_onnx(tmp_path):
    """Frequencies of thousands of radians turn the rounding of a number to float32 into 10⁻⁴."""
    pytest.importorskip("onnxruntime", reason="the extra export brings it")
    pytest.importorskip("onnxscript", reason="the extra export brings it")
    torch.manual_seed(0)
    model, media = small_preset("modelnet40")
    export_onnx(model, tmp_path / "points.onnx", (example(media, 2),))


def test_an_onnx_file_with_other_results_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the extra export brings it")
    pytest.importorskip("onnxscript", reason="the extra export brings it")
    exported = torch.onnx.export

    def spoiled(program, **options):
        program.state_dict["head.output.bias"].data += 1e-3
        return exported(program, **options)

    model, inputs = classifier("chunks"), example(AUDIO, 2)
    monkeypatch.setattr(torch.onnx, "export", spoiled)
    with pytest.raises(ValueError, match="the ONNX file: its results differ"):
        export_onnx(model, tmp_path / "model.onnx", (inputs,))
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_packages_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx, onnxscript, onnxruntime: pip install .*\[export"):
        export_onnx(classifier(), tmp_path / "model.onnx", (example(IMAGE, 2),))
