"""Which parts of the samples got worse: classes, folders of sources, and groups.

A model may be better on the whole and worse for one class. Each part is tested as the whole is, in
the other direction. Of many parts some look worse by chance, so their p-values are corrected: of
the parts that are named, at most a share of `alpha` is expected to be named wrongly (Benjamini and
Hochberg 1995).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.registry.gate import sums_by_unit
from pipeline.registry.outcomes import Outcomes
from pipeline.registry.paired_test import paired_p, units_needed
from shards.plain import printable


@dataclass(frozen=True)
class Slice:
    """A part of the samples on which the candidate is worse.

    Attributes:
        kind: `class`, `source` (a folder) or `group`.
        name: The name of the class, folder or group.
        samples: The number of its samples.
        value: The candidate's mean of the metric over them.
        champion_value: The champion's mean.
        wins: The number of units of the paired test on which the candidate is better.
        losses: The number of units on which the champion is better.
        p_value: The p-value of the part, corrected for the number of parts.
    """

    kind: str
    name: str
    samples: int
    value: float
    champion_value: float
    wins: int
    losses: int
    p_value: float

    def __str__(self) -> str:
        return (
            f"{self.kind} {printable(self.name)!r}: {self.value:.4f} on {self.samples} samples, "
            f"where the champion has {self.champion_value:.4f} ({self.wins} won, {self.losses} "
            f"lost, p = {self.p_value:.3g})"
        )


@dataclass(frozen=True)
class Places:
    """Where the samples of a split come from, in the order of the shards.

    Attributes:
        folders: The folder of each sample's source below the split, object `[samples]`.
        groups: The group of each sample by `data.group`, object `[samples]`; None without groups.
    """

    folders: np.ndarray
    groups: np.ndarray | None = None


def worse_slices(
    gains: np.ndarray,
    ours: Outcomes,
    theirs: Outcomes,
    compared: np.ndarray,
    units: np.ndarray,
    places: Places,
    classes: tuple[str, ...],
    alpha: float,
) -> list[Slice]:
    """Return the parts on which the candidate is significantly worse, the surest first.

    Parts with too few samples to show anything, and those that hold all samples, are not tested.

    Args:
        gains: How much better the candidate is on each sample, float64 `[samples]`.
        ours: The candidate's outcomes.
        theirs: The champion's outcomes.
        compared: Which samples count, bool `[samples]`.
        units: The unit of the paired test of each sample, int64 `[samples]`.
        places: Where the samples come from.
        classes: The names of the set's classes.
        alpha: The largest corrected p-value of a part that is named.
    """
    from scipy.stats import false_discovery_control

    needed, tested = units_needed(alpha), list[dict[str, Any]]()
    for kind, name, rows in _parts(ours, places, classes):
        rows = rows[compared[rows]]
        found = sums_by_unit(gains[rows], units[rows])
        if len(rows) == compared.sum() or np.count_nonzero(found) < needed:
            continue
        tested.append(
            {
                "kind": kind,
                "name": name,
                "samples": len(rows),
                "value": float(ours.values[rows].mean()),
                "champion_value": float(theirs.values[rows].mean()),
                "wins": int((found > 0).sum()),
                "losses": int((found < 0).sum()),
                "p_value": paired_p(-found, alpha),
            }
        )
    if not tested:
        return []
    corrected = false_discovery_control([each["p_value"] for each in tested])
    slices = [
        Slice(**{**each, "p_value": float(p)}) for each, p in zip(tested, corrected, strict=True)
    ]
    return sorted((each for each in slices if each.p_value <= alpha), key=lambda one: one.p_value)


def _parts(
    outcomes: Outcomes, places: Places, classes: tuple[str, ...]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield kind, name and sample numbers of each part. Of equal parts the first counts."""
    seen = set[bytes]()
    for kind, rows, names in _labels(outcomes, places, classes):
        for name, part in _by_name(rows, names).items():
            if (key := part.tobytes()) not in seen:
                seen.add(key)
                yield kind, name, part


def _labels(
    outcomes: Outcomes, places: Places, classes: tuple[str, ...]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    if outcomes.rows is not None and outcomes.classes is not None and classes:
        yield "class", outcomes.rows, np.array(classes, object)[outcomes.classes]
    every = np.arange(len(places.folders))
    if places.groups is not None:
        yield "group", every, places.groups
    yield "source", every, places.folders


def _by_name(rows: np.ndarray, names: np.ndarray) -> Mapping[str, np.ndarray]:
    """Return the sorted numbers of the samples of each name."""
    found, which = np.unique(names.astype(str), return_inverse=True)
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which, minlength=len(found)))
    parts = np.split(rows[order], ends[:-1])
    return {str(name): np.sort(part) for name, part in zip(found, parts, strict=True)}
