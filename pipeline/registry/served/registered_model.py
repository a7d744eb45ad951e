"""The registered model's code. MLflow runs this file when it loads a model (*model from code*)."""

from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from pipeline.media.registered import modality_of
from pipeline.media.sandbox.sandbox import SandboxError
from pipeline.registry.served.contract import SETTINGS
from pipeline.registry.served.inference import Predictor
from pipeline.registry.served.requests import as_inputs, as_rows_of_media, within_limits


class RequestError(MlflowException):
    """An error in a request, in one line.

    MLflow's server puts the whole request before an error's message. This class prevents that.
    """

    def __init__(self, line: str, code: int = INVALID_PARAMETER_VALUE) -> None:
        self._line = line
        super().__init__(line, error_code=code)

    @property
    def message(self) -> str:
        """The line."""
        return self._line

    @message.setter
    def message(self, _: str) -> None:
        pass


class PerceiverModel(mlflow.pyfunc.PythonModel):
    """The model: it takes raw media or rows and returns a table of predictions."""

    def load_context(self, context: Any) -> None:
        """Read the weights and the card that are stored with the model."""
        self.settings = SETTINGS | (context.model_config or {})
        self.predictor = Predictor.load(
            context.artifacts["card"],
            context.artifacts["weights"],
            decode_seconds=self.settings["decode_seconds"],
            decode_memory_mib=self.settings["decode_memory_mib"],
            strict=self.settings["strict"],
            sandbox=self.settings["sandbox"],
        )

    # MLflow would read type hints as a schema and warn that it cannot use them.
    def predict(self, context, model_input, params=None):
        """Predict media or rows.

        Args:
            context: MLflow's context, which is not used.
            model_input: Encoded media, or rows for a model of tables, in any form that `as_inputs`
                accepts. Paths are accepted only if the model was loaded with
                `model_config={"allow_paths": True}`.
            params: MLflow's parameters, which are not used.

        Returns:
            A row for each input, in order: `source`, the answer's columns (for classifiers `label`,
            `probability`, and `probabilities` by class name), and `error` (why there is no answer,
                or
            None).

        Raises:
            RequestError: An input has a wrong form, or there is too much input. Nothing was
                predicted.
        """
        formats = self.predictor.card.formats
        sources = {name: modality_of(fmt).source for name, fmt in formats.items()}
        allow_paths = self.settings["allow_paths"] is True
        source = next(iter(sources.values())) if len(sources) == 1 else "several"
        try:
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
        except ValueError as error:
            raise RequestError(" ".join(str(error).split())) from None
        try:
            predictions = self.predictor.predict(inputs)
        except SandboxError as error:
            raise RequestError(str(error), INTERNAL_ERROR) from None
        answered = [name for name, _ in self.predictor.card.objective.prediction.columns()]
        columns = ["source", *answered, "error"]
        rows = [[getattr(prediction, name) for name in columns] for prediction in predictions]
        return pd.DataFrame(rows, columns=columns, dtype=object)


mlflow.models.set_model(PerceiverModel())
