"""`perceiver predict`: run a registered model on raw files."""

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.folders import Folder, folder_at
from pipeline.errors import UserError
from pipeline.media.registered import modality_of
from pipeline.media.sandbox.sandbox import SandboxError
from pipeline.registry.predict_inputs import list_inputs, local_files
from pipeline.registry.prediction_tables import as_json, encode_predictions, flat_answers
from pipeline.registry.served.card import ModelCardError
from pipeline.registry.served.inference import Predictor
from pipeline.registry.table_rows import holds_rows, input_columns, table_rows
from pipeline.runs.console import Console
from pipeline.runs.mlflow_errors import mlflow_answers
from pipeline.runs.storage import remove, write_bytes
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
    output: str | Path | None = None,
    max_bad_fraction: float = 1.0,
) -> dict[str, Any]:
    """Predict files, and all files in folders.

    Args:
        mlflow_client: The client of the tracking server.
        model_uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/RUN/model`.
        inputs: Files, folders and URLs of them. A model of tables reads each row of `.csv`,
            `.parquet` and `.jsonl` files. It reads any other file as one row, a JSON object. A
            model of several modalities reads such rows, too
            (`pipeline.registry.table_rows.table_rows`).
        console: The console, which shows the progress.
        output: A path or URL to also write the predictions to: `.jsonl`, `.csv` or `.parquet`.
        max_bad_fraction: The largest share of the files that may be unusable.

    Returns:
        `model_uri`, `predictions` (a list of dictionaries with the fields of the objective's
        `Prediction`), and `bad` (the number of predictions with an error).

    Raises:
        UserError: There is no such model or file, nothing to predict, too many unusable files, or
            no sandbox to decode them in.
        ShardError: The predictions cannot be written.
    """
    target = None if output is None else folder_at(str(output))
    if target is not None and target.suffix not in FORMATS:
        raise UserError(f"--to {output}: the extension must be one of {', '.join(FORMATS)}")
    files = list_inputs(inputs)
    predictor = load_model(mlflow_client, model_uri)
    objective = type(predictor.card.objective)
    predictions: list[Prediction] = []
    # The output is opened first, so that a path that cannot be written fails before the
    # predictions.
    with _opened(target) as write:
        with console.bar("predict", len(files), "files") as bar:
            for start in range(0, len(files), 256):
                chunk = files[start : start + 256]
                try:
                    with local_files(chunk) as local:
                        found = predict_files(predictor, local.paths)
                        predictions += map(local.named, found)
                except SandboxError as error:
                    raise UserError(f"files cannot be decoded here: {error}") from None
                bar.advance(len(chunk))
        bad = [prediction for prediction in predictions if prediction.error is not None]
        if bad and (len(bad) == len(predictions) or len(bad) / len(predictions) > max_bad_fraction):
            named = "; ".join(f"{prediction.source}: {prediction.error}" for prediction in bad[:3])
            raise UserError(f"{len(bad)} of {len(predictions)} files cannot be used: {named}")
        if target is not None:
            write(encode_predictions(predictions, target.suffix, objective.prediction))
    return {
        "model_uri": model_uri,
        "predictions": [as_json(prediction) for prediction in predictions],
        "bad": len(bad),
        **name_field(objective),
    }


@contextlib.contextmanager
def _opened(target: Folder | None) -> Iterator[Callable[[bytes], object]]:
    """Yield a function that writes the file, which is there at the end of the block."""
    if target is None:
        yield len
    elif isinstance(target, Path):
        with AtomicFile(target) as file:
            yield file.write
    else:
        probe = target.with_name(f".{target.name}.probe")
        write_bytes(probe, b"")
        remove(probe)
        yield functools.partial(write_bytes, target)


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
