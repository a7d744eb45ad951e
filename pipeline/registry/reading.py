"""How a model reads the samples of a shard set: its own set, or one that was made anew.

Shards hold numbers as they are and categories as indices into the set's own vocabulary, so rows can
be encoded anew for a model that was fitted to other training rows.
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
    """Makes the arrays that a model takes of a set's samples; a decoder for `ShardLoader`.

    Attributes:
        stored: format of the set's samples; of tables, with the set's vocabulary.
        media: format that the model takes; `other_input` has nothing against it.
        verify_samples: whether samples are compared with their sha256.
        skip_corrupt: whether those that differ, or cannot be read, are skipped, or end the work.
        has_target: whether a sample's target is an array, which is read, too.
    """

    stored: MediaFormat
    media: MediaFormat
    verify_samples: bool = True
    skip_corrupt: bool = True
    has_target: bool = False

    @cached_property
    def conversion(self) -> Conversion:
        """How the set's arrays become those that the model takes."""
        return modality_of(self.media).conversion(self.stored, self.media)

    def __call__(self, sample: RawSample) -> dict[str, np.ndarray]:
        """The sample's array by modality, and its target.

        Raises:
            MediaError, ShardError: it is damaged.
            ValueError: it is missing, or is not what the format says.
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
