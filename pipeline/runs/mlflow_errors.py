"""Reports a failure of MLflow in one clear line."""

import contextlib
from collections.abc import Iterator

from pipeline.errors import UserError
from shards.redaction import redacted

MISSING = "RESOURCE_DOES_NOT_EXIST"
MAX_REASON = 200


def is_missing(error: Exception) -> bool:
    """Return whether MLflow itself reports that the requested object does not exist.

    A proxy's 404, a failing server and a refused login do not show what exists. MLflow's client
    gives their errors other codes.
    """
    return getattr(error, "error_code", None) == MISSING


def reason_of(error: Exception) -> str:
    """Return an error's text as part of one line, without the secrets of addresses."""
    return redacted(" ".join(str(error).split()))[:MAX_REASON] or type(error).__name__


def refusal_of(error: Exception) -> str | None:
    """Say how to mend that a server wants to know who asks, or None if that is not the cause."""
    status = getattr(error, "get_http_status_code", lambda: None)()
    if status not in (401, 403):
        return None
    from mlflow.environment_variables import MLFLOW_TRACKING_TOKEN, MLFLOW_TRACKING_USERNAME

    names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    given = MLFLOW_TRACKING_USERNAME.is_set() or MLFLOW_TRACKING_TOKEN.is_set()
    if status == 403:
        return f"MLflow does not permit this user that (403); use another one, by {names}"
    who = "does not accept the name and password, or the token" if given else "wants a name"
    return f"MLflow {who} (401); set {names}, on every machine"


@contextlib.contextmanager
def mlflow_answers(what: str) -> Iterator[None]:
    """Turn every failure of a tracking server, registry or artifact store into one line.

    Args:
        what: The object that is requested; the line begins with it.

    Raises:
        UserError: MLflow or a library below it failed.
    """
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    # A ValueError is an answer that is not JSON.
    failures = (
        MlflowException,
        RequestException,
        SQLAlchemyError,
        ParseError,
        OSError,
        ValueError,
    )
    try:
        yield
    except failures as error:
        if refusal := refusal_of(error):
            raise UserError(f"{what}: {refusal}") from error
        raise UserError(
            f"{what}: MLflow fails ({reason_of(error)}); its state is unknown until MLflow "
            "answers; mend that, then run this again"
        ) from error
