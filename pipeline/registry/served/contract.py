"""A registered model's contract: its settings, its signature, and an input example that works."""

from typing import Any

from pipeline.media.format import Media, by_modality
from pipeline.media.registered import modality_of
from pipeline.registry.served.params import defaults_of
from pipeline.training.objectives import Objective
from pipeline.training.objectives.prediction import ColumnKind

SETTINGS: dict[str, Any] = {
    "allow_paths": False,
    "max_inputs": 1000,
    "max_rows": 100_000,
    "max_input_mib": 256,
    "decode_seconds": 60.0,
    "decode_memory_mib": 2048,
    "max_attention_maps": 16,
    "refuse_bad_inputs": False,
    "column": "",
    "strict": True,
    "sandbox": "best",
}
"""The keys of `mlflow.pyfunc.load_model(…, model_config=…)` and their defaults."""


ATTENTION_COLUMN = "attention"
"""The column of the views of attention, if a request asks for them."""


def signature(media: Media, objective: Objective) -> Any:
    """Return the MLflow signature of a model that takes media of a format.

    Media are one binary column; texts are one string column. The column has no name, because MLflow
    accepts lists and arrays only then; a data frame's column may have any name. The columns of a
    table have their own names. They have MLflow's type *any*: with double, MLflow would refuse
    whole numbers, and in a column of categories it could not distinguish 1 from 1.0. They are
    optional. Several modalities have a column each, with the name of the modality, and these are
    optional, too. The parameters are those of `pipeline.registry.served.params`.

    Args:
        media: The format, or the formats by modality; for a table, a `FittedTableFormat`.
        objective: What the model is trained for.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import (
        AnyType,
        Array,
        ColSpec,
        DataType,
        Map,
        ParamSchema,
        ParamSpec,
        Schema,
    )

    types: dict[ColumnKind, Any] = {
        "text": DataType.string,
        "number": DataType.double,
        "texts": Array(DataType.string),
        "numbers": Array(DataType.double),
        "integers": Array(DataType.long),
        "numbers_by_name": Map(DataType.double),
        "bytes": DataType.binary,
    }

    kinds = {bool: DataType.boolean, int: DataType.long, float: DataType.double}
    formats, inputs = by_modality(media), []
    for name, fmt in formats.items():
        modality = modality_of(fmt)
        if modality.source == "row":
            inputs += [
                ColSpec(AnyType(), column.name, required=False) for column in modality.columns(fmt)
            ]
            continue
        kind = DataType.string if modality.source == "text" else DataType.binary
        inputs.append(ColSpec(kind) if len(formats) == 1 else ColSpec(kind, name, required=False))
    outputs = [
        ColSpec(DataType.string, "source"),
        *[
            ColSpec(types[kind], name, required=False)
            for name, kind in objective.prediction.columns()
        ],
        ColSpec(DataType.string, "error", required=False),
        ColSpec(AnyType(), ATTENTION_COLUMN, required=False),
    ]
    params = [
        ParamSpec(name, kinds[type(default)], default)
        for name, default in defaults_of(objective).items()
    ]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema(params))


def column_types(media: Media) -> dict[str, str]:
    """Return the role of each of a table's columns: `number` or `category`."""
    return {
        column.name: column.role
        for fmt in by_modality(media).values()
        for column in modality_of(fmt).columns(fmt)
    }


def input_example(media: Media) -> Any:
    """Return a data frame with one made-up input that the model takes."""
    import pandas as pd

    row: dict[str, Any] = {}
    for name, fmt in by_modality(media).items():
        example = modality_of(fmt).example(fmt)
        row |= example if isinstance(example, dict) else {name: example}
    return pd.DataFrame([row])
