"""The registered model's code: MLflow runs this file when it loads a model (*model from code*)."""

import dataclasses
from typing import Any

import mlflow
import pandas as pd

from pipeline.inference import Predictor, as_inputs


class PerceiverModel(mlflow.pyfunc.PythonModel):
    """Raw media bytes or paths in; a table of class names and probabilities out."""

    def load_context(self, context: Any) -> None:
        """Read the weights and the card that lie with the model."""
        self.predictor = Predictor.load(context.artifacts["card"], context.artifacts["weights"])

    # MLflow would take type hints for a schema and warn that it cannot use them.
    def predict(self, context, model_input, params=None):
        """Classify paths or encoded media.

        Args:
            model_input: bytes or a path, or a list, array, Series or one-column table of them; of a
                model of tables, also rows: a table, or a dictionary or a list of such.

        Returns:
            A row for each input, in order: ``source``, ``label``, ``probability``,
            ``probabilities`` (by class name) and ``error`` (why it has no label, or None).
        """
        takes_rows = self.predictor.card.media.modality == "table"
        predictions = self.predictor.predict(as_inputs(model_input, takes_rows=takes_rows))
        columns = (
            [field.name for field in dataclasses.fields(predictions[0])] if predictions else []
        )
        rows = [[getattr(p, name) for name in columns] for p in predictions]
        return pd.DataFrame(rows, columns=columns, dtype=object)


mlflow.models.set_model(PerceiverModel())
