"""The base of the formats of all modalities."""

from collections.abc import Mapping
from typing import ClassVar

from perceiver_model.config_checks import config_dataclass


@config_dataclass
class MediaFormat:
    """The format of the arrays of one modality: `data.<modality>` in a configuration.

    A subclass is a `config_dataclass` of plain values: numbers, text, tuples, and such dataclasses.
    Its `__post_init__` rejects values that do not fit each other with a ValueError.

    Attributes:
        modality: The name of the modality in `pipeline.media.registered`.
    """

    modality: ClassVar[str]

    @property
    def member(self) -> str:
        """The name of the shard member that holds a decoded array."""
        return f"{self.modality}.npy"


Media = MediaFormat | Mapping[str, MediaFormat]
"""The format of a model's only modality, or those of several by their names."""


def by_modality(media: Media) -> dict[str, MediaFormat]:
    """Return the formats by modality."""
    return {media.modality: media} if isinstance(media, MediaFormat) else dict(media)
