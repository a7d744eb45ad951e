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
from pipeline.media.format import Media, by_modality
from pipeline.media.modality import Conversion
from pipeline.media.registered import modality_of
from shards import RawSample, ShardReader, ShardSet
from shards.lanes import Lanes
from shards.loader import ShardBatch, ShardLoader

BATCH_SIZE = 64


def other_input(stored: Media, media: Media) -> str | None:
    """Return how a model's input differs from what a set holds.

    Only what enters the model counts: columns, sizes, sample rates. Fitted statistics, limits, and
    the encoding of shard members do not count.

    Args:
        stored: The formats of the set's samples.
        media: The formats that the model takes.

    Returns:
        The differences in words; None if the model can read the set.
    """
    ours, theirs = by_modality(stored), by_modality(media)
    if set(ours) != set(theirs):
        return f"it takes {', '.join(theirs)}, and the set holds {', '.join(ours)}"
    found = (_other_format(ours[name], fmt) for name, fmt in theirs.items())
    return next((difference for difference in found if difference), None)


def _other_format(stored: MediaFormat, media: MediaFormat) -> str | None:
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
        stored: The formats of the set's samples; for tables, with the set's vocabulary.
        media: The formats that the model takes. `other_input` must return None for them.
        verify_samples: Whether to compare samples with their sha256.
        skip_corrupt: Whether to skip samples that differ or cannot be read. Otherwise they raise an
            error.
        has_target: Whether targets are arrays, which are then read too.
    """

    stored: Media
    media: Media
    verify_samples: bool = True
    skip_corrupt: bool = True
    has_target: bool = False

    @cached_property
    def formats(self) -> dict[str, MediaFormat]:
        """The formats that the model takes, by modality."""
        return by_modality(self.media)

    @cached_property
    def conversions(self) -> dict[str, Conversion]:
        """The conversions of the set's arrays to those that the model takes, by modality."""
        stored = by_modality(self.stored)
        return {
            name: modality_of(fmt).conversion(stored[name], fmt)
            for name, fmt in self.formats.items()
        }

    @property
    def padded_lengths(self) -> dict[str, int]:
        """The lengths to which modalities of varying length are padded in every batch."""
        lengths = {name: padded_length(fmt) for name, fmt in self.formats.items()}
        return {name: length for name, length in lengths.items() if length is not None}

    @property
    def is_of_rows(self) -> bool:
        """Whether the samples are rows of a table alone."""
        return [modality_of(fmt).source for fmt in self.formats.values()] == ["row"]

    def __call__(self, sample: RawSample) -> dict[str, np.ndarray]:
        """Return the sample's arrays by modality, and its target. It may lack modalities.

        Raises:
            MediaError, ShardError: The sample is damaged.
            ValueError: The sample has no array, lacks its target, or one does not fit its format.
        """
        arrays = {}
        for name, conversion in self.conversions.items():
            member = model_member(conversion.read)
            if member in sample.members:
                array = decode_member(sample.members[member], conversion.read)
                check_array(array, conversion.read)
                arrays[name] = conversion.convert(array)
        if not arrays:
            wanted = " or ".join(model_member(each.read) for each in self.conversions.values())
            raise ValueError(f"has {', '.join(sample.members)}, and no {wanted}")
        if self.has_target:
            arrays[TARGET] = decode_target(sample)
        return arrays

    def batches(self, shard_set: ShardSet, split: str) -> Iterator[ShardBatch]:
        """Yield every sample of a split once, in order. Samples that cannot be read have weight 0.

        Raises:
            ShardError: The set has no such split, or a sample cannot be read and must not be
                skipped.
        """
        return iter(self.loader(shard_set, split))

    def loader(
        self,
        shard_set: ShardSet,
        split: str,
        *,
        is_stream: bool = False,
        batch_size: int = BATCH_SIZE,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> ShardLoader:
        """Return a loader of every sample of a split once.

        Args:
            shard_set: The set.
            split: A split of the set.
            is_stream: Whether to read recordings as streams; otherwise samples come in order.
            batch_size: The number of samples that this rank gets at a time.
            rank: The rank of this process. Each rank gets its own samples.
            world_size: The number of ranks. All get as many batches, which padding fills.
            num_workers: The number of processes that make batches; with 0, this process does.

        Raises:
            ShardError: The set has no such split, or the split has no streams.
        """
        return ShardLoader(
            ShardReader(shard_set, split, verify_samples=self.verify_samples),
            decode=self,
            pad_to=self.padded_lengths,
            skip_bad=True,
            skip_corrupt=self.skip_corrupt,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            shuffle=False,
            lanes=Lanes(batch_size * world_size) if is_stream else None,
        )
