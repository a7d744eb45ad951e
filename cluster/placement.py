"""Where workers and tasks run: what each reserves, on which machines, and whether these have it."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.errors import ClusterError

Strategy = Literal["pack", "spread", "strict_pack", "strict_spread"]
NODE_ID_LABEL = "ray.io/node-id"
ACCELERATOR = "accelerator_type:"
ACCELERATOR_SHARE = 0.001
"""What a worker reserves of `accelerator_type:NAME`, as Ray Train does: it only names a machine."""
_ROUNDING = 1e-9


class NoRoomError(Exception):
    """The machines have no room for the workers at the moment."""


@dataclass(frozen=True)
class Place:
    """What one worker or task reserves, and the machines on which it may run.

    Attributes:
        resources: The amounts by Ray's names, such as `CPU`, `GPU` or a name of one's own.
        labels: The labels that a machine must have, by key: a value, `!value`, `in(a, b)` or
            `!in(a, b)`, as Ray's label selectors.
    """

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerPlacement:
    """How the workers of one group are spread over machines.

    Attributes:
        num_workers: The number of workers; of a range, the smallest.
        place: What each worker needs.
        strategy: Ray's placement strategy, in small letters.
        workers_per_node: The number of workers on each machine, fewer on the last; None leaves it
            to the strategy.
    """

    num_workers: int
    place: Place
    strategy: Strategy = "pack"
    workers_per_node: int | None = None

    def missing(self) -> str | None:
        """Describe what the connected cluster lacks for these workers; None if nothing."""
        if lacks := missing_for(self.place, self.num_workers):
            return lacks
        holds = sorted((_held(node, self.place) for node in _nodes()), reverse=True)
        what = f"{self.num_workers} workers of {_words(self.place.resources)}"
        if (each := self.workers_per_node) is not None:
            wanted = self._shares(each)
            largest = itertools.zip_longest(holds[: len(wanted)], wanted, fillvalue=0)
            if any(have < share for have, share in largest):
                fit = sum(have >= each for have in holds)
                return (
                    f"needs {len(wanted)} machines for {what}, {each} on each "
                    f"(cluster.workers_per_node), but {fit} machines have room for as many"
                )
        elif self.strategy == "strict_spread":
            fit = sum(have > 0 for have in holds)
            if fit < self.num_workers:
                return (
                    f"needs {self.num_workers} machines for {what} "
                    f"(cluster.placement: strict_spread), but {fit} have room for one"
                )
        elif self.strategy == "strict_pack" and max(holds, default=0) < self.num_workers:
            return (
                f"needs one machine for {what} (cluster.placement: strict_pack), but the largest "
                f"has room for {max(holds, default=0)}"
            )
        return None

    def require(self, what: str, mend: str) -> None:
        """Reject workers that the connected cluster can never hold, instead of waiting forever.

        Args:
            what: The subject of the error, such as the command.
            mend: How to mend the problem, the end of the error.

        Raises:
            ClusterError: The cluster lacks something.
        """
        if missing := self.missing():
            raise ClusterError(f"{what} {missing}; {mend}")

    def selectors(self) -> list[dict[str, str]] | dict[str, str] | None:
        """Return Ray Train's label selectors. With `workers_per_node`, they name each machine.

        Machines with the most free room come first.

        Raises:
            NoRoomError: There are too few machines, since one was just lost.
        """
        if self.workers_per_node is None:
            return dict(self.place.labels) or None
        if lacks := self.missing():
            raise NoRoomError(f"the group of workers {lacks}")
        free = _free_by_node()
        wanted = self._shares(self.workers_per_node)
        nodes = [node for node in _nodes() if _held(node, self.place)]
        nodes.sort(
            key=lambda node: (-_fits(free.get(node["NodeID"], {}), self.place), node["NodeID"])
        )
        chosen = []
        for share in wanted:
            node = next(node for node in nodes if _held(node, self.place) >= share)
            nodes.remove(node)
            chosen += [{**self.place.labels, NODE_ID_LABEL: node["NodeID"]}] * share
        return [dict(each) for each in chosen]

    def _shares(self, each: int) -> list[int]:
        """Return the number of workers on each machine, the largest first."""
        whole, rest = divmod(self.num_workers, each)
        return [each] * whole + ([rest] if rest else [])


def missing_in_all(kind: str, need: float) -> str | None:
    """Describe that the machines together have less of a resource than is needed; None if not."""
    have = sum(node["Resources"].get(kind, 0) for node in _nodes())
    if need <= have + _ROUNDING:
        return None
    return f"needs {need:g} {_plural(kind)} in all, but the cluster has {have:g}"


def missing_for(place: Place, count: int, what: str = "workers") -> str | None:
    """Describe what the connected cluster lacks for this many workers or tasks at once.

    Args:
        place: What each of them needs.
        count: Their number.
        what: What they are.

    Returns:
        The end of a sentence, such as "needs 4 CPUs (2 workers x 2), but the cluster has 2"; None
        if nothing is missing.
    """
    nodes = _nodes()
    for kind, each in place.resources.items():
        need, have = count * each, sum(node["Resources"].get(kind, 0) for node in nodes)
        if need > have + _ROUNDING:
            if kind.startswith(ACCELERATOR):
                return _no_accelerator(kind, nodes)
            return (
                f"needs {need:g} {_plural(kind)} ({count} {what} x {each:g}), but the cluster has "
                f"{have:g}"
            )
    matching = [node for node in nodes if _has_labels(node, place.labels)]
    if place.labels and not matching:
        labels = ", ".join(f"{key}={value}" for key, value in place.labels.items())
        return f"needs machines with the labels {labels}, but none of {len(nodes)} has them"
    if (fit := capacity(place)) < count:
        among = f" of {len(nodes)} with the labels" if place.labels else ""
        return (
            f"needs room for {count} {what} of {_words(place.resources)}, but the cluster's "
            f"{len(matching)} machines{among} have room for {fit}, since each must fit on one "
            "machine"
        )
    return None


def remote_options(place: Place) -> dict[str, Any]:
    """Return a place as options of a Ray task or actor."""
    named = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    options: dict[str, Any] = {
        option: place.resources[kind] for kind, option in named.items() if kind in place.resources
    }
    if own := {kind: each for kind, each in place.resources.items() if kind not in named}:
        options["resources"] = own
    if place.labels:
        options["label_selector"] = dict(place.labels)
    return options


def _no_accelerator(kind: str, nodes: list[dict[str, Any]]) -> str:
    names = {name for node in nodes for name in node["Resources"] if name.startswith(ACCELERATOR)}
    there = ", ".join(name.removeprefix(ACCELERATOR) for name in sorted(names)) or "none"
    return (
        f"needs machines with the accelerator {kind.removeprefix(ACCELERATOR)}, but none of "
        f"{len(nodes)} has it; there are {there}"
    )


def capacity(place: Place) -> int:
    """Return how many workers or tasks fit on all machines of the connected cluster together."""
    return sum(_held(node, place) for node in _nodes())


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _free_by_node() -> dict[str, dict[str, float]]:
    from ray._private.state import available_resources_per_node

    return dict(available_resources_per_node())


def _held(node: dict[str, Any], place: Place) -> int:
    """Return how many workers fit on a machine that is free."""
    return _fits(node["Resources"], place) if _has_labels(node, place.labels) else 0


def _fits(have: Mapping[str, float], place: Place) -> int:
    shares = [
        math.floor(have.get(kind, 0) / each + _ROUNDING)
        for kind, each in place.resources.items()
        if each
    ]
    return min(shares, default=0)


def _has_labels(node: dict[str, Any], wanted: Mapping[str, str]) -> bool:
    labels = node.get("Labels", {})
    return all(matches(labels.get(key), value) for key, value in wanted.items())


def matches(label: str | None, wanted: str) -> bool:
    """Return whether a label's value satisfies one of Ray's conditions."""
    negated = wanted.startswith("!")
    text = wanted.removeprefix("!")
    if text.startswith("in(") and text.endswith(")"):
        among = [part.strip() for part in text[3:-1].split(",")]
    else:
        among = [text]
    return (label in among) != negated


def _plural(kind: str) -> str:
    return f"{kind}s" if kind in ("CPU", "GPU") else f"of {kind}"


def _words(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{each:g} {kind}" for kind, each in resources.items() if each)
