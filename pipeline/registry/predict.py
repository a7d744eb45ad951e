"""`perceiver predict`: run a registered model on raw files."""

import contextlib
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_model.adapters.backbone_config import backbone_of
from pipeline.config.folders import Folder, folder_at
from pipeline.errors import UserError
from pipeline.registry.predict_folder import Request, predict_to_folder
from pipeline.registry.predict_inputs import Inputs, at_most
from pipeline.registry.predict_part import Weights
from pipeline.registry.predict_reading import predict_inputs
from pipeline.registry.prediction_tables import as_json, encode_predictions, flat_answers
from pipeline.registry.served.card import ModelCardError
from pipeline.registry.served.inference import Predictor
from pipeline.runs.console import Console
from pipeline.runs.mlflow_errors import mlflow_answers
from pipeline.runs.storage import remove, write_bytes
from pipeline.training.objectives import Prediction, name_field, objective_class
from shards.files import AtomicFile
from shards.redaction import redacted, shortened

FORMATS = (".jsonl", ".csv", ".parquet")
MAX_IN_MEMORY = 100_000
"""More predictions than these go to a folder."""


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
    workers: int | None = None,
    address: str | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Predict files, folders, listings and tars.

    Args:
        mlflow_client: The client of the tracking server.
        model_uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/RUN/model`.
        inputs: What `pipeline.registry.predict_inputs.Inputs` takes.
        console: The console, which shows the progress.
        output: A path or URL to write the predictions to. `.jsonl`, `.csv` and `.parquet` are one
            file, and predicted here. Anything else is a folder of Parquet parts
            (`pipeline.registry.predict_folder`), for any number of inputs.
        max_bad_fraction: The largest share of the inputs that may be unusable.
        workers: The number of processes that fill a folder; 0 is the calling one, and None
            chooses by the number of inputs.
        address: The Ray cluster whose processes fill a folder; None starts Ray on this machine.
        fresh: Whether to replace earlier predictions in a folder.

    Returns:
        `model_uri` and `bad` (the number of inputs without an answer). Without a folder also
        `predictions` (a list of dictionaries with the fields of the objective's `Prediction`); with
        a folder, what `predict_to_folder` returns.

    Raises:
        UserError: There is no such model or file, nothing to predict, too many unusable files, or
            no sandbox to decode them in.
        ClusterError: The cluster has no room for a worker.
        ShardError: The predictions cannot be written.
    """
    target = None if output is None else folder_at(str(output))
    if target is not None and target.suffix not in FORMATS:
        if target.suffix:
            raise UserError(
                f"--to {output}: a file ends in {', '.join(FORMATS)}, and a folder has no extension"
            )
        return _to_folder(
            mlflow_client, model_uri, inputs, target, console, max_bad_fraction=max_bad_fraction,
            workers=workers, address=address, fresh=fresh,
        )  # fmt: skip
    for option, value in (("--workers", workers), ("--address", address), ("--fresh", fresh)):
        if value not in (None, False):
            raise UserError(f"{option}: is for predictions in a folder; give --to FOLDER")
    model = open_model(mlflow_client, model_uri)
    objective = type(model.predictor.card.objective)
    wanted = Inputs(inputs, model.predictor.card.media)
    found = at_most(wanted, MAX_IN_MEMORY)
    if found is None:
        raise UserError(
            f"more than {MAX_IN_MEMORY} inputs; write their predictions to a folder of Parquet "
            "parts with --to FOLDER"
        )
    if not found:
        raise UserError(f"{', '.join(map(redacted, inputs))}: no files there")
    predictions: list[Prediction] = []
    # The output is opened first, so that a path that cannot be written fails before the
    # predictions.
    with _opened(target) as write:
        with console.bar("predict", len(found), "files") as bar:
            for some in predict_inputs(model.predictor, iter(found), wanted.roots):
                predictions += some
                bar.advance(len(some))
        bad = [prediction for prediction in predictions if prediction.error is not None]
        named = [(prediction.source, str(prediction.error)) for prediction in bad[:3]]
        _refuse_too_many(len(bad), len(predictions), named, max_bad_fraction)
        if target is not None:
            write(encode_predictions(predictions, target.suffix, objective.prediction))
    return {
        "model_uri": model_uri,
        "predictions": [as_json(prediction) for prediction in predictions],
        "bad": len(bad),
        **name_field(objective),
    }


def _to_folder(
    mlflow_client: Any,
    model_uri: str,
    inputs: list[str],
    folder: Folder,
    console: Console,
    *,
    max_bad_fraction: float,
    workers: int | None,
    address: str | None,
    fresh: bool,
) -> dict[str, Any]:
    model = open_model(mlflow_client, model_uri)
    weights = weights_of(model)
    request = Request(
        model_uri=model_uri,
        digest=_digest(weights),
        inputs=Inputs(inputs, model.predictor.card.media),
        folder=folder,
        workers=workers,
        address=address,
        fresh=fresh,
    )
    del model
    result = predict_to_folder(request, weights, console)
    named = [(each["source"], each["error"]) for each in result["bad_files"][:3]]
    _refuse_too_many(result["bad"], result["files"], named, max_bad_fraction)
    return {"model_uri": model_uri, **result}


def _refuse_too_many(bad: int, total: int, named: list[tuple[str, str]], share: float) -> None:
    if bad and (bad == total or bad / total > share):
        text = "; ".join(f"{source}: {error}" for source, error in named)
        raise UserError(f"{bad} of {total} files cannot be used: {text}")


def weights_of(model: Any) -> Weights:
    """Return a loaded model in a form that other processes can be sent."""
    predictor = model.predictor
    code: tuple[str, ...] = ()
    if (backbone := backbone_of(predictor.card.objective.model_config)) is not None:
        module = sys.modules[backbone.module.partition(".")[0]]
        code = (str(Path(str(module.__file__)).resolve().parent),)
        if Path(str(module.__file__)).name == "__init__.py":
            code = (str(Path(code[0]).parent),)
    return Weights(
        card=predictor.card.to_json(),
        tensors={name: value.cpu().numpy() for name, value in predictor.model.state_dict().items()},
        settings=dict(model.settings),
        code=code,
    )


def _digest(weights: Weights) -> str:
    """Return the sha256 of a model's card and weights."""
    digest = hashlib.sha256(weights.card.encode())
    for name, value in sorted(weights.tensors.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


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


def report(result: dict[str, Any], console: Console) -> None:
    """Show the user what `predict` returned."""
    if "predictions" not in result:
        _report_folder(result, console)
        return
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


def _report_folder(result: dict[str, Any], console: Console) -> None:
    if result["bad"]:
        console.table(
            f"{result['bad']} of {result['files']} files could not be used",
            ("file", "error"),
            [(each["source"], each["error"]) for each in result["bad_files"]],
        )
    state = "done before: skipped" if result["skipped"] else f"{result['made']} made now"
    parts = f"{result['parts']} Parquet files ({state})"
    console.say(f"{result['to']}: {result['files']} predictions in {parts}")


def load_model(mlflow_client: Any, model_uri: str) -> Predictor:
    """Load a model as `open_model` does, and return its predictor."""
    predictor: Predictor = open_model(mlflow_client, model_uri).predictor
    return predictor


def open_model(mlflow_client: Any, model_uri: str) -> Any:
    """Load a model from the registry, as any user of MLflow would.

    Returns:
        The `PerceiverModel`, with its `predictor` and its `settings`.

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
    if getattr(model, "predictor", None) is None:
        raise UserError(f"{model_uri}: was not registered by 'perceiver promote'")
    return model


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
