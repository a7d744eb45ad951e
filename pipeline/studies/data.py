"""The shard sets of a study, by the names that its arms give."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.studies.caption_data import CAPTIONED, CAPTIONS, caption_set
from pipeline.studies.image_data import IMAGES, image_format, image_set
from pipeline.studies.image_sizes import side_of, size_sections
from pipeline.studies.point_data import POINTS, point_set
from pipeline.studies.sound_data import SOUNDS, sound_set
from pipeline.studies.table_data import table_named, table_of, table_sections, table_set
from shards import ShardSet


def data_sections(name: str) -> dict[str, Any]:
    """Return the dotted fields of the configuration that the data of this name need."""
    return table_sections(name) if table_of(name) else size_sections(name)


def fold_of(name: str, seed: int) -> int:
    """Return which split of the data a seed takes. Only tables have several."""
    return seed if table_of(name) else 0


def make_set(
    config: Config, name: str, fold: int, folder: Path, given: Path | None, console: Console
) -> ShardSet:
    """Make one of the sets, or find it made.

    Args:
        config: The configuration with the format of the data. Positions do not matter.
        name: The name of the set.
        fold: The number of the split, from `fold_of`.
        folder: The folder of the study's data.
        given: The folder that the person gives; None takes data that packages carry.
        console: The console, which shows the progress.

    Returns:
        The set. Sets of images have no position tables.

    Raises:
        UserError: The folder lacks something, or a package is not installed.
    """
    if table_of(name):
        return table_set(config, name, fold, folder, console)
    if name == POINTS:
        return point_set(config, folder, given, console)
    if name == SOUNDS:
        return sound_set(config, folder, given, console)
    if name in (CAPTIONED, CAPTIONS):
        return caption_set(config, name, folder, given, console)
    assert _is_images(name)  # a study names no other data
    return image_set(config, name, folder, given, console)


def described(
    bases: Mapping[str, Config], sets: Mapping[tuple[str, int], ShardSet], given: Path | None
) -> str:
    """Return what the data of a study are, for its page.

    Args:
        bases: The configurations by the name of the set.
        sets: The sets by name and fold.
        given: The folder that the person gives.
    """
    parts = [_tables(dict.fromkeys(filter(None, (table_of(name) for name, _ in sets))))]
    images = {name: found for (name, _), found in sets.items() if _is_images(name)}
    for name, found in list(images.items())[:1]:
        image = image_format(bases[name])
        source = "5,000 of MNIST's digits" if given is None else f"the images of {given}"
        sides = [f"{n} × {n}" for n in filter(None, map(side_of, images))]
        pixels = f"{', '.join(sides) or f'{image.height} × {image.width}'} pixels"
        parts.append(f"{source} ({_counts(found)}) of {pixels}")
    clouds = [found for (name, _), found in sets.items() if name == POINTS]
    if clouds:
        source = "the ink of these digits" if given is None else f"the meshes of {given}"
        parts.append(f"{source} ({_counts(clouds[0])}) as points")
    captions = [found for (name, _), found in sets.items() if name in (CAPTIONED, CAPTIONS)]
    if captions:
        source = "captions of these digits" if given is None else f"the texts of {given}"
        parts.append(f"{source} ({_counts(captions[0])})")
    sounds = [found for (name, _), found in sets.items() if name == SOUNDS]
    if sounds:
        source = "notes of ten instruments" if given is None else f"the sounds of {given}"
        parts.append(f"{source} ({_counts(sounds[0])})")
    return ", ".join(filter(None, parts))


def _counts(shard_set: ShardSet) -> str:
    counts = shard_set.manifest.counts
    return f"{counts['train']:,} for training, {counts['test']:,} for the test"


def _tables(names: Iterable[str]) -> str:
    found = [f"{name} ({len(table_named(name).rows):,} rows)" for name in names]
    return f"the tables {', '.join(found)}" if found else ""


def _is_images(name: str) -> bool:
    return name in IMAGES or side_of(name) is not None
