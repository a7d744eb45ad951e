"""Requests over a network, repeated if their failure may be temporary."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_Result = TypeVar("_Result")

_FINAL = (
    FileNotFoundError,
    NotADirectoryError,
    PermissionError,
    IsADirectoryError,
    ValueError,
    TypeError,
    LookupError,
    ImportError,
)
_TRANSIENT_STATUS = (408, 425, 429)


@dataclass(frozen=True)
class Retry:
    """How often a request over the network is tried.

    Attributes:
        attempts: The number of attempts, at least 1.
        first_delay: The seconds before the second attempt. Each further delay doubles, with jitter.
    """

    attempts: int = 6
    first_delay: float = 0.25


def try_again(request: Callable[[], _Result], retry: Retry) -> _Result:
    """Call `request`, and repeat it while it raises an error that is not final (see `is_final`).

    Raises:
        Exception: The error of the last attempt.
    """
    delay = retry.first_delay
    for _ in range(1, retry.attempts):
        try:
            return request()
        except Exception as error:  # each file system and network library has its own errors
            if is_final(error):
                raise
        time.sleep(delay * random.uniform(0.5, 1.0))
        delay *= 2
    return request()


def is_final(error: Exception) -> bool:
    """Return whether a request would fail again: not found, refused, or invalid.

    No connection, a time-out, HTTP 408, 425, 429 and 5xx may be temporary.
    """
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _TRANSIENT_STATUS
    return refused or isinstance(error, _FINAL)
