"""Requests over a network, asked again where their failure may pass."""

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
        attempts: in all, at least 1.
        first_delay: seconds before the second; doubled for each one after, with jitter.
    """

    attempts: int = 6
    first_delay: float = 0.25


def try_again(request: Callable[[], _Result], retry: Retry) -> _Result:
    """What `request` returns, asked again while it raises what is not final (see `is_final`).

    Raises:
        Exception: what the last attempt raised.
    """
    delay = retry.first_delay
    for _ in range(1, retry.attempts):
        try:
            return request()
        except Exception as error:  # each file system and network library has kinds of its own
            if is_final(error):
                raise
        time.sleep(delay * random.uniform(0.5, 1.0))
        delay *= 2
    return request()


def is_final(error: Exception) -> bool:
    """Whether a request would fail again: nothing is there, it is refused, or it is none.

    No connection, a time-out, HTTP 408, 425, 429 and 5xx may pass.
    """
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _TRANSIENT_STATUS
    return refused or isinstance(error, _FINAL)
