"""The ONNX file of a model gives what the model gives, or is refused by the objective's name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from gate_bench import VALIDATION, Bench
from gate_runs import NAME, track
from modality_samples import ROWS
from served_models import card_of
from test_answer_params import AUTOREGRESSION
from test_inference import image_card, png, random_weights
from test_objective_autoencode import objective_of as autoencoding

from pipeline.cli.main import main
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.media import AudioFormat, ImageFormat, TextFormat
from pipeline.registry import onnx_file
from pipeline.registry.onnx_file import check_onnx, write_onnx
from pipeline.registry.predict import load_model
from pipeline.registry.served.inference import ModelCard, Predictor


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_a_file_takes_batches_of_any_size_and_answers_as_the_model(tmp_path: Path) -> None:
    card = image_card()
    weights = random_weights(card)
    path = write_onnx(card, weights, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path)
    ((given,), (found,)) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, given.type) == ("inputs", ["batch", 8, 8, 1], "tensor(uint8)")
    assert (found.name, found.shape) == ("outputs", ["batch", 3])
    about = session.get_modelmeta().custom_metadata_map
    assert (about["objective"], json.loads(about["classes"])) == ("classify", ["cat", "dog", "owl"])
    predictor = Predictor(card, weights, torch.device("cpu"))
    images = [png(seed) for seed in range(5)]
    pixels = np.stack([predictor._decode(image)["image"] for image in images])
    for count in (1, 2, 5):
        (logits,) = session.run(None, {"inputs": pixels[:count]})
        wanted = [list(one.probabilities.values()) for one in predictor.predict(images[:count])]
        np.testing.assert_allclose(softmax(logits), wanted, atol=1e-5)


# One text has the full length, which graphs take.
RAW: dict[str, list[Any]] = {
    "labels": [png(1), png(2)],
    "segment": [png(1), png(2)],
    "sequence": [b"short", b"a text of 24 bytes, whole"[:24]],
    "masked_language": [b"a w_rd", b"a text of f_rty bytes, which is its wh_le"[:40]],
    "regress": [
        {"image": png(1), "text": "a text of 24 bytes, whole"[:24], **ROWS[1]},
        {"text": "no picture", **ROWS[2]},
        {"image": png(2)},
        {"image": png(3), "x": None, "y": 2.0, "c": None},
    ],
}
INPUTS = {
    "regress": {
        "inputs_image": [8, 8, 1], "inputs_text": [24],
        "inputs_table_numeric": [2], "inputs_table_categorical": [1],
        "mask_image": [8, 8], "mask_text": [24],
    },
    "sequence": {"inputs": [24], "mask": [24]},
    "masked_language": {"inputs": [40], "mask": [40]},
}  # fmt: skip


def named(kind: str, values: Any) -> dict[str, np.ndarray]:
    """What a graph takes, by name: the tensors of a batch's inputs, or of its mask."""
    if isinstance(values, torch.Tensor):
        return {kind: values.numpy()}
    parts = values._asdict() if hasattr(values, "_asdict") else values or {}
    found = {}
    for name, value in parts.items():
        found |= named(f"{kind}_{name}", value)
    return found


@pytest.mark.parametrize("kind", RAW)
def test_every_objective_s_file_answers_as_the_model(kind: str, tmp_path: Path) -> None:
    card = card_of(kind, tmp_path)
    weights, objective = random_weights(card), card.objective
    session = onnxruntime.InferenceSession(write_onnx(card, weights, tmp_path))
    shapes = {given.name: given.shape for given in session.get_inputs()}
    expected = INPUTS.get(kind, {"inputs": [8, 8, 1]})
    assert shapes == {name: ["batch", *shape] for name, shape in expected.items()}
    predictor = Predictor(card, weights, torch.device("cpu"))
    batch = predictor._batch([predictor._decode(each) for each in RAW[kind]])
    (found,) = session.run(None, named("inputs", batch.inputs) | named("mask", batch.mask))
    with torch.no_grad():
        wanted = objective.outputs(predictor.model, objective.as_asked(batch), training=False)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4 * max(1, wanted.abs().max()))
    assert len({row.tobytes() for row in found}) == len(found), "samples differ"


def test_a_file_that_ignores_what_a_sample_lacks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_of("regress", tmp_path)
    run = onnxruntime.InferenceSession.run

    def ignoring(self: Any, names: Any, given: dict[str, np.ndarray], *rest: Any) -> Any:
        whole = {name: value | name.startswith("mask_") for name, value in given.items()
                 if name.startswith("mask_")}  # fmt: skip
        return run(self, names, given | whole, *rest)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", ignoring)
    with pytest.raises(UserError, match="differ from torch's by"):
        write_onnx(card, random_weights(card), tmp_path)


@pytest.mark.parametrize(
    ("card", "line"),
    [
        (ModelCard(AUTOREGRESSION, TextFormat(max_length=40)),
         "'autoregressive' cannot be exported: it answers byte after byte"),
        (ModelCard(autoencoding(), {
            "image": ImageFormat(height=8, width=6, channels=1),
            "audio": AudioFormat(sample_rate=1000, seconds=0.032),
        }), "'autoencode' cannot be exported: its outputs have names"),
        (replace(image_card(), is_stream=True), "a model of streams carries its latents"),
    ],
    ids=["autoregressive", "autoencode", "stream"],
)  # fmt: skip
def test_what_is_no_graph_is_refused_by_name(card: ModelCard, line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line):
        check_onnx(card)
    with pytest.raises(UserError, match=line):
        write_onnx(card, {}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ONNX needs onnx, onnxscript, onnxruntime: pip install"):
        check_onnx(image_card())


def test_a_file_with_other_results_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_of("table", tmp_path)
    weights = random_weights(card)
    run = onnxruntime.InferenceSession.run

    def spoiled(self: Any, *args: Any, **options: Any) -> Any:
        found = run(self, *args, **options)
        return [found[0] + 1e-2, *found[1:]] if len(found[0]) == 3 else found

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", spoiled)
    with pytest.raises(UserError, match="results for 3 inputs differ from torch's by 1"):
        write_onnx(card, weights, tmp_path)


def with_onnx(bench: Bench, **registry: Any) -> Config:
    own = bench.first.registry.model_copy(update={"onnx": True, **registry})
    return bench.first.model_copy(update={"registry": own})


def test_a_version_has_its_file_and_so_has_an_export(
    bench: Bench, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = bench.run("good", with_onnx(bench))
    bench.promote(run)
    (registered,) = (bench.output / "mlartifacts").rglob("model.onnx")
    assert registered.parts[-3:-1] == ("artifacts", "onnx")
    track(bench.first.tracking_uri)
    to = tmp_path / "exported"
    place = ["--output", str(bench.output), "--to", str(to), "--json"]
    assert main(["export", run, "--onnx", *place]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert Path(result["onnx"]) == to / "model.onnx"
    assert {path.name for path in to.iterdir()} == {
        "model.onnx", "model.safetensors", "model.json", "card.json", "config.yaml",
    }  # fmt: skip
    predictor = load_model(bench.client, f"models:/{NAME}@champion")
    rows = VALIDATION[:20]
    arrays = [predictor._decode(row)["table"] for row in rows]
    numeric = len(predictor.card.formats["table"].numeric)  # type: ignore[attr-defined]  # a table
    for path in (registered, to / "model.onnx"):
        session = onnxruntime.InferenceSession(path)
        given = {
            "inputs_numeric": np.stack([array[:numeric] for array in arrays]),
            "inputs_categorical": np.stack([array[numeric:] for array in arrays]).astype(np.int64),
        }
        (logits,) = session.run(None, given)
        wanted = [list(one.probabilities.values()) for one in predictor.predict(rows)]
        np.testing.assert_allclose(softmax(logits), wanted, atol=1e-5)


def test_what_cannot_be_exported_is_refused_before_anything_is_evaluated(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training.objectives.classification import Classification

    monkeypatch.setattr(Classification, "graph_refusal", "it is no graph")
    run = bench.run("good", with_onnx(bench))
    with pytest.raises(UserError, match="'classify' cannot be exported: it is no graph"):
        bench.promote(run)
    assert "evaluating" not in bench.text.read_text()
    assert not bench.client.search_registered_models()
    assert onnx_file.TOLERANCE == 1e-4
