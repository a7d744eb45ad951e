"""The same request for many files, some at a time."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

AT_ONCE = 16


def in_order(action: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield the results of an action in the order of the items.

    Up to `AT_ONCE` threads work, and few results wait, so memory does not grow with the items.

    Raises:
        Exception: What the action raises for the first item that fails.
    """
    left = iter(items)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while some := list(islice(left, 4 * AT_ONCE)):
            yield from pool.map(action, some)
