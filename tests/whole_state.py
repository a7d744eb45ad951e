"""An engine's state with whole tensors, put together from what all ranks hold of it."""

from typing import Any

import torch
import torch.distributed as dist

from cluster import engine_state
from cluster.fragments import own_share

State = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


class Tensors:
    """Whole tensors in memory, which can be read in ranges."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.num_read = 0

    @property
    def names(self) -> set[str]:
        return set(self.tensors)

    def read(self, name: str, start: int, length: int) -> torch.Tensor:
        self.num_read += length
        return self.tensors[name].flatten()[start : start + length]


def gather_state(engine: Any) -> State:
    """Weights and moments by name, on every rank (a collective)."""
    weights, moments = engine_state.saved_fragments(engine)
    with engine_state.in_memory(engine):
        return _whole(weights), _whole(moments)


def restore_state(engine: Any, weights: Any, moments: Any, *, step: int) -> None:
    engine_state.restore_state(engine, Tensors(weights), Tensors(moments), step=step)


def _whole(fragments: list[Any]) -> dict[str, torch.Tensor]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    own = [
        (each.name, each.shape, each.start, each.load().to(each.dtype).cpu().clone())
        for each in own_share(fragments, rank, world_size)
    ]
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, own)
    tensors: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    for name, shape, start, values in (each for part in parts for each in part):
        whole = tensors.setdefault(name, torch.empty(shape, dtype=values.dtype))
        whole.view(-1)[start : start + len(values)] = values
        counts[name] = counts.get(name, 0) + len(values)
    assert all(counts[name] == tensor.numel() for name, tensor in tensors.items())
    return tensors
