"""JSON that any reader takes: RFC 8259 has no NaN."""

import io
import json
import math

import pytest

from pipeline.registry.prediction_tables import encode_predictions
from pipeline.runs.console import Console
from pipeline.runs.records import write_json
from pipeline.runs.strict_json import to_json
from shards.errors import ShardError

UNENDING = {"loss": math.nan, "rows": [{"a": math.inf}, (1.5, -math.inf)], "text": "NaN"}
AS_JSON = {"loss": None, "rows": [{"a": None}, [1.5, None]], "text": "NaN"}


def strict(text: str) -> object:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_is_null() -> None:
    assert strict(to_json(UNENDING)) == AS_JSON


def test_the_result_of_a_verb_and_files_are_strict_json(tmp_path) -> None:
    out = io.StringIO()
    Console(out, io.StringIO(), as_json=True).result(UNENDING)
    assert strict(out.getvalue()) == AS_JSON
    write_json(tmp_path / "a.json", UNENDING)
    assert strict((tmp_path / "a.json").read_text()) == AS_JSON


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_are_strict_json_lines(value: float) -> None:
    from pipeline.training.objectives.classification import ClassPrediction

    content = encode_predictions(
        [ClassPrediction("a", "b", value, {"b": value}, None)], ".jsonl", ClassPrediction
    )
    assert strict(content.decode())["probabilities"] == {"b": None}


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.json").mkdir()
    with pytest.raises(ShardError, match="cannot be written"):
        write_json(tmp_path / "a" / "b.json", {"score": 1})
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]
