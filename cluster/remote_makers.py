"""Processes on other machines that make one process's items, which arrive in the order of asking.

Ray Data's streaming split gives no promise on order, and counts rows and not steps. Here, the
process that uses the items asks for each by itself, some ahead, and takes them in that order. So
which item comes when does not depend on the number, speed or loss of the other processes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from cluster.placement import Place, remote_options

_Item = TypeVar("_Item")
_Task = TypeVar("_Task")
AHEAD = 2
"""How many items are asked of each process before the first one is used."""


class RemoteMakers:
    """A group of Ray actors. Making an item must depend only on its task.

    An actor that is lost with its machine is started again elsewhere, and makes its items again.

    Args:
        place: What each actor reserves, and the machines on which it may run.
        count: The number of actors.
    """

    def __init__(self, place: Place, count: int) -> None:
        self._place, self._count = place, count
        self._actors: list[Any] = []
        self._makers: dict[int, tuple[Any, Any]] = {}

    def __call__(self, make: Callable[[_Task], _Item], tasks: Iterable[_Task]) -> Iterator[_Item]:
        """Yield the item of each task, in order.

        Args:
            make: It makes an item. It is sent to each actor once.
            tasks: The tasks.

        Raises:
            Exception: What `make` raised.
        """

        name, sent = self._sent(make)
        waiting: deque[Any] = deque()
        for number, task in enumerate(tasks):
            if len(waiting) == self._count * AHEAD:
                yield _taken(waiting.popleft())
            actor = self._actors[number % self._count]
            waiting.append(actor.make.remote(name, [sent], task))
        while waiting:
            yield _taken(waiting.popleft())

    def _sent(self, make: Any) -> tuple[int, Any]:
        """Return the key and the reference of a function, and start the actors."""
        import ray

        if not self._actors:
            actor = ray.remote(_Maker).options(
                **remote_options(self._place),
                scheduling_strategy="SPREAD",
                max_restarts=-1,
                max_task_retries=-1,
            )
            self._actors = [actor.remote() for _ in range(self._count)]
        # The function is kept, so that no other one gets its key.
        _, sent = self._makers.setdefault(id(make), (make, ray.put(make)))
        return id(make), sent


class _Maker:
    """The actor."""

    def __init__(self) -> None:
        self._makers: dict[int, Any] = {}

    def make(self, name: int, sent: list[Any], task: Any) -> Any:
        import ray

        if name not in self._makers:
            self._makers[name] = ray.get(sent[0])
        return self._makers[name](task)


def _taken(reference: Any) -> Any:
    """Return an item, or raise what its making raised."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
