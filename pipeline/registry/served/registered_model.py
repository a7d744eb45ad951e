"""The registered model's code. MLflow runs this file when it loads a model (*model from code*)."""

import base64
from typing import Any

import mlflow
import pandas as pd
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR

from pipeline.media.registered import modality_of
from pipeline.media.sandbox.sandbox import SandboxError
from pipeline.registry.served.contract import ATTENTION_COLUMN, SETTINGS
from pipeline.registry.served.inference import Predictor
from pipeline.registry.served.params import read_params
from pipeline.registry.served.request_error import RequestError
from pipeline.registry.served.requests import as_inputs, as_rows_of_media, within_limits


class PerceiverModel(mlflow.pyfunc.PythonModel):
    """The model: it takes raw media or rows and returns a table of predictions."""

    def load_context(self, context: Any) -> None:
        """Read the weights and the card that are stored with the model."""
        self.settings = SETTINGS | (context.model_config or {})
        self.column = self.settings["column"]
        self.predictor = Predictor.load(
            context.artifacts["card"],
            context.artifacts["weights"],
            decode_seconds=self.settings["decode_seconds"],
            decode_memory_mib=self.settings["decode_memory_mib"],
            strict=self.settings["strict"],
            sandbox=self.settings["sandbox"],
        )
        names = ["source", *(name for name, _ in self._answer()), "error"]
        if self.column and self.column.partition(".")[0] not in names:
            raise RequestError(
                f"model_config: the column {self.column!r} is none of {', '.join(names)}"
            )

    def _answer(self):
        return self.predictor.card.objective.prediction.columns()

    # MLflow would read type hints as a schema and warn that it cannot use them.
    def predict(self, context, model_input, params=None):
        """Predict media or rows.

        Args:
            context: MLflow's context, which is not used.
            model_input: Encoded media, or rows for a model of tables, in any form that `as_inputs`
                accepts. Paths are accepted only if the model was loaded with
                `model_config={"allow_paths": True}`.
            params: What the answers hold (`pipeline.registry.served.params`).

        Returns:
            With the setting `column`, the values of this column, or of one name in it. Otherwise
            a row for each input, in order: `source`, the answer's columns (for classifiers `label`,
            `probability`, and `probabilities` by class name), `error` (why there is no answer, or
            None) and, with `attention_map`, `attention` (the views by modality, with pictures as
            base64 of PNG).

        Raises:
            RequestError: An input has a wrong form, a parameter is wrong, or there is too much
                input. Nothing was predicted. Or, with the setting `refuse_bad_inputs`, an input
                cannot be used.
        """
        formats = self.predictor.card.formats
        sources = {name: modality_of(fmt).source for name, fmt in formats.items()}
        allow_paths = self.settings["allow_paths"] is True
        source = next(iter(sources.values())) if len(sources) == 1 else "several"
        try:
            asked = read_params(self.predictor.card.objective, params)
            if source == "several":
                inputs = as_rows_of_media(model_input, sources, allow_paths=allow_paths)
            else:
                inputs = as_inputs(
                    model_input,
                    takes_rows=source == "row",
                    is_text=source == "text",
                    allow_paths=allow_paths,
                )
            within_limits(
                inputs,
                most=self.settings["max_rows" if source == "row" else "max_inputs"],
                most_bytes=self.settings["max_input_mib"] * 1024**2,
            )
            if asked.attention_map and len(inputs) > self.settings["max_attention_maps"]:
                raise ValueError(
                    f"{len(inputs)} inputs with attention_map; at most "
                    f"{self.settings['max_attention_maps']} are taken"
                )
        except ValueError as error:
            raise RequestError(" ".join(str(error).split())) from None
        predictor, views = self.predictor.with_objective(asked.objective), []
        try:
            if asked.attention_map:
                pairs = predictor.predict_with_attention(inputs)
                predictions, views = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            else:
                predictions = predictor.predict(inputs)
        except SandboxError as error:
            raise RequestError(str(error), INTERNAL_ERROR) from None
        bad = [each for each in predictions if each.error is not None]
        if bad and self.settings["refuse_bad_inputs"] is True:
            raise RequestError(f"{bad[0].source}: {bad[0].error}")
        if self.column:
            name, _, key = self.column.partition(".")
            values = [getattr(each, name) for each in predictions]
            if key:
                values = [None if value is None else value.get(key) for value in values]
            return pd.Series(values, name=self.column, dtype=object if None in values else None)
        columns = ["source", *(name for name, _ in self._answer()), "error"]
        rows = [[getattr(asked.shortened(each), name) for name in columns] for each in predictions]
        table = pd.DataFrame(rows, columns=columns, dtype=object)
        if asked.attention_map:
            table[ATTENTION_COLUMN] = [_as_json(view) for view in views]
        return table


def _as_json(value):
    """Return the same with base64 in place of bytes."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return (
        {name: _as_json(each) for name, each in value.items()} if isinstance(value, dict) else value
    )


mlflow.models.set_model(PerceiverModel())
