"""Keeps the samples of a group, for example all cuts of one recording, in one split."""

import os
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config.data import SPLITS
from pipeline.errors import UserError
from pipeline.preprocess.sources.split import TRAIN, VALIDATION, ranks
from pipeline.preprocess.sources.tables import BATCH_ROWS, one_chunk

_MAX_SHOWN = 100
_MAX_NAMED = 3


def group_pattern(pattern: str) -> re.Pattern[str]:
    """Compile the pattern that names the groups of files.

    Args:
        pattern: A regular expression with one capturing group.

    Raises:
        UserError: The pattern is not such an expression.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"data.group={pattern}: is not a regular expression ({error}); folders and tars need "
            "one that captures the group on a sample's path"
        ) from None
    if compiled.groups != 1:
        raise UserError(
            f"data.group={pattern}: has {compiled.groups} capturing groups, and needs one; put "
            "round brackets around the part of the path that names the group, and write all other "
            "brackets as (?:…)"
        )
    return compiled


def groups_by_pattern(names: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    """Return the group of each sample: what the pattern captures on its name.

    Args:
        names: The names of the samples, binary: paths below the root of their source.
        pattern: The expression of `group_pattern`. It may match anywhere in a name.

    Returns:
        The groups, binary, without nulls.

    Raises:
        UserError: The pattern is not such an expression, or captures nothing on a name.
    """
    compiled = group_pattern(pattern)
    found: list[pa.Array] = []
    for start in range(0, len(names), BATCH_ROWS):
        captured = []
        for name in names.slice(start, BATCH_ROWS).to_pylist():
            match = compiled.search(os.fsdecode(name))
            if match is None or not match[1]:
                raise UserError(
                    f"data.group={pattern}: captures nothing on the path {_shown(name)}; mend the "
                    "pattern, or move the file away"
                )
            captured.append(os.fsencode(match[1]))
        found.append(pa.array(captured, pa.binary()))
    return pa.chunked_array(found, pa.binary())


def groups_of(samples: pa.Table, splits: np.ndarray, targets: np.ndarray | None = None) -> pa.Table:
    """Count samples by group, split and class.

    Args:
        samples: A table with the column `group`.
        splits: The index in `SPLITS` of each sample, or -1, int8 `[samples]`.
        targets: The class numbers, int64 `[samples]`, or None to leave them out.

    Returns:
        The columns `group`, `split`, `target` and `count`, by the first appearance.
    """
    ones = np.ones(samples.num_rows, np.int64)
    given = np.zeros(samples.num_rows, np.int64) if targets is None else targets
    table = pa.table({"group": samples["group"], "split": splits, "target": given, "count": ones})
    return sum_groups(table)


def sum_groups(table: pa.Table) -> pa.Table:
    """Add up the counts of equal groups, splits and classes in tables of `groups_of`."""
    keys = ["group", "split", "target"]
    summed = table.group_by(keys, use_threads=False).aggregate([("count", "sum")])
    return summed.select([*keys, "count_sum"]).rename_columns([*keys, "count"])


def refuse_shared_groups(counted: pa.Table, setting: str) -> None:
    """Refuse groups that have samples in more than one split.

    Args:
        counted: All samples, counted by `groups_of` in their final splits.
        setting: The value of `data.group`, for the error.

    Raises:
        UserError: There is such a group; the text names up to three of them.
    """
    numbers, names = _numbered(counted["group"])
    lies_in = np.zeros((len(names), len(SPLITS)), bool)
    lies_in[numbers, counted["split"].to_numpy()] = True
    shared = np.flatnonzero(lies_in.sum(1) > 1)
    if len(shared):
        examples = "; ".join(
            f"{_shown(names[int(number)].as_py())} in "
            + " and ".join(SPLITS[code] for code in np.flatnonzero(lies_in[number]))
            for number in shared[:_MAX_NAMED]
        )
        noun = "group lies" if len(shared) == 1 else "groups lie"
        raise UserError(
            f"data.group={setting}: {len(shared)} {noun} in several splits ({examples}); move each "
            "group's samples into one split"
        )


@dataclass
class _Held:
    """How many samples of each class are wanted and held in validation, and are left to train."""

    wanted: list[int]
    held: list[int]
    left: list[int]

    def gain(self, group: list[tuple[int, int]]) -> int:
        """Return by how many samples the split comes nearer to the wanted one with a group more."""
        missing = ((self.wanted[code] - self.held[code], count) for code, count in group)
        return sum(abs(gap) - abs(gap - count) for gap, count in missing)

    def can_take(self, group: list[tuple[int, int]]) -> bool:
        """Return whether training keeps a sample of each class without a group."""
        return all(self.left[code] > count for code, count in group)

    def take(self, group: list[tuple[int, int]]) -> None:
        """Move a group from training into validation."""
        for code, count in group:
            self.held[code] += count
            self.left[code] -= count


def hold_out_groups(counted: pa.Table, share: float, seed: int, num_classes: int) -> pa.Table:
    """Hold out whole groups for validation, so that each class comes near to its share.

    Groups are tried in the order of the hashes of their names. One is held out if that brings the
    counts of its classes nearer to the share, and training keeps a sample of each class. If a class
    then has nothing in validation, the group that fits best is added. A class of a single group
    stays in training. The result depends only on the groups and the seed.

    Args:
        counted: All training samples, counted by `groups_of`. Earlier samples have their split, and
            their groups stay in it; new samples have -1.
        share: The share of each class. Earlier samples count.
        seed: The seed of the hash.
        num_classes: The number of classes, at least 1.

    Returns:
        For each group the columns `group` and `split`, the index in `SPLITS`, int8.

    Raises:
        UserError: There is only one group, each group would leave a class without training
            samples, or earlier samples of one group lie in different splits.
    """
    numbers, names = _numbered(counted["group"])
    if len(names) < 2:
        raise UserError(
            f"data.validation={share:g}: all samples are of one group by data.group "
            f"({_shown(names[0].as_py())}), and two splits need two; mend data.group, or give "
            "validation a source of its own"
        )
    targets, weights = counted["target"].to_numpy(), counted["count"].to_numpy()
    before = _splits_of_known_groups(counted["split"].to_numpy(), numbers, names)
    counts = np.bincount(targets, weights, minlength=num_classes).astype(np.int64)
    wanted = np.minimum(np.maximum(1, np.rint(share * counts)), np.maximum(counts - 1, 0))
    state = _Held(wanted.astype(int).tolist(), [0] * num_classes, counts.tolist())
    classes_of = _classes_of_groups(numbers, targets, weights, len(names), num_classes)
    sides = before.copy()
    for number in np.flatnonzero(before == VALIDATION).tolist():
        state.take(classes_of[number])
    order = np.argsort(ranks(names, SPLITS[TRAIN], seed), kind="stable")
    new = [number for number in order.tolist() if before[number] < 0]
    for number in new:
        group = classes_of[number]
        if state.gain(group) > 0 and state.can_take(group):
            state.take(group)
            sides[number] = VALIDATION
    _fill_empty_classes(state, classes_of, new, sides)
    sides[sides < 0] = TRAIN
    if not (sides == VALIDATION).any():
        raise UserError(
            f"data.validation={share:g}: each class has a single group by data.group, so none can "
            "be held out; add groups, mend data.group, or give validation a source of its own"
        )
    return pa.table({"group": names, "split": sides})


def _fill_empty_classes(
    state: _Held, classes_of: list[list[tuple[int, int]]], new: list[int], sides: np.ndarray
) -> None:
    """Give each class that has nothing in validation the new group that fits best."""
    candidates: dict[int, list[int]] = {}
    for number in new:
        for code, _ in classes_of[number]:
            if state.held[code] == 0 and sides[number] < 0:
                candidates.setdefault(code, []).append(number)
    for code in sorted(candidates):
        if state.held[code]:  # another class's group brought it
            continue
        fitting = [
            number
            for number in candidates[code]
            if sides[number] < 0 and state.can_take(classes_of[number])
        ]
        if fitting:
            best = max(fitting, key=lambda number: state.gain(classes_of[number]))
            state.take(classes_of[best])
            sides[best] = VALIDATION


def _numbered(groups: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Return the number of each sample's group, int64 `[samples]`, and the groups' names."""
    encoded = one_chunk(groups).dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary


def _splits_of_known_groups(splits: np.ndarray, numbers: np.ndarray, names: pa.Array) -> np.ndarray:
    """Return the split of each group that has earlier samples, and -1 for new ones, int8."""
    sides = np.full(len(names), -1, np.int8)
    for code in (TRAIN, VALIDATION):
        of_split = np.unique(numbers[splits == code])
        both = of_split[sides[of_split] >= 0]
        if len(both):
            raise UserError(
                f"data.group: the existing set has samples of the group "
                f"{_shown(names[int(both[0])].as_py())} in train and in validation; make the set "
                "again with --fresh"
            )
        sides[of_split] = code
    return sides


def _classes_of_groups(
    numbers: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    num_groups: int,
    num_classes: int,
) -> list[list[tuple[int, int]]]:
    """Return for each group its classes and how many samples it has of each."""
    pairs, where = np.unique(numbers * num_classes + targets, return_inverse=True)
    counts = np.bincount(where.reshape(-1), weights).astype(np.int64)
    found: list[list[tuple[int, int]]] = [[] for _ in range(num_groups)]
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        found[pair // num_classes].append((pair % num_classes, count))
    return found


def _shown(name: bytes) -> str:
    return repr(name[:_MAX_SHOWN].decode(errors="replace"))
