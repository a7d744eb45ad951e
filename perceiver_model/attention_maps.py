"""Attention maps of cross-attends: as arrays, as pictures, and how far the input decides them.

(Paper, section 4.1 and figure 3: maps of the latents over the pixels.)
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.attention.cross_attend import CrossAttend
from perceiver_model.attention.tokens import InputArray
from perceiver_model.families.causal_attend import CausalCrossAttend, Tokens


def cross_attention_maps(
    model: nn.Module,
    *inputs: Any,
    index: int | Sequence[int] | None = None,
    latents: Sequence[int] | None = None,
    **keywords: Any,
) -> list[torch.Tensor]:
    """The attention weights of every cross-attend that `model(*inputs, **keywords)` applies.

    In the order of application, so that weights which are applied often give a map each time; a
    decoder's, over the latents, come last. Each is `[batch, heads, queries, tokens]`, float32 on
    the CPU, sums to 1 over the tokens that may be attended, and is 0 at the others. The model runs
    as in evaluation and without gradients; its modes are restored.

    Args:
        index: the cross-attends whose maps are wanted, counted from 0 in order of application; None
            for all. Maps are large: 512 × 50,176 numbers for one of the paper's on one image.
        latents: the queries whose maps are wanted, in that order; None for all.

    Maps are computed sample by sample, by the plain formula whatever the model's attention path.

    Raises ValueError for a model without cross-attends, and for an index or latent out of range.
    """
    numbers = [index] if isinstance(index, int) else index
    maps: list[torch.Tensor] = []
    applied = 0

    def keep(
        attend: CrossAttend | CausalCrossAttend, queries: Any, inputs: Any, *rest: Any
    ) -> None:
        nonlocal applied
        if numbers is None or applied in numbers:
            mask = rest[0] if rest and isinstance(attend, CausalCrossAttend) else None
            maps.append(_attention_map(attend, queries, inputs, mask, latents))
        applied += 1

    with _evaluating(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        handles = [
            module.register_forward_pre_hook(lambda attend, arguments: keep(attend, *arguments))
            for module in model.modules()
            if isinstance(module, CrossAttend | CausalCrossAttend)
        ]
        try:
            model(*inputs, **keywords)
        finally:
            for handle in handles:
                handle.remove()
    for number in [0] if numbers is None else numbers:
        if not 0 <= number < applied:
            raise ValueError(f"index {number}: the model applied {applied} cross-attends")
    return maps


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _attention_map(
    attend: CrossAttend | CausalCrossAttend,
    queries: torch.Tensor | Tokens,
    inputs: InputArray | Tokens,
    mask: torch.Tensor | None,
    latents: Sequence[int] | None,
) -> torch.Tensor:
    """`[batch, heads, queries, tokens]`, of one sample after the other; mask: a causal attend's."""
    contents = queries if isinstance(queries, torch.Tensor) else queries.content
    for latent in latents or ():
        if not 0 <= latent < contents.shape[1]:
            raise ValueError(f"latent {latent}: a cross-attend has {contents.shape[1]} queries")
    chosen = slice(None) if latents is None else list(latents)
    maps = []
    for sample in range(inputs.content.shape[0]):
        one_queries, one_inputs = _of_sample(queries, sample), _of_sample(inputs, sample)
        if isinstance(attend, CrossAttend):
            weights = attend.attention_map(one_queries[:, chosen], one_inputs)
        else:
            # Which tokens a latent sees depends on its place among all of them.
            weights = attend.attention_map(one_queries, one_inputs, _of_sample(mask, sample))
            weights = weights[:, :, chosen]
        maps.append(weights.float().cpu())
    return torch.cat(maps)


def _of_sample(batched: Any, sample: int) -> Any:
    """A sample of tensors `[batch or 1, …]`, or of the tuples of them that cross-attends read."""
    if batched is None:
        return None
    if isinstance(batched, torch.Tensor):
        return batched[sample : sample + 1] if batched.shape[0] > 1 else batched
    if isinstance(batched, InputArray):
        content, mask = _of_sample(batched.content, sample), _of_sample(batched.mask, sample)
        return batched._replace(content=content, mask=mask)
    return type(batched)(*(_of_sample(part, sample) for part in batched))


def on_grid(maps: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """`[..., tokens]` as `[..., *grid]`, the grid such as a configuration's `token_grid`.

    Raises ValueError for a grid of another number of tokens.
    """
    if maps.shape[-1] != torch.Size(grid).numel():
        raise ValueError(f"a map of {maps.shape[-1]} tokens: not of the grid {tuple(grid)}")
    return maps.unflatten(-1, tuple(grid))


def overlay(
    image: np.ndarray | torch.Tensor,
    attention_map: np.ndarray | torch.Tensor,
    *,
    opacity: float = 0.6,
) -> np.ndarray:
    """A heat map over an image: uint8 `[height, width, 3]`.

    Args:
        image: `[height, width]` or `[height, width, channels]` with 1 or 3 channels, uint8 or
            floating in [0, 1].
        attention_map: `[rows, columns]` of any non-negative numbers, such as one latent's of
            `on_grid`, or a mean over latents. It is enlarged to the image bilinearly; 0 is black,
            its own largest number is the brightest yellow, and the colours between are those of
            matplotlib's inferno.
        opacity: of the heat map, from 0 to 1.

    Raises ValueError for arrays of another shape or dtype, and for numbers out of range.
    """
    from matplotlib import colormaps

    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity {opacity}: must be from 0 to 1")
    picture = _as_rgb(np.asarray(image))
    heat = torch.as_tensor(np.asarray(attention_map)).float()
    if heat.ndim != 2:
        raise ValueError(f"a map of shape {list(heat.shape)}: expected [rows, columns]")
    if not bool((heat.isfinite() & (heat >= 0)).all()):
        raise ValueError("a map with numbers that are negative or not finite")
    size = picture.shape[:2]
    enlarged = F.interpolate(heat[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
    largest = enlarged.max()
    share = (enlarged / largest if largest > 0 else enlarged).numpy()
    colours = colormaps["inferno"](np.clip(share, 0, 1))[..., :3] * 255
    return np.round(opacity * colours + (1 - opacity) * picture).astype(np.uint8)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    """Float64 `[height, width, 3]` in [0, 255]."""
    by_channel = image[..., None] if image.ndim == 2 else image
    if by_channel.ndim != 3 or by_channel.shape[-1] not in (1, 3):
        raise ValueError(
            f"image of shape {list(image.shape)}: expected [height, width] or "
            "[height, width, channels] with 1 or 3 channels"
        )
    if image.dtype == np.uint8:
        scaled = by_channel.astype(np.float64)
    elif np.issubdtype(image.dtype, np.floating):
        if not ((by_channel >= 0) & (by_channel <= 1)).all():
            raise ValueError("image with numbers outside of [0, 1]")
        scaled = by_channel * 255.0
    else:
        raise ValueError(f"image of dtype {image.dtype}: expected uint8 or floating")
    return np.broadcast_to(scaled, (*image.shape[:2], 3))


def map_divergence(maps: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """How far attention maps depend on the input: from 0, not at all, to 1, nothing in common.

    The mean over heads, queries and pairs of different inputs of the batch of the Jensen-Shannon
    divergence of the pair's maps P and Q, in bits:

        JS(P, Q) = ½ Σ_i P_i log₂(P_i / M_i) + ½ Σ_i Q_i log₂(Q_i / M_i),   M = (P + Q) / 2.

    Args:
        maps: `[batch, heads, queries, tokens]`, such as one of `cross_attention_maps`.
        mask: bool `[batch, tokens]`, True where a token could be attended. Each pair is then
            compared on the tokens that both could attend, on which P and Q are made to sum to 1
            again: maps that differ by their masks alone have divergence 0. None compares all
            tokens.

    Queries without weight on the compared tokens, such as those of a sample whose tokens are all
    masked, are left out of the mean. Layer normalisation divides a token's positions and content by
    one standard deviation, so even queries that look at positions alone may diverge a little.

    Raises ValueError for maps or a mask of another shape, fewer than two inputs, and where there is
    nothing to compare.
    """
    if maps.ndim != 4 or maps.shape[0] < 2:
        raise ValueError(
            f"maps of shape {list(maps.shape)}: expected [batch, heads, queries, tokens] of at "
            "least two inputs"
        )
    if mask is not None and (mask.shape != maps[:, 0, 0].shape or mask.dtype != torch.bool):
        raise ValueError(
            f"mask of shape {list(mask.shape)} and dtype {mask.dtype}: expected torch.bool of "
            f"shape {list(maps[:, 0, 0].shape)}"
        )
    total, count = 0.0, 0
    for first, second in combinations(range(maps.shape[0]), 2):
        pair = maps[[first, second]]
        if mask is not None:
            pair = pair[..., mask[first] & mask[second]]
        sums = pair.sum(dim=-1, keepdim=True)
        compared = (sums > 0).all(dim=0).squeeze(-1)
        distributions = (pair / sums)[:, compared]
        mean = distributions.mean(dim=0).clamp(min=torch.finfo(pair.dtype).tiny)
        divergences = torch.special.xlogy(distributions, distributions / mean).sum(dim=-1)
        # Rounding may leave the least negative number.
        total += divergences.mean(dim=0).clamp(min=0).sum(dtype=torch.float64).item()
        count += int(compared.sum())
    if count == 0:
        raise ValueError("maps: no two inputs have attended the same tokens")
    return min(1.0, total / count / math.log(2))
