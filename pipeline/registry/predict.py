"""`perceiver predict`: run a registered model on raw files."""

import contextlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.media.registered import modality_of
from pipeline.media.sandbox.sandbox import SandboxError
from pipeline.registry.prediction_tables import as_json, encode_predictions, flat_answers
from pipeline.registry.served.card import ModelCardError
from pipeline.registry.served.inference import Predictor
from pipeline.registry.table_rows import holds_rows, input_columns, table_rows
from pipeline.runs.console import Console
from pipeline.runs.mlflow_errors import mlflow_answers
from pipeline.training.objectives import Prediction, name_field, objective_class
from shards.files import AtomicFile
from shards.redaction import shortened

FORMATS = (".jsonl", ".csv", ".parquet")
ROWS_AT_ONCE = 1024


@contextlib.contextmanager
def _same_import_path() -> Iterator[None]:
    """Give `sys.path` back as it was.

    MLflow puts the code that travels with a model in front of everything else. A model brings only
    the parts of this pipeline that it needs, so processes that are started later, such as the
    workers of a loader, would not find the others.
    """
    before = sys.path.copy()
    try:
        yield
    finally:
        sys.path[:] = before


@_same_import_path()
def predict(
    mlflow_client: Any,
    model_uri: str,
    inputs: list[str],
    console: Console,
    *,
    output: Path | None = None,
    max_bad_fraction: float = 1.0,
) -> dict[str, Any]:
    """Predict files, and all files in folders.

    Args:
        mlflow_client: The client of the tracking server.
        model_uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/RUN/model`.
        inputs: Files and folders. A model of tables reads each row of `.csv`, `.parquet` and
            `.jsonl` files. It reads any other file as one row, a JSON object. A model of several
            modalities reads such rows, too (`pipeline.registry.table_rows.table_rows`).
        console: The console, which shows the progress.
        output: A path to also write the predictions to: `.jsonl`, `.csv` or `.parquet`.
        max_bad_fraction: The largest share of the files that may be unusable.

    Returns:
        `model_uri`, `predictions` (a list of dictionaries with the fields of the objective's
        `Prediction`), and `bad` (the number of predictions with an error).

    Raises:
        UserError: There is no such model or file, nothing to predict, too many unusable files, or
            no sandbox to decode them in.
        ShardError: The predictions cannot be written.
    """
    if output is not None and output.suffix not in FORMATS:
        raise UserError(f"--to {output}: the extension must be one of {', '.join(FORMATS)}")
    files = list_inputs(inputs)
    predictor = load_model(mlflow_client, model_uri)
    objective = type(predictor.card.objective)
    predictions: list[Prediction] = []
    # The output is opened first, so that a path that cannot be written fails before the
    # predictions.
    with contextlib.nullcontext() if output is None else AtomicFile(output) as file:
        with console.bar("predict", len(files), "files") as bar:
            for start in range(0, len(files), 256):
                chunk = files[start : start + 256]
                try:
                    predictions += predict_files(predictor, chunk)
                except SandboxError as error:
                    raise UserError(f"files cannot be decoded here: {error}") from None
                bar.advance(len(chunk))
        bad = [prediction for prediction in predictions if prediction.error is not None]
        if bad and (len(bad) == len(predictions) or len(bad) / len(predictions) > max_bad_fraction):
            named = "; ".join(f"{prediction.source}: {prediction.error}" for prediction in bad[:3])
            raise UserError(f"{len(bad)} of {len(predictions)} files cannot be used: {named}")
        if file is not None:
            file.write(encode_predictions(predictions, file.path.suffix, objective.prediction))
    return {
        "model_uri": model_uri,
        "predictions": [as_json(prediction) for prediction in predictions],
        "bad": len(bad),
        **name_field(objective),
    }


def predict_files(predictor: Predictor, files: list[Path]) -> list[Prediction]:
    """Return the predictions for files, in order: one for each file, or for each row of a table."""
    media, unusable = predictor.card.media, predictor.card.objective.prediction.unusable
    sources = [modality_of(fmt).source for fmt in predictor.card.formats.values()]
    if len(sources) == 1 and sources != ["row"]:
        return predictor.predict(files)
    predictions: list[Prediction] = []
    for file in files:
        if not holds_rows(file) and len(sources) == 1:
            predictions += predictor.predict([file])
            continue
        if not holds_rows(file):
            columns = ", ".join(column.name for column in input_columns(media))
            reason = f"no .csv, .parquet or .jsonl file with the columns {columns}"
            predictions.append(unusable(str(file), reason))
            continue
        rows = table_rows(file, media)
        while chunk := list(itertools.islice(rows, ROWS_AT_ONCE)):
            found = iter(predictor.predict([row for _, row in chunk if not isinstance(row, str)]))
            predictions += [
                unusable(name, row) if isinstance(row, str) else _renamed(next(found), name)
                for name, row in chunk
            ]
    return predictions


def report(result: dict[str, Any], console: Console) -> None:
    """Show the user what `predict` returned."""
    kind = objective_class(result.get("objective")).prediction
    names, answers = flat_answers(result["predictions"], kind)
    rows = [
        (p["source"], *map(_cell, answer), p["error"] or "")
        for p, answer in zip(result["predictions"], answers, strict=True)
    ]
    console.table(
        f"{result['model_uri']}: {len(rows)} files",
        ("file", *(kind.headings.get(name, name) for name in names), "error"),
        rows,
    )
    if result["bad"]:
        console.say(f"{result['bad']} of {len(rows)} files could not be used; see the last column")


def list_inputs(inputs: list[str]) -> list[Path]:
    """Return the given files, and the files in the given folders, sorted.

    Raises:
        UserError: An input does not exist, or there are no files.
    """
    files: list[Path] = []
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            files += sorted(
                inner
                for inner in path.rglob("*")
                if inner.is_file()
                and not any(part.startswith(".") for part in inner.relative_to(path).parts)
            )
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{given}: no such file or folder")
    if not files:
        raise UserError(f"{', '.join(inputs)}: no files there")
    return files


def load_model(mlflow_client: Any, model_uri: str) -> Predictor:
    """Load a model from the registry, as any user of MLflow would.

    Raises:
        UserError: There is no model with this name, alias or version, or this pipeline did not
            register it.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        loaded = mlflow.pyfunc.load_model(model_uri)
    except (MlflowException, OSError) as error:
        with mlflow_answers(model_uri):
            known = [model.name for model in mlflow_client.search_registered_models()]
        hint = f"registered models: {', '.join(known)}" if known else "no model is registered there"
        reason = shortened(str(error), 200).removeprefix("RESOURCE_DOES_NOT_EXIST: ")
        raise UserError(f"{model_uri}: {reason[:160]}; {hint}") from None
    except ModelCardError as error:
        raise UserError(f"{model_uri}: {error}") from None
    model = loaded.unwrap_python_model()
    predictor = getattr(model, "predictor", None)
    if predictor is None:
        raise UserError(f"{model_uri}: was not registered by 'perceiver promote'")
    return predictor


def _renamed(prediction: Any, source: str) -> Any:
    return replace(prediction, source=source)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
