"""The base of the formats of all modalities."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class MediaFormat:
    """The format of the arrays of one modality: `data.<modality>` in a configuration.

    A subclass is a frozen dataclass of plain values: numbers, text, tuples, and dataclasses of
    these. Its `__post_init__` rejects bad values with a ValueError.

    Attributes:
        modality: The name of the modality in `pipeline.media.registered`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
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
