"""A model as MLflow serves it: content in, and nothing of this machine out."""

import base64
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from modality_samples import ROWS, TABLE, make_config, raw_media
from served_models import KINDS, ask, card_of
from test_inference import image_card, png, random_weights

from pipeline.media.table.modality import VOCABULARY
from pipeline.registry.served.inference import ModelCard, Predictor
from pipeline.training.objectives.classification import Classification

MEDIA = [kind for kind in KINDS if kind not in ("table", "text")]
PNG = png(1)
TEXT = base64.b64encode(PNG).decode()


# --- what a model says of itself ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_has_a_signature_and_an_example_that_it_predicts(kind, saved, loaded):
    model = loaded(kind)
    inputs = model.metadata.get_input_schema().inputs
    if kind == "table":
        assert [(column.name, column.required) for column in inputs] == [
            ("x", False), ("y", False), ("c", False),
        ]  # fmt: skip
        assert model.metadata.metadata["columns"] == {"x": "number", "y": "number", "c": "category"}
    else:
        assert [column.type.name for column in inputs] == ["string" if kind == "text" else "binary"]
    names = model.metadata.get_output_schema().input_names()
    assert names == ["source", "label", "probability", "probabilities", "error", "attention"]
    status, answers = ask(model, (saved(kind) / "serving_input_example.json").read_text())
    assert status == 200 and len(answers) == 1
    assert answers[0]["label"] in model.unwrap_python_model().predictor.card.objective.classes
    assert answers[0]["error"] is None
    again = model.predict(model.input_example).iloc[0]
    assert again["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-6)


# --- requests ---


@pytest.mark.parametrize("kind", MEDIA)
def test_media_are_sent_in_base64(kind, loaded):
    model = loaded(kind)
    raw = png(1) if kind == "image" else raw_media(kind, 1)
    text = base64.b64encode(raw).decode()
    wanted = model.predict([raw]).iloc[0]["probabilities"]
    assert wanted is not None
    for body in (
        {"dataframe_records": [{"m": text}]},
        {"dataframe_split": {"columns": ["m"], "data": [[text]]}},
        {"instances": [text]},
        {"inputs": [text]},
        {"inputs": text},
        {"instances": [{"m": text}]},
        {"instances": [{"b64": text}]},
        {"inputs": [{"b64": text}]},
        {"instances": [{"m": {"b64": text}}]},
    ):
        status, answers = ask(model, body)
        assert status == 200 and answers[0]["error"] is None, body
        assert answers[0]["probabilities"] == pytest.approx(wanted, abs=1e-6)


def test_text_is_sent_as_it_is(loaded):
    model = loaded("text")
    raw = raw_media("text", 1)
    wanted = model.predict([raw]).iloc[0]["probabilities"]
    encoded = base64.b64encode(raw).decode()
    for body in (
        {"dataframe_records": [{"m": raw.decode()}]},
        {"instances": [raw.decode()]},
        {"inputs": raw.decode()},
        {"instances": [{"b64": encoded}]},
    ):
        status, answers = ask(model, body)
        assert (status, answers[0]["probabilities"]) == (200, pytest.approx(wanted, abs=1e-6))


def test_rows_are_sent_in_any_form(loaded):
    model = loaded("table")
    rows = ROWS[:3]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    wanted = list(model.predict(pd.DataFrame(rows))["probabilities"])
    parquet = pd.DataFrame(rows).to_parquet()
    split = {"columns": list(columns), "data": [list(row.values()) for row in rows]}
    for body in (
        {"dataframe_records": rows},
        {"dataframe_split": split},
        {"instances": rows},
        {"inputs": rows},
        {"inputs": columns},
    ):
        status, answers = ask(model, body)
        assert status == 200
        assert [answer["probabilities"] for answer in answers] == wanted
    status, answers = ask(model, parquet, "application/vnd.apache.parquet")
    assert [answer["probabilities"] for answer in answers] == wanted


def test_frames_of_every_dtype_are_taken(loaded):
    model = loaded("table")
    frame = pd.DataFrame({"x": [1, 2], "y": [True, False], "c": ["r", None]})
    wanted = list(model.predict(frame.to_dict("records"))["probabilities"])
    for other in (frame, frame.convert_dtypes(), frame.astype(object), frame.astype("category")):
        assert list(model.predict(other)["probabilities"]) == wanted
    assert list(model.predict(frame)["error"]) == [None, None]


def test_a_number_that_may_be_another_category_is_refused_and_told():
    card = card_of("table", Path("unused"))
    zips = {"c": ("01234", "7", "007")}
    vocabulary = type(TABLE.vocabulary)(categories=zips, mean=(0.0, 0.0), std=(1.0, 1.0))
    media = type(TABLE).of(TABLE, vocabulary)
    inputs = make_config("table", Path("unused")).classifier(2, {VOCABULARY: vocabulary.to_dict()})
    predictor = Predictor(
        ModelCard(Classification(inputs, card.objective.classes), media), random_weights_of(inputs)
    )
    found = predictor.predict([{"x": 1, "y": 1, "c": c} for c in (1234, "01234", 7, "7", 8)])
    assert [prediction.error for prediction in found] == [
        "column 'c' holds the number 1234, and the model knows the text '01234'; send it as text",
        None,
        "column 'c' holds the number 7, and the model knows the text '7' or '007'; send it as text",
        None,
        None,
    ]


def random_weights_of(classifier: Any) -> Any:
    return random_weights(ModelCard(Classification(classifier, ("zero", "one")), TABLE))


# --- what must not be ---


def test_no_path_is_opened_listed_or_told_apart(loaded, tmp_path):
    (tmp_path / "there.png").write_bytes(PNG)
    os.mkfifo(tmp_path / "fifo.png")
    for kind in ("image", "points"):
        model = loaded(kind)
        told = set()
        for path in ("there.png", "gone.png", "fifo.png", ".", "there.png/x"):
            for given in (str(tmp_path / path), f"file://{tmp_path / path}", path):
                bodies = [{"inputs": [given]}, {"instances": [{"path": given}]}]
                for body in bodies:
                    status, answers = ask(model, body)
                    assert status == 200 and answers[0]["label"] is None
                    assert answers[0]["source"] == "bytes[0]"
                    told.add(answers[0]["error"].replace(given, "PATH"))
                (answer,) = model.predict([given]).to_dict("records")
                assert answer["label"] is None
                told.add(answer["error"])
        assert not any("director" in error or "No such" in error for error in told)
        assert not any(str(tmp_path) in error for error in told)


def test_paths_are_read_where_the_one_who_loads_allows_them(loaded, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    os.mkfifo(tmp_path / "fifo.png")
    names = ("a.png", "gone.png", "fifo.png", ".")
    model = loaded("image", allow_paths=True)
    found = model.predict([str(tmp_path / name) for name in names])
    assert list(found["error"]) == [
        None, "No such file or directory", "not a regular file", "Is a directory",
    ]  # fmt: skip
    assert found["probabilities"][0] == model.predict([PNG])["probabilities"][0]
    assert list(loaded("image").predict([str(tmp_path / "a.png")])["label"]) == [None]


@pytest.mark.parametrize(
    ("kind", "body", "line"),
    [
        ("text", {"dataframe_records": [{"m": None}]}, "a NoneType among the inputs"),
        ("table", {"dataframe_records": [{"z": 1}]}, "none of the model's columns"),
        ("image", {"instances": [TEXT] * 4}, "4 inputs in one request; at most 3 are taken"),
        ("image", {"dataframe_records": [{"m": "/etc/passwd"}]}, "Incorrect padding"),
        ("image", {"inputs": [{"a": {"b": {"c": "d"}}}]}, "dictionaries within dictionaries"),
        ("image", {"wrong": [TEXT]}, "exactly one of the input fields"),
    ],
)
def test_a_bad_request_gets_one_line(kind, body, line, loaded):
    status, answer = ask(loaded(kind, max_inputs=3), body)
    assert status == 400
    assert line in answer["message"]
    assert "\n" not in answer["message"] and "Traceback" not in json.dumps(answer)


def test_a_request_that_is_refused_is_not_said_again(loaded):
    secret = "x" * 50
    status, answer = ask(loaded("text"), {"dataframe_records": [{"m": secret}, {"m": None}]})
    assert status == 400 and secret not in json.dumps(answer)


def test_inputs_that_cannot_be_used_cost_themselves_alone(loaded):
    hostile = [b"", b"\x89PNG\r\n\x1a\n" + bytes(20), PNG[:50], b"#EXTM3U\nfile:///etc/passwd"]
    found = loaded("image").predict([PNG, *hostile, PNG])
    assert [error is None for error in found["error"]] == [True, *[False] * 4, True]
    assert found["probabilities"][0] == pytest.approx(found["probabilities"][5], abs=1e-6)


def test_media_are_decoded_in_another_process_within_bounds(loaded):
    model = loaded("image", decode_seconds=7, decode_memory_mib=500)
    decoder = model.unwrap_python_model().predictor.decoders["image"]
    model.predict([PNG])
    child = decoder._sandbox.child_pid
    assert child not in (None, os.getpid())
    assert (decoder._sandbox._seconds, decoder._sandbox._memory_bytes) == (7, 500 * 1024**2)
    decoder.close()
    assert not Path(f"/proc/{child}").exists()


def test_damaged_media_are_refused_as_in_the_training_data(loaded):
    cut = PNG[:-12]  # without its end
    assert loaded("image").predict([cut])["label"][0] is None
    assert loaded("image", strict=False).predict([cut])["error"][0] is None


def test_threads_may_ask_at_once(loaded):
    model = loaded("image")
    wanted = model.predict([PNG])["probabilities"][0]
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.extend(model.predict([PNG] * 3)["probabilities"]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    for probabilities in found:
        assert probabilities == pytest.approx(wanted, abs=1e-6)


def test_arrays_that_a_child_makes_up_are_refused():
    from pipeline.media import MediaError
    from pipeline.media.arrays import _array

    fmt = image_card().media
    good = {"shape": b"[8, 8, 1]", "data": bytes(64)}
    assert np.array_equal(_array([good], fmt), np.zeros((8, 8, 1)))
    made_up = [{"shape": shape} for shape in (b"[64]", b"5", b"[" * 9999, b"{}", b"[8, 8, 2]")]
    for change in (*made_up, {"data": b"1"}, {"shape": b"[-1, 8, 1]", "data": bytes(640)}):
        with pytest.raises(MediaError, match="gave no such array"):
            _array([good | change], fmt)
    with pytest.raises(MediaError, match="gave no such array"):
        _array([good, good], fmt)
