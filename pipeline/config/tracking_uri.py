"""Which MLflow is meant: one rule for every verb.

What the configuration (`tracking.uri`) or the command line (`--tracking-uri`) names comes
first, then the environment variable `MLFLOW_TRACKING_URI`, then the database in the output
folder.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.data import absolute
from pipeline.config.sqlite_uri import absolute_uri, sqlite_uri

VARIABLE = "MLFLOW_TRACKING_URI"


def named_tracking_uri(explicit: str | None) -> str | None:
    """The URI that was given, or that of `MLFLOW_TRACKING_URI`; None where there is neither.

    The path of a relative SQLite database is made absolute, since Ray's workers have working
    directories of their own.

    Args:
        explicit: of the configuration or the command line.
    """
    uri = explicit or os.environ.get(VARIABLE) or None
    return None if uri is None else absolute_uri(uri)


@contextlib.contextmanager
def kept_variable() -> Iterator[None]:
    """`MLFLOW_TRACKING_URI` is afterwards what it was: MLflow sets it to what it is told.

    The next configuration that this process reads would take that for the user's wish.
    """
    before = os.environ.get(VARIABLE)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def default_tracking_uri(output: str) -> str:
    """SQLite in the output folder."""
    return sqlite_uri(Path(absolute(output)) / "mlflow.db")


def tracking_uri(explicit: str | None, output: str) -> str:
    """The URI by the rule of this module.

    Args:
        explicit: of the configuration or the command line.
        output: the output folder.
    """
    return named_tracking_uri(explicit) or default_tracking_uri(output)
