"""Which parts of which parameters the flat tensors of ZeRO hold on this rank.

At stages 1 and 2, DeepSpeed joins the parameters of a group into one flat tensor, and each rank
steps one part of it. At stage 3 it cuts every parameter into as many parts as there are ranks, and
joins the parts of each rank. Padding belongs to no parameter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist

from cluster.errors import ClusterError

# Squared norms are summed in float64; only the order of the summands differs.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class TensorSlice:
    """A part of a parameter in a flat tensor.

    Attributes:
        tensor: The index of the parameter among those of the optimizer.
        start: The offset of the part in the flat tensor.
        length: The number of its elements.
    """

    tensor: int
    start: int
    length: int

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """Return the part as a view of the flat tensor, or of one with the same layout."""
        whole = self.length == flat.numel()
        return flat if whole else flat.narrow(0, self.start, self.length)


def squared_norms(
    values: Sequence[torch.Tensor],
    slices: Sequence[TensorSlice],
    num_tensors: int,
    device: torch.device,
) -> torch.Tensor:
    """Return the squared norm of what this rank has of each tensor.

    Args:
        values: The values of the slices.
        slices: The slices; a tensor has at most one on each rank.
        num_tensors: The number of tensors.
        device: The device of the result.

    Returns:
        float64 `[num_tensors]`; 0 for a tensor without a slice.
    """
    squares = torch.zeros(num_tensors, dtype=torch.float64, device=device)
    if values:
        norms = torch.stack(torch._foreach_norm(list(values), 2, dtype=torch.float64))
        squares[[piece.tensor for piece in slices]] = norms.square()
    return squares


def whole_squared_norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the squared norms of whole tensors, float64 `[tensors]`, as rank 0 has them.

    Tensors that stage 3 has divided already are summed over the ranks, without the padding.
    """
    is_own = dist.get_rank() == 0
    slices, values = [], []
    for index, tensor in enumerate(tensors):
        own = tensor.detach()
        if hasattr(tensor, "ds_tensor"):
            own = _without_padding(tensor, tensor.ds_tensor.detach())
        elif not is_own:
            continue
        if own.numel():
            slices.append(TensorSlice(index, 0, own.numel()))
            values.append(own)
    squares = squared_norms(values, slices, len(tensors), tensors[0].device)
    dist.all_reduce(squares)
    return squares


def slices_of(
    engine: Any, tensors: Sequence[torch.nn.Parameter], squares: torch.Tensor
) -> dict[torch.Tensor, list[TensorSlice]]:
    """Return the slices of the parameters in this rank's flat tensors, from DeepSpeed's records.

    They are checked: the slices of all ranks together must have the elements and the norms of the
    whole parameters. All ranks must call this (a collective).

    Args:
        engine: A new engine at ZeRO stage 1, 2 or 3.
        tensors: The parameters of the optimizer.
        squares: Their squared norms before the engine was made, from `whole_squared_norms`.

    Raises:
        ClusterError: DeepSpeed has another layout.
    """
    fault = ""
    slices: dict[torch.Tensor, list[TensorSlice]] = {}
    try:
        slices = _slices(engine, tensors)
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        fault = f"{type(error).__name__}: {error}"
    lengths = torch.zeros_like(squares)
    found = torch.zeros_like(squares)
    for flat, pieces in slices.items():
        for piece in pieces:
            lengths[piece.tensor] += piece.length
        values = [piece.of(flat.detach()) for piece in pieces]
        found += squared_norms(values, pieces, len(tensors), squares.device)
    totals = torch.cat([lengths, found, squares.new_tensor([float(bool(fault))])])
    dist.all_reduce(totals)
    expected = squares.new_tensor([float(tensor_length(tensor)) for tensor in tensors])
    lengths, found = totals[:-1].chunk(2)
    if not totals[-1] and not torch.equal(lengths, expected):
        fault = "the slices of a parameter do not cover it"
    elif not totals[-1] and not torch.allclose(found, squares, rtol=_TOLERANCE, atol=0):
        fault = "the slices of a parameter do not hold its values"
    if totals[-1] or fault:
        import deepspeed

        raise ClusterError(
            f"DeepSpeed {deepspeed.__version__} lays parameters out in another way than expected "
            f"({fault or 'on another rank'}), so the norms of tensors cannot be found; set "
            "training.zero_stage to 0, or training.optimizer to adamw"
        )
    return slices


def tensor_length(tensor: torch.Tensor) -> int:
    """Return the number of elements of a whole parameter, which stage 3 has replaced."""
    return int(getattr(tensor, "ds_numel", tensor.numel()))


def _slices(
    engine: Any, tensors: Sequence[torch.nn.Parameter]
) -> dict[torch.Tensor, list[TensorSlice]]:
    zero = engine.optimizer
    at_stage_3 = engine.zero_optimization_stage() == 3
    flats = (
        zero.fp32_partitioned_groups_flat if at_stage_3 else zero.single_partition_of_fp32_groups
    )
    slices: dict[torch.Tensor, list[TensorSlice]] = {flat: [] for flat in flats}
    for index, tensor in enumerate(tensors):
        own = _own_part(tensor) if at_stage_3 else _own_fragment(tensor)
        if own is not None and own.numel():
            flat, start = _where(own, flats)
            slices[flat].append(TensorSlice(index, start, own.numel()))
    for pieces in slices.values():
        pieces.sort(key=lambda piece: piece.start)
        if any(a.start + a.length > b.start for a, b in pairwise(pieces)):
            raise ValueError("slices overlap")
    return slices


def _own_fragment(tensor: Any) -> torch.Tensor | None:
    """Return this rank's part of a parameter at stages 1 and 2, a view; None if it has none."""
    mapping = tensor._hp_mapping
    return None if mapping is None else mapping.get_hp_fragment()


def _own_part(tensor: Any) -> torch.Tensor:
    """Return this rank's part of a parameter at stage 3, a view without the padding."""
    from deepspeed.utils import safe_get_local_fp32_param

    return _without_padding(tensor, safe_get_local_fp32_param(tensor))


def _without_padding(tensor: Any, part: torch.Tensor) -> torch.Tensor:
    left = tensor_length(tensor) - part.numel() * dist.get_rank()
    return part.narrow(0, 0, max(0, min(part.numel(), left)))


def _where(view: torch.Tensor, flats: Sequence[torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Return the flat tensor that a view belongs to, and the view's offset in it."""
    storage = view.untyped_storage().data_ptr()
    for flat in flats:
        start = view.storage_offset() - flat.storage_offset()
        inside = start >= 0 and start + view.numel() <= flat.numel()
        if inside and flat.dtype == view.dtype and flat.untyped_storage().data_ptr() == storage:
            return flat, int(start)
    raise ValueError("a part of a parameter lies in no flat tensor")
