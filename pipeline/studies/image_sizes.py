"""Sets of the same images at several sizes, for arms that read more or fewer tokens."""

from typing import Any

from pipeline.studies.image_data import PLAIN

_AT = f"{PLAIN}-at-"


def images_of_side(side: int) -> str:
    """Return the name of the set of the images with `side` × `side` pixels."""
    return f"{_AT}{side}"


def side_of(name: str) -> int | None:
    """Return the side that the name of a set gives; None if it gives none."""
    return int(name.removeprefix(_AT)) if name.startswith(_AT) else None


def size_sections(name: str) -> dict[str, Any]:
    """Return the dotted fields of the configuration that a set of this name needs."""
    side = side_of(name)
    return {} if side is None else {"data.image.height": side, "data.image.width": side}
