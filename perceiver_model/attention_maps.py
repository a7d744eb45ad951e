"""The attention maps of cross-attends, their pictures, and how much they depend on the input.

See the paper, section 4.1 and figure 3: maps of the latents over the pixels.
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
    """Return the attention weights of every cross-attend that `model(*inputs, **keywords)` applies.

    The maps are in the order of application. Shared weights that are applied several times give a
    map each time. The maps of a decoder, which are over the latents, come last. The model runs in
    evaluation mode and without gradients; its modes are restored. Each map is computed sample by
    sample, with the plain formula, whatever the model's attention path.

    Args:
        model: The model.
        *inputs: The model's positional arguments.
        index: The cross-attends whose maps are returned, counted from 0 in the order of
            application. None means all. Maps are large: one of the paper's has 512 × 50,176 numbers
            per image.
        latents: The queries whose maps are returned, in this order. None means all.
        **keywords: The model's keyword arguments.

    Returns:
        One map per cross-attend, float32 `[batch, heads, queries, tokens]` on the CPU. It sums to 1
        over the tokens that may be attended, and is 0 at the others.

    Raises:
        ValueError: If the model has no cross-attends, or an index or a latent is out of range.
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
    """Switch to evaluation mode, and restore the mode of each module afterwards."""
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
    """Return the map `[batch, heads, queries, tokens]`, computed sample by sample.

    `mask` is the mask of a causal cross-attend.
    """
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
            # The tokens that a latent sees depend on its index among all latents.
            weights = attend.attention_map(one_queries, one_inputs, _of_sample(mask, sample))
            weights = weights[:, :, chosen]
        maps.append(weights.float().cpu())
    return torch.cat(maps)


def _of_sample(batched: Any, sample: int) -> Any:
    """Select one sample of tensors `[batch or 1, …]`, or of the tuples that cross-attends read."""
    if batched is None:
        return None
    if isinstance(batched, torch.Tensor):
        return batched[sample : sample + 1] if batched.shape[0] > 1 else batched
    if isinstance(batched, InputArray):
        content, mask = _of_sample(batched.content, sample), _of_sample(batched.mask, sample)
        return batched._replace(content=content, mask=mask)
    return type(batched)(*(_of_sample(part, sample) for part in batched))


def on_grid(maps: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Reshape maps `[..., tokens]` to `[..., *grid]`.

    Args:
        maps: The maps.
        grid: The shape of the token grid, such as a configuration's `token_grid`.

    Raises:
        ValueError: If the grid has another number of tokens.
    """
    if maps.shape[-1] != torch.Size(grid).numel():
        raise ValueError(f"a map of {maps.shape[-1]} tokens: does not fit the grid {tuple(grid)}")
    return maps.unflatten(-1, tuple(grid))


def overlay(
    image: np.ndarray | torch.Tensor,
    attention_map: np.ndarray | torch.Tensor,
    *,
    opacity: float = 0.6,
) -> np.ndarray:
    """Draw an attention map as a heat map over an image.

    The map is enlarged to the image bilinearly. Zero is black, the largest number of the map is the
    brightest yellow, and the colours between them are those of matplotlib's inferno.

    Args:
        image: The image `[height, width]`, or `[height, width, channels]` with 1 or 3 channels,
            uint8 or floating point in [0, 1].
        attention_map: Non-negative numbers `[rows, columns]`, such as one latent's map from
            `on_grid`, or a mean over latents.
        opacity: The opacity of the heat map, from 0 to 1.

    Returns:
        The picture, uint8 `[height, width, 3]`.

    Raises:
        ValueError: If a shape or a dtype is wrong, or a number is out of range.
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
    """Return the image as float64 `[height, width, 3]` in [0, 255]."""
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
    """Return how much attention maps depend on the input, from 0 (not at all) to 1.

    At 1, the maps of two inputs have nothing in common. The result is the Jensen-Shannon divergence
    between the maps P and Q of two inputs of the batch, in bits. It is averaged over heads, queries
    and pairs of inputs:

        JS(P, Q) = ½ Σ_i P_i log₂(P_i / M_i) + ½ Σ_i Q_i log₂(Q_i / M_i),   M = (P + Q) / 2.

    Queries without weight on the compared tokens are left out of the mean, such as those of a
    sample whose tokens are all masked. Layer normalisation divides the positions and the content of
    a token by one standard deviation. Even queries that look only at positions may therefore
    diverge a little.

    Args:
        maps: The maps `[batch, heads, queries, tokens]`, such as one of `cross_attention_maps`.
        mask: The tokens that could be attended, bool `[batch, tokens]`. Each pair is compared on
            the tokens that both inputs could attend, and P and Q are normalised to sum to 1 there.
            Maps that differ only by their masks therefore have divergence 0. None compares all
            tokens.

    Raises:
        ValueError: If a shape is wrong, there are fewer than two inputs, or there is nothing to
            compare.
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
        # Rounding may give a tiny negative number.
        total += divergences.mean(dim=0).clamp(min=0).sum(dtype=torch.float64).item()
        count += int(compared.sum())
    if count == 0:
        raise ValueError("maps: no two inputs have attended the same tokens")
    return min(1.0, total / count / math.log(2))
