"""Views of where a model looks in one sample: a heat map, a curve over time, or a list of parts."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

View = dict[str, Any]
"""`kind` is `picture` (with `png`), `curve`, `parts` or `none`, and the other fields follow it."""

MAX_PARTS = 10
MAX_POINTS_OF_CURVE = 200


def picture(image: torch.Tensor, weights: np.ndarray) -> View:
    """Return a heat map over an image.

    Args:
        image: The image, uint8 `[height, width, channels]`.
        weights: The weights of its tokens, `[rows, columns]`.
    """
    return {"kind": "picture", "png": heat_map(image, weights)}


def curve(weights: np.ndarray, axis: str, end: float) -> View:
    """Return the weights along an axis, summed over neighbours if there are many.

    Args:
        weights: The weights of the tokens; the first dimension is the axis.
        axis: The unit of the axis, in the plural.
        end: The end of the axis in this unit.
    """
    along = weights.reshape(len(weights), -1).sum(axis=1)
    pieces = np.array_split(along, min(len(along), MAX_POINTS_OF_CURVE))
    return {"kind": "curve", "axis": axis, "to": end, "weights": [float(p.sum()) for p in pieces]}


def parts(weighted: Iterable[tuple[str, float]]) -> View:
    """Return the parts with the largest weights.

    Args:
        weighted: The names of the parts, and their weights.
    """
    chosen = sorted(weighted, key=lambda pair: pair[1], reverse=True)[:MAX_PARTS]
    shown = [(part if len(part) <= 60 else f"{part[:59]}…", weight) for part, weight in chosen]
    return {"kind": "parts", "parts": [{"part": part, "weight": w} for part, w in shown]}


def no_view(reason: str) -> View:
    """Return that there is no view, and why."""
    return {"kind": "none", "reason": reason}


def as_picture(image: torch.Tensor) -> np.ndarray | None:
    """Return an image, uint8 `[height, width, channels]`; None if it has neither 1 nor 3."""
    return image.cpu().numpy() if image.shape[-1] in (1, 3) else None


def grey(values: np.ndarray) -> np.ndarray:
    """Return numbers `[rows, columns]` as a grey picture, uint8 `[rows, columns, 1]`."""
    finite = np.nan_to_num(np.asarray(values, np.float64))
    low, high = finite.min(), finite.max()
    scaled = (finite - low) / (high - low) if high > low else np.zeros_like(finite)
    return np.round(scaled * 255).astype(np.uint8)[..., None]


def wave(samples: torch.Tensor, width: int = 320, height: int = 96) -> np.ndarray:
    """Return the range of a sound, `[samples]`, in each piece of its time, uint8 `[…, …, 1]`."""
    values = samples.double().flatten().numpy()
    peak = max(float(np.abs(values).max()), 1e-12)
    pixels = np.zeros((height, width, 1), np.uint8)
    for column, piece in enumerate(np.array_split(values, min(width, len(values)))):
        top, bottom = ((1 - each / peak) / 2 * (height - 1) for each in (piece.max(), piece.min()))
        pixels[int(top) : int(bottom) + 1, column] = 255
    return pixels


def scatter(points: torch.Tensor, size: int = 160) -> np.ndarray:
    """Return points `[points, 2 or 3]` as dots, uint8 `[size, size, 1]`."""
    values = np.nan_to_num(points.double().numpy())
    spread = max(float(np.ptp(values, axis=0).max()), 1e-12)
    scaled = (values - values.min(axis=0)) / spread
    brightness = 255 if values.shape[1] < 3 else 95 + np.round(160 * scaled[:, 2])
    columns, rows = (np.round(scaled[:, axis] * (size - 1)).astype(int) for axis in (0, 1))
    pixels = np.zeros((size, size, 1), np.uint8)
    np.maximum.at(pixels, (size - 1 - rows, columns, 0), np.uint8(brightness))
    return pixels


def heat_map(image: torch.Tensor, weights: np.ndarray) -> bytes:
    """Return weights `[rows, columns]` over an image, uint8 `[height, width, channels]`, as PNG."""
    from PIL import Image

    from perceiver_model.attention_maps import overlay

    pixels = image.cpu().numpy()
    if pixels.shape[-1] not in (1, 3):
        pixels = np.zeros((*pixels.shape[:2], 1), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(overlay(pixels, weights)).save(buffer, format="PNG")
    return buffer.getvalue()
