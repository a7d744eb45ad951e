"""Re-encode a shard set's rows for a model that was fitted to other training rows."""

import numpy as np

from pipeline.media.table.decode import FittedTableFormat


class RowEncoder:
    """Re-encode a set's rows in another table format.

    Args:
        stored: The format of the set's rows.
        media: The format to encode them in. The set has all its columns.
    """

    def __init__(self, stored: FittedTableFormat, media: FittedTableFormat) -> None:
        self._columns = [stored.columns.index(name) for name in media.columns]
        self._lookups: list[tuple[int, np.ndarray]] = []
        self._uncertain: list[tuple[int, int]] = []
        for index, column in enumerate(media.columns):
            if column not in media.categorical:
                continue
            ours, theirs = (fmt.vocabulary.categories[column] for fmt in (stored, media))
            numbers = {name: number for number, name in enumerate(theirs)}
            unknown = len(theirs)
            lookup = [numbers.get(name, unknown) for name in ours]
            self._lookups.append((index, np.array([*lookup, unknown], np.float64)))
            if numbers.keys() - set(ours):
                self._uncertain.append((self._columns[index], len(ours)))

    @property
    def has_doubts(self) -> bool:
        """Whether the model knows categories that the set's vocabulary lacks."""
        return bool(self._uncertain)

    def one_row(self, row: np.ndarray) -> np.ndarray:
        """Re-encode one row, float64 `[columns]`."""
        return self(row[None])[0]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Re-encode rows.

        Args:
            rows: float64 `[rows, stored columns]`.

        Returns:
            float64 `[rows, columns]`, in the format that was asked for.

        Raises:
            ValueError: A row holds an index of no category.
        """
        encoded = rows[:, self._columns]
        for index, lookup in self._lookups:
            given = ~np.isnan(encoded[:, index])
            values = encoded[given, index]
            within = (values >= 0) & (values < len(lookup))
            if not within.all() or (values % 1 != 0).any():
                raise ValueError("an index of no category")
            encoded[given, index] = lookup[values.astype(np.int64)]
        return encoded

    def uncertain(self, rows: np.ndarray) -> np.ndarray:
        """Return which rows hold a value that the set does not know, but the model may.

        The set does not keep the name of such a value, so its category in the model is not known.

        Args:
            rows: float64 `[rows, stored columns]`.

        Returns:
            bool `[rows]`.
        """
        found = np.zeros(len(rows), bool)
        for index, unknown in self._uncertain:
            found |= rows[:, index] == unknown
        return found
