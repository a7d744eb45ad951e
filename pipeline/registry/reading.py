"""How a model reads the samples of a shard set: its own set, or one that was made anew.

Shards hold numbers as they are and categories as indices into the set's own vocabulary, so rows can
be encoded anew for a model that was fitted to other training rows.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.config.base import differences
from pipeline.inputs.collate import padded_length
from pipeline.media import (
    FittedTableFormat,
    MediaFormat,
    PointsFormat,
    TableFormat,
    check_array,
    decode_member,
    model_member,
)
from pipeline.media.points.fourier import point_features
from shards import RawSample, ShardReader, ShardSet
from shards.loader import ShardBatch, ShardLoader

BATCH_SIZE = 64
_WITHOUT_EFFECT: dict[str, frozenset[str]] = {
    "image": frozenset({"encoding", "jpeg_quality", "max_pixels"}),
    "audio": frozenset({"encoding", "min_seconds"}),
    "video": frozenset({"clips", "stride_seconds", "pad_short", "max_seconds", "max_pixels"}),
    "points": frozenset({"seed", "fourier", "max_faces", "max_points"}),
    "text": frozenset({"cut", "overlap", "errors"}),
}
"""Fields that say which samples there are and how shards hold them, not what a model is given."""


def other_input(stored: MediaFormat, media: MediaFormat) -> str | None:
    """What a model takes that a set does not hold.

    Only what goes into the model counts: columns, sizes, rates. Statistics that were fitted to
    training rows, limits, and how shards encode their members do not.

    Args:
        stored: format of the set's samples.
        media: format that the model takes.

    Returns:
        The differences in words, or None if the model can read the set.
    """
    if stored.modality != media.modality:
        return f"it takes {media.modality}, and the set holds {stored.modality}"
    if isinstance(stored, TableFormat) and isinstance(media, TableFormat):
        for kind in ("numeric", "categorical"):
            lacking = [name for name in getattr(media, kind) if name not in getattr(stored, kind)]
            if lacking:
                return f"it reads the {kind} column {lacking[0]!r}, and the set has none"
        return None
    left_out = _WITHOUT_EFFECT[stored.modality]
    if isinstance(stored, PointsFormat) and isinstance(media, PointsFormat):
        # Files say whether they have faces; "auto" follows them.
        left_out |= {"sample"} if "auto" in (stored.sample, media.sample) else set()
    theirs, ours = (
        {name: value for name, value in asdict(fmt).items() if name not in left_out}
        for fmt in (media, stored)
    )
    return differences(theirs, ours)


class RowEncoder:
    """Encodes a set's rows as another table format encodes them.

    Args:
        stored: format of the rows that are given.
        media: format wanted; the set has its columns.
    """

    def __init__(self, stored: FittedTableFormat, media: FittedTableFormat) -> None:
        self._places = [stored.columns.index(name) for name in media.columns]
        self._lookups: list[tuple[int, np.ndarray]] = []
        self._doubtful: list[tuple[int, int]] = []
        for place, column in enumerate(media.columns):
            if column not in media.categorical:
                continue
            ours, theirs = (fmt.vocabulary.categories[column] for fmt in (stored, media))
            index = {name: number for number, name in enumerate(theirs)}
            unknown = len(theirs)
            lookup = [index.get(name, unknown) for name in ours]
            self._lookups.append((place, np.array([*lookup, unknown], np.float64)))
            if index.keys() - set(ours):
                self._doubtful.append((self._places[place], len(ours)))

    @property
    def has_doubts(self) -> bool:
        """Whether the model knows categories that the set's vocabulary lacks."""
        return bool(self._doubtful)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The rows in the format wanted.

        Args:
            rows: float64 `[rows, stored columns]`.

        Returns:
            float64 `[rows, columns wanted]`.

        Raises:
            ValueError: a row holds an index of no category.
        """
        encoded = rows[:, self._places]
        for place, lookup in self._lookups:
            given = ~np.isnan(encoded[:, place])
            values = encoded[given, place]
            within = (values >= 0) & (values < len(lookup))
            if not within.all() or (values % 1 != 0).any():
                raise ValueError("an index of no category")
            encoded[given, place] = lookup[values.astype(np.int64)]
        return encoded

    def doubtful(self, rows: np.ndarray) -> np.ndarray:
        """Which rows hold a value that the set does not know, but the model may.

        The set keeps no name of such a value, so what the model would make of it is not known.

        Args:
            rows: float64 `[rows, stored columns]`.

        Returns:
            bool `[rows]`.
        """
        found = np.zeros(len(rows), bool)
        for place, unknown in self._doubtful:
            found |= rows[:, place] == unknown
        return found


@dataclass(frozen=True)
class Reading:
    """Makes the arrays that a model takes of a set's samples; a decoder for `ShardLoader`.

    Attributes:
        stored: format of the set's samples; of tables, with the set's vocabulary.
        media: format that the model takes; `other_input` has nothing against it.
        verify_samples: whether samples are compared with their sha256.
        skip_corrupt: whether those that differ, or cannot be read, are skipped, or end the work.
    """

    stored: MediaFormat
    media: MediaFormat
    verify_samples: bool = True
    skip_corrupt: bool = True

    @cached_property
    def rows(self) -> RowEncoder | None:
        """Of tables, the encoder of rows."""
        if isinstance(self.stored, FittedTableFormat) and isinstance(self.media, FittedTableFormat):
            return RowEncoder(self.stored, self.media)
        return None

    @cached_property
    def _read(self) -> MediaFormat:
        """What is read: points' own coordinates, unless the set has the model's features."""
        stored, media = self.stored, self.media
        if isinstance(stored, PointsFormat) and isinstance(media, PointsFormat):
            return stored if stored.fourier == media.fourier else replace(stored, fourier=None)
        return stored

    def __call__(self, sample: RawSample) -> dict[str, np.ndarray]:
        """The sample's array, by modality.

        Raises:
            MediaError, ShardError: it is damaged.
            ValueError: it is missing, or is not what the format says.
        """
        member = model_member(self._read)
        if member not in sample.members:
            raise ValueError(f"has {', '.join(sample.members)}, and no {member}")
        array = decode_member(sample.members[member], self._read)
        check_array(array, self._read)
        return {self.media.modality: self._converted(array)}

    def _converted(self, array: np.ndarray) -> np.ndarray:
        if self.rows is not None:
            return self.rows(array[None])[0]
        if (
            isinstance(self._read, PointsFormat)
            and isinstance(self.media, PointsFormat)
            and self.media.fourier is not None
            and self._read.fourier is None
        ):
            return point_features(array, self.media)
        return array

    def batches(self, shard_set: ShardSet, split: str) -> Iterator[ShardBatch]:
        """Every sample of a split once, in order; those that cannot be read have weight 0.

        Raises:
            ShardError: the set has no such split, or a sample is not to be skipped.
        """
        length = padded_length(self.media)
        return iter(
            ShardLoader(
                ShardReader(shard_set, split, verify_samples=self.verify_samples),
                decode=self,
                pad_to={} if length is None else {self.media.modality: length},
                skip_bad=True,
                skip_corrupt=self.skip_corrupt,
                batch_size=BATCH_SIZE,
                shuffle=False,
            )
        )
