"""A registered model's contract: its settings, its signature, and an input example that works."""

from typing import Any

from pipeline.media import MediaFormat
from pipeline.media.registered import modality_of
from pipeline.training.objectives.base import ColumnKind, Prediction

SETTINGS: dict[str, Any] = {
    "allow_paths": False,
    "max_inputs": 1000,
    "max_rows": 100_000,
    "max_input_mib": 256,
    "decode_seconds": 60.0,
    "decode_memory_mib": 2048,
    "strict": True,
    "sandbox": "best",
}
"""The keys of `mlflow.pyfunc.load_model(…, model_config=…)` and their defaults."""


def signature(media: MediaFormat, prediction: type[Prediction]) -> Any:
    """Return the MLflow signature of a model that takes media of a format.

    Media are one binary column; texts are one string column. The column has no name, because MLflow
    accepts lists and arrays only then; a data frame's column may have any name. The columns of a
    table have their own names. They have MLflow's type *any*: with double, MLflow would refuse
    whole numbers, and in a column of categories it could not distinguish 1 from 1.0. They are
    optional.

    Args:
        media: The format; for a table, a `FittedTableFormat`.
        prediction: The class of the model's predictions.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Map, Schema

    types: dict[ColumnKind, Any] = {
        "text": DataType.string,
        "number": DataType.double,
        "texts": Array(DataType.string),
        "numbers": Array(DataType.double),
        "integers": Array(DataType.long),
        "numbers_by_name": Map(DataType.double),
        "bytes": DataType.binary,
    }

    modality = modality_of(media)
    if modality.source == "row":
        names = [column.name for column in modality.columns(media)]
        inputs = [ColSpec(AnyType(), name, required=False) for name in names]
    else:
        inputs = [ColSpec(DataType.string if modality.source == "text" else DataType.binary)]
    outputs = [
        ColSpec(DataType.string, "source"),
        *[ColSpec(types[kind], name, required=False) for name, kind in prediction.columns()],
        ColSpec(DataType.string, "error", required=False),
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def column_types(media: MediaFormat) -> dict[str, str]:
    """Return the role of each of a table's columns: `number` or `category`."""
    return {column.name: column.role for column in modality_of(media).columns(media)}


def input_example(media: MediaFormat) -> Any:
    """Return a data frame with one made-up input that the model takes."""
    import pandas as pd

    example = modality_of(media).example(media)
    return pd.DataFrame([example] if isinstance(example, dict) else {media.modality: [example]})
