"""Log an evaluation to the MLflow run of a model and to its registered versions."""

import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.evaluation.subject import Subject
from pipeline.runs.mlflow_errors import mlflow_answers
from pipeline.runs.strict_json import finite_items


def log_evaluation(
    mlflow_client: Any, subject: Subject, result: dict[str, Any], text: str, html: str
) -> None:
    """Log the metrics and the reports of an evaluation.

    The run gets the metrics `PREFIX_NAME`, and the files `evaluations/PREFIX/report.json` and
    `report.html`. Each version gets the tags `perceiver.PREFIX.NAME`. PREFIX is `result["logged"]`.

    Args:
        mlflow_client: The client of the tracking server.
        subject: The model. If its run is gone, only its versions get something.
        result: The result of the evaluation.
        text: The result as JSON.
        html: The report as HTML.

    Raises:
        UserError: MLflow fails.
    """
    from mlflow.entities import Metric

    prefix = result["logged"]
    values = {name: value for name, value in result["metrics"].items() if value is not None}
    if calibration := result["calibration"]:
        values |= {"calibration_error": calibration["error"]} if calibration["error"] else {}
    metrics = finite_items(values)
    if subject.config is not None:
        now = int(time.time() * 1000)
        with (
            mlflow_answers(f"logging to run {subject.run_id}"),
            tempfile.TemporaryDirectory(prefix="perceiver-report-") as folder,
        ):
            entries = [Metric(f"{prefix}_{name}", value, now, 0) for name, value in metrics]
            mlflow_client.log_batch(subject.run_id, metrics=entries)
            for name, content in (("report.json", text), ("report.html", html)):
                path = Path(folder) / name
                path.write_text(content, "utf-8")
                mlflow_client.log_artifact(subject.run_id, str(path), f"evaluations/{prefix}")
    for version in subject.versions:
        with mlflow_answers(f"{version.name} version {version.version}"):
            for name, value in metrics:
                tag = f"perceiver.{prefix}.{name}"
                mlflow_client.set_model_version_tag(
                    version.name, str(version.version), tag, repr(value)
                )
