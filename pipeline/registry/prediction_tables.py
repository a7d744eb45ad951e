"""Predictions as JSON Lines, CSV and Parquet, and as the cells of a table for people."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.runs.strict_json import to_json
from pipeline.training.objectives import Prediction
from pipeline.training.objectives.prediction import ColumnKind
from shards.parquet import encode_parquet


def encode_predictions(
    predictions: Sequence[Prediction], suffix: str, kind: type[Prediction]
) -> bytes:
    """Encode predictions as JSON Lines, CSV or Parquet.

    Args:
        predictions: The predictions.
        suffix: `.jsonl`, `.csv` or `.parquet`. CSV has the columns of `flat_answers`.
        kind: The class of the predictions.
    """
    if suffix == ".jsonl":
        return "".join(to_json(as_json(each)) + "\n" for each in predictions).encode()
    rows: list[dict[str, Any]] = [asdict(each) for each in predictions]  # type: ignore[call-overload]  # dataclasses all
    if suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        names, answers = flat_answers(rows, kind)
        writer.writerow(["source", *names, "error"])
        writer.writerows(
            [row["source"], *answer, row["error"]]
            for row, answer in zip(rows, answers, strict=True)
        )
        return text.getvalue().encode()
    fields = [("source", pa.string())]
    for name, column in kind.columns():
        fields.append((name, _ARROW[column]))
        if column == "numbers_by_name":
            for row in rows:
                row[name] = list((row[name] or {}).items())
    schema = pa.schema([*fields, ("error", pa.string())])
    return encode_parquet(pa.Table.from_pylist(rows, schema=schema))


_SHORT = ("text", "number")
"""The kinds of columns that one cell of a table can hold."""

_ARROW: dict[ColumnKind, Any] = {
    "text": pa.string(),
    "number": pa.float64(),
    "texts": pa.list_(pa.string()),
    "numbers": pa.list_(pa.float64()),
    "integers": pa.list_(pa.int64()),
    "numbers_by_name": pa.map_(pa.string(), pa.float64()),
    "bytes": pa.binary(),
}


def as_json(prediction: Any) -> dict[str, Any]:
    """Return the prediction as a dictionary, with bytes in base64."""
    return {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in asdict(prediction).items()
    }


def flat_answers(
    rows: Sequence[Mapping[str, Any]], kind: type[Prediction]
) -> tuple[list[str], list[list[Any]]]:
    """Return the answers as columns of single values.

    Args:
        rows: The predictions as dictionaries.
        kind: The class of the predictions.

    Returns:
        The names of the columns, and the values of each row, None where there is no answer. Fields
        with several values are left out, except for those in `kind.flat`: names are joined by
        `;`, and numbers by name become one column for each name.
    """
    names: list[str] = []
    answers: list[list[Any]] = [[] for _ in rows]
    for field, column in kind.columns():
        if column in _SHORT or (column == "texts" and field in kind.flat):
            names.append(field)
            for row, answer in zip(rows, answers, strict=True):
                value = row[field]
                answer.append(";".join(value) if isinstance(value, list) else value)
        elif column == "numbers_by_name" and field in kind.flat:
            keys = list(dict.fromkeys(key for row in rows for key in row[field] or {}))
            names += keys
            for row, answer in zip(rows, answers, strict=True):
                answer += [(row[field] or {}).get(key) for key in keys]
    return names, answers
