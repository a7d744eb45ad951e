"""AdamW that steps long tensors of the CPU block by block, with the same bits as torch's AdamW.

Torch makes about ten passes over each tensor. The flat tensors of ZeRO fit into no cache, so every
pass would read them from memory. A block of them stays in the cache during all passes.
"""

from typing import Any

import torch

BLOCK = 2**17
"""The elements of a block. The gradient, the weights and both moments take 2 MiB in float32."""


class AdamW(torch.optim.AdamW):
    """Torch's AdamW, in blocks.

    An element is computed from its own gradient, weight and moments alone, so blocks change no bit.
    Only contiguous tensors of the CPU are divided.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[torch.Tensor]) -> bool:
        """Collect what `step` updates, as torch does, and divide the long tensors into blocks."""
        has_complex = bool(super()._init_group(group, *lists))
        params, gradients, means, squares, maxima, steps = lists
        if maxima or group["fused"] or group["foreach"] or has_complex:
            return has_complex
        stepped = (params, gradients, means, squares, steps)
        blocks = [block for tensors in zip(*stepped, strict=True) for block in _in_blocks(*tensors)]
        for number, tensors in enumerate(stepped):
            tensors[:] = [block[number] for block in blocks]
        return has_complex


def _in_blocks(parameter: torch.Tensor, *others: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Return views of a parameter, its gradient, and its moments, and a step count for each block.

    The first block has the step count itself, which the update raises by one.
    """
    *state, step = others
    tensors = (parameter, *state)
    divisible = all(each.device.type == "cpu" and each.is_contiguous() for each in tensors)
    if parameter.numel() <= BLOCK or not divisible:
        return [(parameter, *others)]
    parts = zip(*(each.detach().view(-1).split(BLOCK) for each in tensors), strict=True)
    return [(*part, step.clone() if number else step) for number, part in enumerate(parts)]
