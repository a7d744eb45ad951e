"""The modalities: a line for each. docs/extending.md adds one step by step."""

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
"""Each modality's class, by its name.

The order counts: where several modalities know an extension, a file belongs to the first of them;
and the members of a sample are in this order. A new modality comes last.
"""


def load(path: str) -> Any:
    """The object that `module:name` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@cache
def modality(name: str) -> Modality[Any]:
    """The modality of a name. It is imported on first use.

    Raises:
        KeyError: no modality has this name.
    """
    found: Modality[Any] = load(MODALITIES[name])()
    if found.name != name:
        raise ValueError(
            f"pipeline.media.registered: {MODALITIES[name]} is registered as {name!r}, but its "
            f"format says {found.name!r}; make them equal"
        )
    return found


def modality_of(fmt: MediaFormat) -> Modality[Any]:
    """The modality of a format."""
    return modality(fmt.modality)
