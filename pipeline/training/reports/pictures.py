"""The pictures of an evaluation: confusions, and single samples with where the model looks.

Names and texts come from a set, which is untrusted: they are cut to a length, and control
characters are replaced.
"""

import functools
import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.plain import printable

MAX_CELLS = 40
"""The largest number of classes whose counts are written into the matrix."""
_NAME, _LINE = 20, 110
"""The lengths of a name in a matrix, and of a line above a sample, in characters."""
_HEIGHT = 160
_BLUE, _INK, _PAPER = np.array([30, 110, 190]), (34, 34, 34), (255, 255, 255)


def confusion_picture(matrix: Mapping[str, Any] | None) -> bytes | None:
    """Return a confusion matrix as PNG, with a row for each true class.

    Args:
        matrix: The `confusion_matrix` of `Details.result`. Labels have a row each, with their true
            negatives, false positives, false negatives and true positives.

    Returns:
        The PNG; None if there is no matrix.
    """
    if matrix is None:
        return None
    if "counts" in matrix:
        counts, columns = np.asarray(matrix["counts"]), matrix["classes"]
    else:
        counts = np.asarray(matrix["counts_by_label"]).reshape(-1, 4)
        columns = ["true −", "false +", "false −", "true +"]
    if not counts.size:
        return None
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    if max(counts.shape) > MAX_CELLS:
        return _png(_shaded(shares, max(1, 800 // max(counts.shape))))
    return _png(_cells(counts, shares, matrix["classes"], columns))


def _shaded(shares: np.ndarray, size: int) -> Image.Image:
    """Return a square of `size` pixels for each share: the larger, the darker."""
    colours = 255 - shares[..., None] * (255 - _BLUE)
    return Image.fromarray(colours.round().astype(np.uint8).repeat(size, 0).repeat(size, 1))


def _cells(
    counts: np.ndarray, shares: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> Image.Image:
    font = _font(12)
    rows, columns = [_cut(name, _NAME) for name in rows], [_cut(name, _NAME) for name in columns]
    texts = [*columns, *(str(count) for count in counts.flat)]
    width = 12 + int(max(font.getlength(text) for text in texts))
    left = 12 + int(max(font.getlength(text) for text in rows))
    top, height = 44, 24
    heading = "rows: true; columns: answer"
    right = max(left + width * len(columns), 8 + int(font.getlength(heading)))
    image = Image.new("RGB", (right, top + height * len(rows)), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((4, 4), heading, font=font, fill=_INK)
    for column, name in enumerate(columns):
        draw.text(
            (left + (column + 0.5) * width, top - 10), name, font=font, fill=_INK, anchor="mm"
        )
    for row, name in enumerate(rows):
        y = top + row * height
        draw.text((left - 6, y + height / 2), name, font=font, fill=_INK, anchor="rm")
        for column, (count, share) in enumerate(zip(counts[row], shares[row], strict=True)):
            x = left + column * width
            colour = tuple(int(each) for each in 255 - share * (255 - _BLUE))
            draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
            ink = _PAPER if share > 0.6 else _INK
            middle = (x + width / 2, y + height / 2)
            draw.text(middle, str(count), font=font, fill=ink, anchor="mm")
    return image


def sample_picture(sample: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> bytes | None:
    """Return one sample as PNG: its input, where the model looks, its target and its answer.

    Args:
        sample: The sample, from `described`.
        inputs: The pictures of its input by modality, uint8 `[height, width, 1 or 3]`.

    Returns:
        The PNG; None if nothing of the sample is a picture.
    """
    panels = [(name, Image.fromarray(pixels.squeeze())) for name, pixels in inputs.items()]
    for name, view in sample["attention"].items():
        if "png" in view:
            panels.append((f"{name}: attention", Image.open(io.BytesIO(view["png"]))))
    for part in ("target", "answer"):
        files = sample[part] if isinstance(sample[part], dict) else {"": sample[part]}
        for name, value in files.items():
            if isinstance(value, bytes) and value.startswith(b"\x89PNG"):
                panels.append((f"{part} {name}".strip(), Image.open(io.BytesIO(value))))
    if not panels:
        return None
    font, scaled = _font(12), [(_cut(name, _NAME), _scaled(image)) for name, image in panels]
    lines = [_cut(line, _LINE) for line in _lines(sample)]
    widths = [max(image.width, int(font.getlength(name))) + 8 for name, image in scaled]
    top = 8 + 17 * len(lines)
    width = max(sum(widths), 16 + int(max(font.getlength(line) for line in lines)))
    picture = Image.new("RGB", (width, top + 20 + _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((4, 4 + 17 * number), line, font=font, fill=_INK)
    x = 4
    for (name, image), step in zip(scaled, widths, strict=True):
        draw.text((x, top), name, font=font, fill=_INK)
        picture.paste(image, (x, top + 18))
        x += step
    return _png(picture)


def _lines(sample: Mapping[str, Any]) -> list[str]:
    return [
        f"{sample['source']}",
        f"target {as_text(sample['target'])}",
        f"answer {as_text(sample['answer'])}; loss {sample['loss']:.4g}",
    ]


def as_text(value: Any) -> str:
    """Return a target or an answer in one line, without its files."""
    if isinstance(value, bytes):
        return "(file)"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        kept = {name: inner for name, inner in value.items() if not isinstance(inner, bytes)}
        return ", ".join(f"{name} {as_text(inner)}" for name, inner in kept.items()) or "(file)"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_text, value))}]"
    return "none" if value is None else str(value)


def _scaled(image: Image.Image) -> Image.Image:
    """Return the image at the height of a panel, with whole pixels where it grows."""
    width = max(1, min(4 * _HEIGHT, round(image.width * _HEIGHT / image.height)))
    grows = image.height < _HEIGHT
    how = Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((width, _HEIGHT), how)


def _cut(text: str, length: int) -> str:
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= length else f"{line[: length - 1]}…"


@functools.cache
def _font(size: int) -> Any:
    spec = find_spec("matplotlib")  # to import it takes half a second
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0])
    return ImageFont.truetype(str(folder / "mpl-data/fonts/ttf/DejaVuSans.ttf"), size)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
