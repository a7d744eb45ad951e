"""How a model reads the samples of a shard set: its own set, or one that was made later.

Shards hold numbers as they are, and categories as indices into the set's own vocabulary. So rows
can be re-encoded for a model that was fitted to other training rows.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from pipeline.config.base import differences
from pipeline.inputs.batches import TARGET, decode_target
from pipeline.inputs.collate import padded_length
from pipeline.media import MediaFormat, check_array, decode_member, model_member
from pipeline.media.modality import Conversion
from pipeline.media.registered import modality_of
from shards import RawSample, ShardReader, ShardSet
from shards.loader import ShardBatch, ShardLoader

BATCH_SIZE = 64


def other_input(stored: MediaFormat, media: MediaFormat) -> str | None:
    """Return how a model's input differs from what a set holds.

    Only what enters the model counts: columns, sizes, sample rates. Fitted statistics, limits, and
    the encoding of shard members do not count.

    Args:
        stored: The format of the set's samples.
        media: The format that the model takes.

    Returns:
        The differences in words; None if the model can read the set.
    """
    if stored.modality != media.modality:
        return f"it takes {media.modality}, and the set holds {stored.modality}"
    modality = modality_of(media)
    if reason := modality.unreadable(stored, media):
        return reason
    compared = modality.compared(stored, media)
    theirs, ours = (
        {name: value for name, value in asdict(fmt).items() if name in compared}
        for fmt in (media, stored)
    )
    return differences(theirs, ours)


@dataclass(frozen=True)
class Reading:
    """Turn a set's samples into the arrays that a model takes. It is a decoder for `ShardLoader`.

    Attributes:
        stored: The format of the set's samples; for tables, with the set's vocabulary.
        media: The format that the model takes. `other_input` must return None for it.
        verify_samples: Whether to compare samples with their sha256.
        skip_corrupt: Whether to skip samples that differ or cannot be read. Otherwise they raise an
            error.
        has_target: Whether targets are arrays, which are then read too.
    """

    stored: MediaFormat
    media: MediaFormat
    verify_samples: bool = True
    skip_corrupt: bool = True
    has_target: bool = False

    @cached_property
    def conversion(self) -> Conversion:
        """The conversion of the set's arrays to those that the model takes."""
        return modality_of(self.media).conversion(self.stored, self.media)

    def __call__(self, sample: RawSample) -> dict[str, np.ndarray]:
        """Return the sample's array by modality, and its target.

        Raises:
            MediaError, ShardError: The sample is damaged.
            ValueError: The array or the target is missing, or does not fit its format.
        """
        read = self.conversion.read
        member = model_member(read)
        if member not in sample.members:
            raise ValueError(f"has {', '.join(sample.members)}, and no {member}")
        array = decode_member(sample.members[member], read)
        check_array(array, read)
        arrays = {self.media.modality: self.conversion.convert(array)}
        if self.has_target:
            arrays[TARGET] = decode_target(sample)
        return arrays

    def batches(self, shard_set: ShardSet, split: str) -> Iterator[ShardBatch]:
        """Yield every sample of a split once, in order. Samples that cannot be read have weight 0.

        Raises:
            ShardError: The set has no such split, or a sample cannot be read and must not be
                skipped.
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
