"""What a request may ask of an answer, and what MLflow's own evaluation makes of the answers."""

import base64
import io
import json
import math
import zlib
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from gate_runs import track
from modality_samples import FORMATS, ROWS, raw_media
from PIL import Image
from served_models import KINDS, ask, save_model
from test_inference import png
from test_objective_autoencode import objective_of as autoencoding
from test_objectives_text import masked_language

from perceiver_model.families.autoregressive_config import ARConfig
from pipeline.media import AudioFormat, ImageFormat, TextFormat
from pipeline.registry.served.inference import ModelCard
from pipeline.registry.served.params import defaults_of
from pipeline.training.objectives.autoregressive import Autoregression

PNG = png(1)
TEXT = base64.b64encode(PNG).decode()
AUTOREGRESSION = Autoregression(
    ARConfig(max_length=40, num_latents=4, channels=16, num_self_attends=1, num_heads=2)
)


def raw_of(kind: str) -> Any:
    if kind == "table":
        return ROWS[1:2]
    return [PNG if kind in ("image", "labels") else raw_media(kind, 1)]


# --- types and defaults ---


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("image", {"top_k": ("long", 0), "attention_map": ("boolean", False)}),
        ("labels", {"top_k": ("long", 0), "threshold": ("double", 0.5),
                    "attention_map": ("boolean", False)}),
    ],
)  # fmt: skip
def test_the_signature_has_params_with_types_and_defaults(kind, params, loaded):
    schema = loaded(kind).metadata.get_params_schema()
    assert {one.name: (one.dtype.name, one.default) for one in schema.params} == params


def test_models_without_probabilities_take_no_top_k():
    assert defaults_of(AUTOREGRESSION) == {"attention_map": False}


def test_top_k_keeps_the_most_probable_classes(loaded):
    model = loaded("image")
    (whole,) = model.predict([PNG])["probabilities"]
    ranked = sorted(whole, key=whole.get, reverse=True)
    for top_k, kept in ((1, 1), (2, 2), (3, 3), (100, 3), (0, 3), (None, 3)):
        status, (answer,) = ask(model, {"inputs": [TEXT], "params": {"top_k": top_k}})
        assert status == 200
        if top_k:
            assert list(answer["probabilities"]) == ranked[:kept]
        assert answer["probabilities"] == pytest.approx({k: whole[k] for k in ranked[:kept]})
        assert answer["label"] == ranked[0]


def test_a_threshold_says_which_labels_are_named(loaded):
    model = loaded("labels")
    (shares,) = model.predict([PNG])["probabilities"]
    low, middle, _ = sorted(shares.values())
    for threshold, named in ((low * 0.9, 3), ((low + middle) / 2, 2), (0.9999999, 0)):
        status, (answer,) = ask(model, {"inputs": [TEXT], "params": {"threshold": threshold}})
        assert (status, len(answer["labels"])) == (200, named)
    assert model.predict([PNG])["labels"][0] == [n for n, share in shares.items() if share >= 0.5]


@pytest.mark.parametrize(
    ("kind", "params", "line"),
    [
        ("image", {"top_k": -1}, "params: top_k is -1; give 1 or more, or 0 for all classes"),
        ("labels", {"threshold": 0}, "params: threshold is 0.0; give a number between 0 and 1"),
        ("labels", {"threshold": 1.5}, "params: threshold is 1.5"),
        ("labels", {"threshold": math.nan}, "params: threshold is nan"),
    ],
)
def test_a_param_out_of_range_is_refused_in_one_line(kind, params, line, loaded):
    status, answer = ask(loaded(kind), json.dumps({"inputs": [TEXT], "params": params}))
    assert status == 400
    assert line in answer["message"] and "\n" not in answer["message"]


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("image", {"top_k": "many"}),
        ("image", {"top_k": 1.5}),
        ("image", {"top_k": [1]}),
        ("image", {"attention_map": "yes"}),
        ("image", [1]),
        ("labels", {"threshold": "half"}),
    ],
)
def test_a_param_of_another_type_is_refused_by_mlflow(kind, params, loaded):
    model = loaded(kind)
    status, answer = ask(model, {"inputs": [TEXT], "params": params})
    assert status == 400 and "Traceback" not in json.dumps(answer)
    with pytest.raises(mlflow.MlflowException, match="arameters"):
        model.predict([PNG], params=params)
    line = (
        f"{next(iter(params))} is a " if isinstance(params, dict) else "a list; give them by name"
    )
    with pytest.raises(mlflow.MlflowException, match=f"params: {line}"):
        model.unwrap_python_model().predict(None, [PNG], params)


def test_a_param_of_another_model_is_refused_where_mlflow_does_not_drop_it(loaded):
    model = loaded("image").unwrap_python_model()
    with pytest.raises(mlflow.MlflowException, match="does not take threshold; it takes top_k"):
        model.predict(None, [PNG], {"threshold": 0.3})


# --- attention ---


@pytest.mark.parametrize("kind", KINDS)
def test_every_modality_shows_where_the_latents_look(kind, loaded):
    model = loaded(kind)
    plain = model.predict(raw_of(kind))
    assert "attention" not in plain
    found = model.predict(raw_of(kind), params={"attention_map": True})
    assert found["probabilities"][0] == pytest.approx(plain["probabilities"][0], abs=1e-5)
    ((name, view),) = found["attention"][0].items()
    assert name == ("image" if kind == "image" else FORMATS[kind].modality)
    assert view["share"] == pytest.approx(1, abs=1e-5)
    assert view["kind"] == {
        "image": "picture", "video": "curve", "sound": "curve", "mel": "curve",
    }.get(kind, "parts")  # fmt: skip
    json.dumps(view, allow_nan=False)


def test_the_picture_is_a_png_of_the_image_s_size(loaded):
    body = {"inputs": [TEXT], "params": {"attention_map": True}}
    status, (answer,) = ask(loaded("image"), body)
    assert status == 200
    picture = Image.open(io.BytesIO(base64.b64decode(answer["attention"]["image"]["png"])))
    assert (picture.format, picture.size) == ("PNG", (8, 8))


def test_an_input_that_cannot_be_used_has_no_attention(loaded):
    found = loaded("image").predict([PNG, b"none"], params={"attention_map": True})
    assert [view is None for view in found["attention"]] == [False, True]
    assert [error is None for error in found["error"]] == [True, False]


def test_few_attention_maps_are_made_for_one_request(loaded):
    body = {"inputs": [TEXT] * 3, "params": {"attention_map": True}}
    status, answer = ask(loaded("image", max_attention_maps=2), body)
    assert status == 400
    assert "3 inputs with attention_map; at most 2 are taken" in answer["message"]


@pytest.mark.parametrize(
    ("objective", "formats", "given"),
    [
        (masked_language(), TextFormat(max_length=40), [b"a w?rd of a text"]),
        (AUTOREGRESSION, TextFormat(max_length=40), [b"a word"]),
        (
            autoencoding(),
            {
                "image": ImageFormat(height=8, width=6, channels=1),
                "audio": AudioFormat(sample_rate=1000, seconds=0.032),
            },
            [{"image": png(2)}],
        ),
    ],
    ids=["masked_language", "autoregressive", "autoencode"],
)
def test_other_objectives_show_it_too(objective, formats, given, tmp_path: Path):
    model = mlflow.pyfunc.load_model(str(save_model(ModelCard(objective, formats), tmp_path, "m")))
    found = model.predict(given, params={"attention_map": True})
    assert found["error"][0] is None
    views = found["attention"][0]
    assert any(view["kind"] in ("parts", "picture") for view in views.values()), views
    assert list(model.predict(given).columns) == list(found.columns[:-1])


# --- hostile requests ---


def bomb(side: int) -> bytes:
    """A small PNG that unpacks to many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + name + data + crc

    header = side.to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """A PNG with a compressed comment of 100 MB."""
    note = b"zTXt", b"note\0\0" + zlib.compress(bytes(100_000_000), 9)
    crc = zlib.crc32(b"".join(note)).to_bytes(4, "big")
    return PNG[:33] + len(note[1]).to_bytes(4, "big") + b"".join(note) + crc + PNG[33:]


HOSTILE = {
    "a giant image": (bomb(20_000), "pixels"),
    "a compressed comment": (text_bomb(), ""),
    "nothing": (b"", ""),
    "a path": (b"/etc/passwd", "no image format"),
    "an address": (b"https://example.org/a.png", "no image format"),
    "a zip": (b"PK\x03\x04" + bytes(100), "no image format"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_media_cost_themselves_or_the_request(name, loaded):
    data, line = HOSTILE[name]
    body = {"inputs": [TEXT, base64.b64encode(data).decode()]}
    status, (good, bad) = ask(loaded("image"), body)
    assert status == 200 and good["error"] is None
    if bad["error"] is None:
        assert name == "a compressed comment", "the comment is not read"
        return
    assert line in bad["error"] and "\n" not in bad["error"]
    status, answer = ask(loaded("image", refuse_bad_inputs=True), body)
    assert status == 400
    assert answer["message"].endswith(f"bytes[1]: {bad['error']}")
    assert "\n" not in answer["message"]


@pytest.mark.parametrize(
    ("kind", "body", "line"),
    [
        ("table", {"inputs": {"x": [1.0] * 100_001}}, "100001 inputs in one request; at most"),
        ("image", {"inputs": {"a": {"b": 1}}}, ""),
        ("image", {"inputs": None}, ""),
        ("image", {"dataframe_split": {"columns": ["m"], "data": "x"}}, ""),
        ("table", {"dataframe_records": "x"}, ""),
        ("image", "{", ""),
        ("image", "", ""),
    ],
)
def test_a_request_that_is_none_gets_status_400(kind, body, line, loaded):
    """MLflow reads requests; its own words on one that is no input may repeat it."""
    status, answer = ask(loaded(kind), body)
    assert status == 400
    assert line in answer["message"]
    assert "Traceback" not in json.dumps(answer)


def test_numbers_that_are_none_are_missing_values(loaded):
    model = loaded("table")
    wanted = model.predict([{"x": None, "y": 1.0, "c": "r"}])["probabilities"][0]
    for value in (math.nan, None, np.nan):
        found = model.predict(pd.DataFrame([{"x": value, "y": 1.0, "c": "r"}]))
        assert found["probabilities"][0] == wanted
    found = model.predict([{"x": math.inf, "y": 1.0, "c": "r"}])
    assert found["error"][0] is not None and "\n" not in found["error"][0]


# --- MLflow's own evaluation ---


def test_mlflow_evaluates_the_model_on_a_data_frame(saved, loaded, tmp_path: Path):
    images = [png(seed) for seed in range(12)]
    answers = list(loaded("image").predict(images)["label"])
    labels = [*answers[:9], *(["cat" if label != "cat" else "dog" for label in answers[9:]])]
    track(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.create_experiment("evaluated", artifact_location=(tmp_path / "files").as_uri())
    mlflow.set_experiment("evaluated")
    with mlflow.start_run():
        result = mlflow.models.evaluate(
            str(saved("image")),
            pd.DataFrame({"image": images, "label": labels}),
            targets="label",
            model_config={"column": "label"},
            model_type="classifier",
            evaluator_config={"log_explainer": False},
        )
    assert result.metrics["accuracy_score"] == pytest.approx(0.75)
    assert result.metrics["example_count"] == 12


def test_a_column_alone_or_one_value_in_it(loaded):
    whole = loaded("image").predict([PNG, b"none"])
    assert list(loaded("image", column="label").predict([PNG, b"none"])) == list(whole["label"])
    (cat, none) = loaded("image", column="probabilities.cat").predict([PNG, b"none"])
    assert (cat, none) == (whole["probabilities"][0]["cat"], None)
    status, answers = ask(loaded("image", column="label"), {"inputs": [TEXT]})
    assert (status, answers) == (200, [{"label": whole["label"][0]}])
    with pytest.raises(mlflow.MlflowException, match="the column 'lable' is none of source, label"):
        loaded("image", column="lable")
