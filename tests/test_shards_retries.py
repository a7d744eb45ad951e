"""Requests that are asked again, and those that are not."""

import pytest

from shards.retries import Retry, try_again

QUICK = Retry(attempts=3, first_delay=0.001)


class AnswerError(Exception):
    """A server's refusal, as networks' libraries raise it."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Request:
    """Raises these errors in turn, then gives an answer; counts how often it was asked."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_a_failure_that_passes_is_asked_again():
    request = Request(AnswerError(503), ConnectionError())
    assert try_again(request, QUICK) == "answer"
    assert request.asked == 3


def test_the_last_failure_is_raised():
    request = Request(AnswerError(500), AnswerError(429), TimeoutError("late"), AnswerError(500))
    with pytest.raises(TimeoutError, match="late"):
        try_again(request, QUICK)
    assert request.asked == 3


@pytest.mark.parametrize(
    "error", [FileNotFoundError(), PermissionError(), ValueError(), AnswerError(403)]
)
def test_what_would_fail_again_is_asked_once(error):
    request = Request(error)
    with pytest.raises(type(error)):
        try_again(request, QUICK)
    assert request.asked == 1
