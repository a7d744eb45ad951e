"""Finds the real error under the layers that Ray wraps around an exception."""

import contextlib
from collections.abc import Iterator

from cluster.errors import ClusterError
from pipeline.errors import GateRefusedError, UserError
from shards.errors import ShardError

EXPECTED = (UserError, GateRefusedError, ShardError, ClusterError)


def find_user_error(error: BaseException) -> Exception | None:
    """Return the innermost error that a user can mend, or None if `error` contains none."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    found: Exception | None = None
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, EXPECTED):
            found = _of_a_reader(current)
        queue += [current.__cause__, getattr(current, "cause", None)]
        # Ray Train keeps the failures of its workers by rank.
        failures = getattr(current, "worker_failures", None)
        if isinstance(failures, dict):
            queue += list(failures.values())
    return found


def _of_a_reader(error: Exception) -> Exception:
    """Return the error without the traceback that torch adds in a loader's process."""
    # A ShardError holds line breaks as escapes.
    text = str(error).replace("\\n", "\n")
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    if not text.startswith("Caught ") or f"\n{name}" not in text:
        return error
    return type(error)(text.rpartition(f"\n{name}")[2].strip())


@contextlib.contextmanager
def raise_user_errors() -> Iterator[None]:
    """Raise the error that a user can mend instead of the exception that Ray wrapped around it."""
    try:
        yield
    except EXPECTED:
        raise
    except Exception as error:
        cause = find_user_error(error)
        if cause is None:
            raise
        raise cause from error
