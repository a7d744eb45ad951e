"""Captions for studies: the word of each digit in one of four languages, with letters replaced."""

import shutil
import string
from pathlib import Path

import numpy as np

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.runs.storage import remove_folder
from pipeline.studies.image_data import WITHOUT_TABLES, image_folder
from pipeline.studies.sets import build_set, given_source
from shards import ShardSet

CAPTIONED, CAPTIONS = "captioned", "captions"
"""The sets: digits with captions, and the captions alone."""
REPLACED = 0.6
"""The probability that a letter is replaced by another."""
MAX_BYTES = 8
_SEED = 20151023
_WORDS = (
    "zero one two three four five six seven eight nine",
    "null eins zwei drei vier fuenf sechs sieben acht neun",
    "zero un deux trois quatre cinq six sept huit neuf",
    "cero uno dos tres cuatro cinco seis siete ocho nueve",
)
_DIGITS = [f"{number}" for number in range(10)]


def caption(digit: int, random: np.random.Generator) -> str:
    """Return a caption of a digit: a word whose letters may have been replaced."""
    word = str(random.choice(_WORDS)).split()[digit]
    letters = list(string.ascii_lowercase)
    return "".join(
        str(random.choice(letters)) if random.random() < REPLACED else letter for letter in word
    )


def caption_set(
    config: Config, name: str, folder: Path, given: Path | None, console: Console
) -> ShardSet:
    """Make the set of digits with captions, or of captions alone, or find it made.

    Args:
        config: The configuration with the sections of the media.
        name: The name of the set.
        folder: The folder of the study's data.
        given: The folder that the person gives, whose `captioned` folder has images and texts of
            the same names; None captions the demo's handwritten digits.
        console: The console, which shows the progress.

    Returns:
        The set, without position tables.

    Raises:
        UserError: The folder has no images with texts.
    """
    if given is not None:
        source = given_source(given, CAPTIONED)
    else:
        source = folder / CAPTIONED
        if not (source / ".whole").exists():
            remove_folder(source)
            _write_captioned(image_folder(folder, None), source)
            (source / ".whole").touch()
    if name == CAPTIONS:
        source = _texts_of(source, folder / "caption-texts")
    elif config.model.modalities:
        image = config.tree()["model"]["modalities"]["image"]
        image = {**image, "positions": WITHOUT_TABLES["model.positions"]}
        config = with_values(config, {"model.modalities.image": image})
    return build_set(config, name, (source / "train", source / "test"), folder, console)


def _write_captioned(images: Path, to: Path) -> None:
    random = np.random.default_rng(_SEED)
    for path in sorted(images.glob("*/*/*.png")):
        copy = to / path.relative_to(images)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
        digit = _DIGITS.index(path.parent.name)
        copy.with_suffix(".txt").write_text(caption(digit, random))


def _texts_of(source: Path, to: Path) -> Path:
    """Copy the texts of a folder of images with texts, and return where they are."""
    if not (to / ".whole").exists():
        remove_folder(to)
        for path in source.rglob("*.txt"):
            copy = to / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        (to / ".whole").touch()
    return to
