"""Classes: their names, in the order of their numbers, and the number of every sample."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.data import DataConfig
from pipeline.errors import UserError
from pipeline.media.table.values import name_of
from pipeline.preprocess.sources.scan import SourceScan
from pipeline.preprocess.sources.tables import one_chunk
from shards.manifest_check import MAX_CLASS_NAME
from shards.plain import printable


def class_names(
    data: DataConfig,
    found: Mapping[str, SourceScan],
    by_split: dict[str, set[str]],
    known: Sequence[str],
) -> tuple[str, ...]:
    """Return all classes: the configured ones, or the sorted ones of the training samples.

    If all labels of a listing or of tars are whole numbers, they are sorted as numbers. Names of
    folders are always sorted as text. Known classes keep their numbers, and new ones follow.

    Args:
        data: The section `data` of the configuration.
        found: What was found for each split that has its own source.
        by_split: The classes that the samples of each split have, if a sample has one.
        known: The classes of an existing set, in the order of their numbers.

    Raises:
        UserError: There is only one class, a split has an unknown class, or a name is not UTF-8,
            which manifests need.
    """
    target = data.target
    if target.kind == "multi_label":
        by_split = _label_sets(data, found)
    elif target.kind != "class":
        return target.classes
    classes = target.classes
    if not classes:
        new = by_split.get("train", set()) - _spellings(known)
        classes = (*known, *_sorted(new, found["train"].numbered))
    elif target.kind == "class" and _are_numbers(by_split.get("train", set()), classes):
        # `label_numbers` takes numbers as class indices. All other labels must be names.
        by_split = {
            split: {name for name in names if not _is_number(name)}
            for split, names in by_split.items()
        }
    for name in classes:
        if (shown := name.encode(errors="backslashreplace").decode()) != name:
            raise UserError(
                f"data.train={data.train}: the class '{shown}' is not UTF-8; rename it, or save "
                "the listing as UTF-8"
            )
        if (shown := printable(name)) != name or len(name) > MAX_CLASS_NAME:
            raise UserError(
                f"data.train={data.train}: the class '{shown[:100]}' has a control character or "
                f"more than {MAX_CLASS_NAME} characters; rename it"
            )
    least = 2 if target.kind == "class" else 1
    if len(classes) < least:
        raise UserError(_too_few(data, classes))
    for split, names in by_split.items():
        unknown = sorted(names - _spellings(classes))
        if unknown:
            raise UserError(_unknown(data, split, unknown))
    return classes


def label_numbers(kind: str, samples: pa.Table, classes: tuple[str, ...]) -> np.ndarray:
    """Return the class number of each sample, int64 `[samples]`; -1 if the target is not a class.

    Args:
        kind: The kind of the target.
        samples: Samples, of `FOUND_SCHEMA`.
        classes: The names from `class_names`.

    Raises:
        UserError: A label is a number, and there are not so many classes.
    """
    if kind != "class":
        return np.full(samples.num_rows, -1)
    labels = one_chunk(samples["label"])
    number_of = {_as_value(name): number for number, name in reversed([*enumerate(classes)])}
    number_of |= {name: number for number, name in enumerate(classes)}
    names = pa.array([os.fsencode(name) for name in number_of], pa.binary())
    found = pa.array([*number_of.values()], pa.int64()).take(pc.index_in(labels, value_set=names))
    if found.null_count:  # labels that are numbers of configured classes
        distinct = labels.dictionary_encode()
        given = map(os.fsdecode, distinct.dictionary.to_pylist())
        numbers = np.array([int(name) if _is_number(name) else number_of[name] for name in given])
        outside = numbers >= len(classes)
        if outside.any():
            raise UserError(
                f"data.target.classes: has {len(classes)} names, and a sample has class "
                f"{numbers[outside][0]}"
            )
        return numbers[distinct.indices.to_numpy()]
    return found.to_numpy()


def _spellings(classes: Sequence[str]) -> set[str]:
    """Return the classes' names and their spellings in a listing: 1 for 1.0, true for True."""
    return {*classes, *map(_as_value, classes)}


def _as_value(name: str) -> str:
    try:
        return name_of(name)
    except ValueError:  # not UTF-8, which `class_names` refuses
        return name


def _sorted(names: set[str], numbered: bool) -> list[str]:
    if numbered and all(_is_number(name) for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 19 and str(int(name)) == name


def _are_numbers(labels: set[str], classes: tuple[str, ...]) -> bool:
    """Return whether the labels are numbers of classes, not their names."""
    return bool(labels) and not labels & _spellings(classes) and all(map(_is_number, labels))


def _label_sets(data: DataConfig, found: Mapping[str, SourceScan]) -> dict[str, set[str]]:
    by_split: dict[str, set[str]] = {}
    for part in found.values():
        if part.values is None and not data.target.classes:
            raise UserError(
                "data.target.classes is missing: labels that lie in files of their own are not "
                "read before the work begins; name them all"
            )
        for split, names in part.label_names.items():
            by_split.setdefault(split, set()).update(names)
    return by_split


def _too_few(data: DataConfig, classes: tuple[str, ...]) -> str:
    where = f"data.train={data.train}"
    if data.target.kind == "multi_label":
        return f"{where}: no row has a label"
    if data.target.column is None and not data.target.classes:
        return (
            f"{where}: one class only ({classes[0]!r}); a classifier needs at least two class "
            "folders"
        )
    return f"{where}: one class only ({classes[0]!r}); a classifier needs at least two"


def _unknown(data: DataConfig, split: str, unknown: list[str]) -> str:
    named = ", ".join(map(repr, unknown[:5]))
    if data.target.classes:
        return f"data.target.classes: lacks {named}, which {split} has"
    source = getattr(data, split) if split != "train" else data.train
    if not isinstance(source, str):
        return f"data.train={data.train}: classes {named} of {split} are not in its train rows"
    what = "classes" if data.target.column or data.target.kind != "class" else "class folders"
    return f"data.{split}={source}: {what} {named} are not in data.train"
