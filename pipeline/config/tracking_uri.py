"""Decides which MLflow is used, by one rule for every verb.

The configuration (`tracking.uri`) or the command line (`--tracking-uri`) comes first, then the
environment variable `MLFLOW_TRACKING_URI`, then the database in the output folder.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.addresses import absolute_path, local_path
from pipeline.config.sqlite_uri import absolute_uri, sqlite_uri
from pipeline.errors import UserError

VARIABLE = "MLFLOW_TRACKING_URI"


def named_tracking_uri(explicit: str | None) -> str | None:
    """Return the given URI, or else `MLFLOW_TRACKING_URI`; None if neither is set.

    The path of a relative SQLite database becomes absolute, because Ray's workers have their own
    working directories.

    Args:
        explicit: The URI from the configuration or the command line, or None.
    """
    uri = explicit or os.environ.get(VARIABLE) or None
    return None if uri is None else absolute_uri(uri)


@contextlib.contextmanager
def kept_variable() -> Iterator[None]:
    """Restore `MLFLOW_TRACKING_URI` afterwards, because MLflow sets it to the URI that it is given.

    Otherwise the next configuration that this process reads would take that for the user's choice.
    """
    before = os.environ.get(VARIABLE)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def default_tracking_uri(output: str) -> str:
    """Return the URI of the SQLite database in the output folder.

    Raises:
        UserError: The output folder is a URL, and object storage cannot hold a database.
    """
    path = local_path(output)
    if path is None:
        raise UserError(
            f"output={output}: object storage cannot hold MLflow's database; name MLflow's server "
            "with tracking.uri, --tracking-uri or MLFLOW_TRACKING_URI, or a database on this "
            "machine (sqlite:////home/me/mlflow.db)"
        )
    return sqlite_uri(Path(absolute_path(path)) / "mlflow.db")


def tracking_uri(explicit: str | None, output: str) -> str:
    """Return the URI by the rule of this module.

    Args:
        explicit: The URI from the configuration or the command line, or None.
        output: The output folder.
    """
    return named_tracking_uri(explicit) or default_tracking_uri(output)
