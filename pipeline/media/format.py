"""The base of what a file of any modality becomes."""

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class MediaFormat:
    """What every file of one modality becomes; the section `data.<modality>` of a configuration.

    A subclass is a frozen dataclass of plain values (numbers, text, tuples and dataclasses of
    them), and refuses bad values in `__post_init__` with a ValueError.

    Attributes:
        modality: the modality's name, under which `pipeline.media.registered` has it.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}
    modality: ClassVar[str]

    @property
    def member(self) -> str:
        """Name of the shard member that holds a decoded array."""
        return f"{self.modality}.npy"
