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
