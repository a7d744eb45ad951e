"""The table of modalities, one line each. docs/extending.md adds one step by step."""

from functools import cache
from importlib import import_module
from typing import Any

from pipeline.media.format import MediaFormat
from pipeline.media.modality import Modality

MODALITIES: dict[str, str] = {
    "image": "pipeline.media.image.modality:ImageModality",
    "audio": "pipeline.media.audio.modality:AudioModality",
    "video": "pipeline.media.video.modality:VideoModality",
    "points": "pipeline.media.points.modality:PointsModality",
    "text": "pipeline.media.text.modality:TextModality",
    "table": "pipeline.media.table.modality:TableModality",
}
"""The class of each modality, by name.

The order matters. A file belongs to the first modality that lists its extension, and the members
of a sample are in this order. So add a new modality at the end.
"""


def load(path: str) -> Any:
    """Import and return the object that `module:name` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@cache
def modality(name: str) -> Modality[Any]:
    """Return the modality with this name. It is imported at the first use.

    Raises:
        KeyError: No modality has this name.
        ValueError: The modality is registered under another name than its format has.
    """
    found: Modality[Any] = load(MODALITIES[name])()
    if found.name != name:
        raise ValueError(
            f"pipeline.media.registered: {MODALITIES[name]} is registered as {name!r}, but its "
            f"format says {found.name!r}; make them equal"
        )
    return found


def modality_of(fmt: MediaFormat) -> Modality[Any]:
    """Return the modality of a format."""
    return modality(fmt.modality)
