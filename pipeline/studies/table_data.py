"""Five real tables for studies, with values removed at random, in five folds."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.runs.storage import remove_folder
from pipeline.studies.sets import SPLITS, build_set
from shards import ShardSet

FOLDS = 5
CLASS = "class"
_SEED = 20190820
_BETWEEN = "-without-"


@dataclass(frozen=True)
class Table:
    """A table with one class for each row.

    Attributes:
        columns: The names of the columns.
        categorical: The names of those whose values are categories.
        rows: The values, float64 `[rows, columns]`.
        classes: The class of each row.
    """

    columns: tuple[str, ...]
    categorical: tuple[str, ...]
    rows: np.ndarray
    classes: tuple[str, ...]


def without(table: str, share: float) -> str:
    """Return the name of a table's set from which a share of the values has been removed."""
    return f"{table}{_BETWEEN}{share:g}" if share else table


@cache
def table_named(name: str) -> Table:
    """Return one of `TABLES`.

    Raises:
        UserError: The package that carries it is not installed.
    """
    try:
        return TABLES[name]()
    except ImportError as error:
        raise UserError(
            f"the tables come with scikit-learn and river ({error}): pip install "
            "'perceiver-pipeline[studies]'"
        ) from None


def table_of(name: str) -> str | None:
    """Return the table of a set's name; None if it is no set of a table."""
    table = name.partition(_BETWEEN)[0]
    return table if table in TABLES else None


def table_sections(name: str) -> dict[str, Any]:
    """Return the dotted fields of the configuration that describe a table's columns."""
    table = table_named(name.partition(_BETWEEN)[0])
    numeric = [column for column in table.columns if column not in table.categorical]
    return {
        "data.table": {"numeric": numeric, "categorical": list(table.categorical)},
        "data.target": {"kind": "class", "column": CLASS},
    }


def table_set(config: Config, name: str, fold: int, folder: Path, console: Console) -> ShardSet:
    """Make the set of a table whose test split is one fold, or find it made.

    Args:
        config: The configuration with `table_sections`.
        name: The name of the set, from `without`.
        fold: The fold: the remainder by `FOLDS` says which one is the test split, and the quotient
            which shuffle of the rows is cut into folds.
        folder: The folder of the study's data.
        console: The console, which shows the progress.
    """
    source = folder / "raw" / f"{name}-{fold}"
    if not (source / ".whole").exists():
        remove_folder(source)
        source.mkdir(parents=True)
        _write_fold(name, fold, source)
        (source / ".whole").touch()
    train, test = (source / f"{split}.csv" for split in SPLITS)
    return build_set(config, f"{name}-{fold}", (train, test), folder, console)


def fold_of_rows(classes: tuple[str, ...], shuffle: int) -> np.ndarray:
    """Return the fold of each row, int64 `[rows]`, with every class spread over all folds."""
    random = np.random.default_rng((_SEED, shuffle))
    order = random.permutation(len(classes))
    by_class = order[np.argsort(np.array(classes)[order], kind="stable")]
    folds = np.empty(len(classes), np.int64)
    folds[by_class] = np.arange(len(classes)) % FOLDS
    return folds


def removed_values(name: str, shape: tuple[int, int]) -> np.ndarray:
    """Return which values a set lacks, bool `[rows, columns]`: the same ones in every fold."""
    share = float(name.partition(_BETWEEN)[2] or 0)
    return np.random.default_rng((_SEED, 1)).random(shape) < share


def _write_fold(name: str, fold: int, to: Path) -> None:
    table = table_named(name.partition(_BETWEEN)[0])
    shuffle, test = divmod(fold, FOLDS)
    is_test = fold_of_rows(table.classes, shuffle) == test
    removed = removed_values(name, table.rows.shape)
    for split in SPLITS:
        with (to / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*table.columns, CLASS])
            for number in np.flatnonzero(is_test == (split == "test")):
                values = zip(table.rows[number].tolist(), removed[number], strict=True)
                cells = ["" if gone else f"{value:.9g}" for value, gone in values]
                writer.writerow([*cells, table.classes[number]])


def _scikit_learn(name: str) -> Callable[[], Table]:
    def load() -> Table:
        from sklearn import datasets

        found = getattr(datasets, f"load_{name}")()
        # Names of the target are no classes of folders: blanks and the like are allowed.
        classes = tuple(str(found.target_names[number]) for number in found.target)
        columns = tuple(map(str, found.feature_names))
        return Table(columns, (), np.asarray(found.data, np.float64), classes)

    return load


def _river(name: str, *, categorical: bool) -> Callable[[], Table]:
    def load() -> Table:
        from river import datasets

        rows = list(getattr(datasets, name)())
        columns = tuple(rows[0][0])
        values = np.array([[row[column] for column in columns] for row, _ in rows], np.float64)
        classes = tuple(str(target) for _, target in rows)
        return Table(columns, columns if categorical else (), values, classes)

    return load


TABLES: dict[str, Callable[[], Table]] = {
    "wine": _scikit_learn("wine"),
    "cancer": _scikit_learn("breast_cancer"),
    "phishing": _river("Phishing", categorical=True),
    "digits": _scikit_learn("digits"),
    "segments": _river("ImageSegments", categorical=False),
}
"""The tables, smallest first: what reads each one from the package that carries it."""
