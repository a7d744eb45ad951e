"""Decoded media to tensors, and models of every modality on raw media."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from modality_samples import (
    FORMATS,
    MEL,
    POINTS,
    ROWS,
    TABLE,
    TEXT,
    VIDEO,
    make_config,
    raw_media,
    wav,
)  # fmt: skip
from small_media import tone

from perceiver_model import encode_bytes
from perceiver_model.adapters.build import build_adapter
from perceiver_model.adapters.table import TableRows
from pipeline.inputs.collate import collate
from pipeline.media import (
    check_array,
    decode,
    decode_member,
    encode_members,
    media_from_dict,
    media_to_dict,
)  # fmt: skip
from pipeline.media.points.fourier import point_features
from pipeline.media.table.modality import VOCABULARY
from pipeline.registry.predict_inputs import Inputs
from pipeline.registry.predict_reading import predict_inputs
from pipeline.registry.served.inference import ModelCard, Predictor, as_inputs
from pipeline.training.objectives.classification import Classification


def a_card(kind: str, tmp_path: Path) -> ModelCard:
    made_with = {VOCABULARY: TABLE.vocabulary.to_dict()}
    classifier = make_config(kind, tmp_path).classifier(2, made_with)
    return ModelCard(Classification(classifier, ("zero", "one")), FORMATS[kind])


@pytest.fixture
def predictor(tmp_path: Path) -> Callable[[str], Predictor]:
    def make(kind: str) -> Predictor:
        card = a_card(kind, tmp_path)
        torch.manual_seed(0)
        weights = card.objective.build_model().state_dict()
        spread = {name: value + 0.1 * torch.randn_like(value) for name, value in weights.items()}
        return Predictor(card, spread, torch.device("cpu"))

    return make


# --- arrays to tensors ---


def test_films_are_stacked():
    clip = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    inputs, mask = collate([clip, None], VIDEO)
    assert (inputs.dtype, list(inputs.shape), mask) == (torch.uint8, [2, 4, 8, 8, 1], None)
    assert np.array_equal(inputs[0], clip) and not inputs[1].any()


def test_points_are_padded_and_masked():
    points = np.linspace(-1, 1, 15).reshape(5, 3).astype(np.float16)
    plain = dataclasses.replace(POINTS, fourier=None)
    for media, expected in ((plain, points), (POINTS, point_features(points, POINTS))):
        inputs, mask = collate([points, None], media)
        assert (inputs.dtype, list(inputs.shape)) == (torch.float32, [2, 32, expected.shape[1]])
        assert mask.sum(dim=1).tolist() == [5, 0] and mask[0, :5].all()
        assert np.array_equal(inputs[0, :5], expected) and not inputs[0, 5:].any()


def test_text_is_padded_to_the_longest_in_deepminds_byte_vocabulary():
    texts = ["naïve", "a"]
    inputs, mask = collate([decode(text.encode(), TEXT) for text in texts] + [None], TEXT)
    assert (inputs.dtype, list(inputs.shape)) == (torch.int64, [3, 6])
    assert torch.equal(inputs[0], encode_bytes("naïve"))
    assert inputs[1].tolist() == [ord("a") + 6, 0, 0, 0, 0, 0]
    assert mask.sum(dim=1).tolist() == [6, 1, 0]
    inputs, mask = collate([None], TEXT)
    assert list(inputs.shape) == [1, 1] and not mask.any()


def test_rows_are_numbers_and_categories_with_what_is_missing():
    rows = [{"x": 5.0, "y": None, "c": "s"}, {"x": 1.0, "y": 2.0, "c": "?"}]
    arrays = [TABLE.encode_row(row) for row in rows]
    missing = TABLE.encode_row(dict.fromkeys("xyc"))
    inputs, mask = collate([*arrays, missing, None], TABLE)
    assert isinstance(inputs, TableRows) and mask is None
    assert inputs.categorical.tolist() == [[1], [2], [-1], [-1]]
    assert inputs.categorical.dtype == torch.int64
    assert inputs.numeric[0].isnan().tolist() == [False, True]
    assert inputs.numeric[1].tolist() == [1.0, 2.0] and inputs.numeric[2:].isnan().all()


@pytest.mark.parametrize("seconds", [0.5, 0.3])
def test_stored_mel_frames_are_what_the_models_own_front_end_makes(tmp_path, seconds):
    data = wav(
        tone(seconds, 4000) + 0.1 * np.random.default_rng(0).normal(size=int(4000 * seconds))
    )
    own = dataclasses.replace(MEL, mel=None)
    config = make_config("mel", tmp_path)
    raw = config.model_copy(update={"data": config.data.model_copy(update={"audio": own})})
    expected, expected_mask = build_adapter(raw.classifier(2))(*collate([decode(data, own)], own))
    found, mask = build_adapter(config.classifier(2))(*collate([decode(data, MEL)], MEL))
    assert torch.equal(mask, expected_mask)
    assert (found - expected).abs().max() < 0.01 < expected.abs().max()


def test_stored_features_of_points_are_what_the_model_reads_and_would_compute(tmp_path):
    members = encode_members(decode(raw_media("points", 0), POINTS), POINTS)
    stored = decode_member(members["points.fourier.npy"], POINTS)
    points = decode_member(members["points.npy"], POINTS)
    adapter = build_adapter(make_config("points", tmp_path).classifier(2))
    for arrays in ([stored], [points]):
        content, _ = adapter(*collate(arrays, POINTS))
        assert np.array_equal(content[0].numpy(), stored.astype(np.float32))
    computed, _ = adapter(*collate([points], dataclasses.replace(POINTS, fourier=None)))
    assert np.abs(computed[0].numpy() - stored.astype(np.float32)).max() <= 2**-11


@pytest.mark.parametrize(
    ("array", "media"),
    [
        (np.zeros((3, 8, 8, 1), np.uint8), VIDEO),
        (np.zeros((33, 3), np.float16), POINTS),
        (np.zeros((5, 3), np.float32), POINTS),
        (np.zeros((0, 3), np.float16), POINTS),
        (np.zeros(25, np.uint8), TEXT),
        (np.zeros(0, np.uint8), TEXT),
        (np.zeros(5, np.int64), TEXT),
        (np.zeros(2), TABLE),
        (np.zeros((5, 9), np.float16), MEL),
        (np.zeros(100, np.int16), MEL),
    ],
)
def test_an_array_of_another_kind_is_refused(array, media):
    with pytest.raises(ValueError, match="does not fit"):
        check_array(array, media)
    with pytest.raises(ValueError, match="does not fit"):
        collate([None, array], media)


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_survive_json_and_arrays_their_members(kind):
    fmt = FORMATS[kind]
    assert media_from_dict(json.loads(json.dumps(media_to_dict(fmt)))) == fmt
    array = decode(raw_media(kind, 3), fmt)
    check_array(array, fmt)
    again = decode_member(memoryview(encode_members(array, fmt)[fmt.member]), fmt)
    assert again.dtype == array.dtype and np.array_equal(again, array, equal_nan=kind == "table")


# --- a model on raw media ---


@pytest.mark.parametrize("kind", FORMATS)
def test_raw_media_are_classified_alone_as_in_a_batch(kind, predictor, tmp_path):
    model = predictor(kind)
    assert ModelCard.from_json(model.card.to_json()) == model.card
    files = [raw_media(kind, number) for number in range(4)]
    path = tmp_path / "file"
    path.write_bytes(files[0])
    together = model.predict([path, *files, b"", b"\xff\xfe nothing"])
    assert [prediction.error is None for prediction in together] == [True] * 5 + [False] * 2
    assert together[0].probabilities == pytest.approx(together[1].probabilities, abs=1e-6)
    for data, prediction in zip(files, together[1:5], strict=True):
        (alone,) = model.predict([data])
        assert prediction.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    assert len({round(prediction.probability, 5) for prediction in together[1:5]}) > 1


def test_rows_are_classified_from_dictionaries_and_data_frames(predictor):
    model = predictor("table")
    expected = model.predict([raw_media("table", number) for number in range(3)])
    rows = ROWS[:3]
    for values in (rows, pd.DataFrame(rows), pd.DataFrame(rows).convert_dtypes().astype(object)):
        found = model.predict(as_inputs(values, takes_rows=True))
        assert [p.probabilities for p in found] == [p.probabilities for p in expected]
    assert [p.source for p in found] == ["row[0]", "row[1]", "row[2]"]
    assert as_inputs(rows[0], takes_rows=True) == [rows[0]]
    assert as_inputs({name: [row[name] for row in rows] for name in "xyc"}, takes_rows=True) == rows
    (bad,) = model.predict([{"x": "five", "y": 1, "c": "r"}])
    assert bad.error == "column 'x' holds 'five', not a number"


def test_a_row_is_no_input_of_other_models(predictor):
    (bad,) = predictor("text").predict([{"x": 1}])
    assert bad.error == "a row of a table, but the model takes text"
    with pytest.raises(ValueError, match="a int among the inputs; give bytes or base64"):
        as_inputs([{"x": 1}])


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_each_row_of_a_file_is_classified(predictor, tmp_path, suffix):
    model = predictor("table")
    path = tmp_path / f"rows{suffix}"
    table = pa.Table.from_pylist(ROWS)
    if suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    elif suffix == ".parquet":
        pq.write_table(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (found,) = predict_inputs(model, iter(Inputs([str(path)], model.card.media)), ())
    assert [p.probabilities for p in found] == [p.probabilities for p in model.predict(ROWS)]
    assert [p.source for p in found[:2]] == [f"{path}:row 1", f"{path}:row 2"]
