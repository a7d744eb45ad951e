"""Clients of MLflow's tracking server and registry."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config.sqlite_uri import sqlite_path
from pipeline.config.tracking_uri import kept_variable
from pipeline.config.tracking_uri import tracking_uri as chosen_uri
from pipeline.errors import UserError
from pipeline.runs.mlflow_errors import reason_of, refusal_of


def client(tracking_uri: str) -> Any:
    """Return an `MlflowClient` after one call that checks that the store answers.

    Raises:
        UserError: The store does not answer.
    """
    import mlflow

    if (database := sqlite_path(tracking_uri)) is not None:
        _require_writable(database, tracking_uri)
    with kept_variable():
        mlflow.set_tracking_uri(tracking_uri)
    with answering(tracking_uri):
        mlflow_client = new_client(tracking_uri)
        mlflow_client.search_experiments(max_results=1)
    return mlflow_client


def _require_writable(database: Path, tracking_uri: str) -> None:
    """Check that a database can be written. MLflow would try again for two minutes.

    Raises:
        UserError: It cannot.
    """
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with database.open("ab"):
            pass
    except OSError as error:
        raise UserError(
            f"tracking.uri={tracking_uri}: cannot be written ({error.strerror}); name a database "
            "in a folder of yours"
        ) from None


def new_client(tracking_uri: str) -> Any:
    """Return an `MlflowClient` that gives up on a request after a minute; it makes none yet."""
    # The default is to retry a dead server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri)


@contextlib.contextmanager
def answering(tracking_uri: str) -> Iterator[None]:
    """Turn what a store raises here into an error that a user can mend.

    Raises:
        UserError: The store failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # stores raise many kinds
        if refusal := refusal_of(error):
            raise UserError(f"tracking.uri={tracking_uri}: {refusal}") from error
        raise UserError(
            f"tracking.uri={tracking_uri}: MLflow does not answer there ({reason_of(error)})"
        ) from error


def registry(tracking_uri: str | None, output: str) -> Any:
    """Return a client for verbs that take no configuration.

    Args:
        tracking_uri: The URI from the command line, or None for the rule of
            `pipeline.config.tracking_uri`.
        output: The output folder, which may hold the database.

    Raises:
        UserError: There is no database, or the store does not answer.
    """
    uri = chosen_uri(tracking_uri, output)
    database = sqlite_path(uri)
    if database is not None and not database.is_file():
        raise UserError(
            f"{uri}: no such database; name MLflow's with --tracking-uri or MLFLOW_TRACKING_URI, "
            "or the folder that holds mlflow.db with --output"
        )
    return client(uri)
