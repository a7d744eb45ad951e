"""What MLflow answers when it cannot do what it was asked for, as one clear line."""

import contextlib
from collections.abc import Iterator

from pipeline.errors import UserError
from shards.redaction import redacted

MISSING = "RESOURCE_DOES_NOT_EXIST"
MAX_REASON = 200


def is_missing(error: Exception) -> bool:
    """Whether MLflow itself says that what was asked for does not exist.

    A 404 of a proxy, a server that fails, and a refused login say nothing of what exists: MLflow's
    client gives their errors other codes.
    """
    return getattr(error, "error_code", None) == MISSING


def reason_of(error: Exception) -> str:
    """An error's text as a part of one line, without secrets of addresses."""
    return redacted(" ".join(str(error).split()))[:MAX_REASON] or type(error).__name__


@contextlib.contextmanager
def mlflow_answers(what: str) -> Iterator[None]:
    """Turn every failure of a tracking server, registry or artifact store into one line.

    Args:
        what: is asked for; the line begins with it.

    Raises:
        UserError: in place of what MLflow and the libraries beneath it raise.
    """
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    # ValueError: an answer that is no JSON.
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
        raise UserError(
            f"{what}: MLflow fails ({reason_of(error)}); nothing is known of it until MLflow "
            "answers: mend that, then run this again"
        ) from error
