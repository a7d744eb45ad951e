"""Gradients at ZeRO stages 1 and 2 on a CPU: one flat tensor, from the backward pass to the step.

DeepSpeed copies each gradient into a bucket, its own part of the bucket into a partition, and the
partition into the flat tensor that the optimizer steps. On a CPU each copy reads and writes memory
that no cache holds. Here a gradient is copied once, to the place in a flat tensor that its weight
has among the flat weights. The ranks exchange slices of that tensor, and the optimizer steps one.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from cluster.strategy import Strategy


def use_flat_gradients(engine: Any, strategy: Strategy) -> None:
    """Let an engine keep its gradients in flat tensors, where all of them fit into one bucket.

    These are engines at stages 1 and 2 on a CPU, without offload or overlapped communication, whose
    section `zero_optimization` has no further keys.

    Args:
        engine: The engine.
        strategy: The strategy that was asked for.
    """
    zero = engine.optimizer
    if (
        engine.zero_optimization_stage() in (1, 2)
        and engine.device.type == "cpu"
        and not zero.cpu_offload
        and not zero.overlap_comm
        and not zero.use_grad_accum_attribute
        and not strategy.deepspeed.get("zero_optimization")
        and sum(flat.numel() for flat in zero.bit16_groups_flat) <= zero.reduce_bucket_size
        and hasattr(zero, "_get_preflattened_grad_partition")  # since DeepSpeed 0.19
    ):
        gradients = _FlatGradients(zero)
        zero.reduce_independent_p_g_buckets_and_remove_grads = gradients.keep
        zero.independent_gradient_partition_epilogue = gradients.reduce


class _FlatGradients:
    """The gradients of a DeepSpeed optimizer of stage 1 or 2.

    Args:
        zero: The optimizer.
    """

    def __init__(self, zero: Any) -> None:
        self._zero = zero
        self._groups = [_FlatGroup(zero, number) for number in range(len(zero.bit16_groups))]

    def keep(self, parameter: torch.nn.Parameter, group: int) -> None:
        """Take the gradient of a parameter, as the backward pass has left it."""
        self._groups[group].keep(parameter, self._zero.get_gradient_for_reduction(parameter))

    def reduce(self) -> None:
        """Average the gradients over the ranks. Each rank gets those of its own partition."""
        is_last = self._zero.is_gradient_accumulation_boundary()
        for number, group in enumerate(self._groups):
            group.reduce()
            if is_last:
                self._zero.averaged_gradients[number] = group.take()
        self._zero._release_ipg_buffers()
        self._zero._clear_param_grad_only()
        self._zero._epilogue_ran_this_backward = True


class _FlatGroup:
    """The gradients of one group of parameters.

    Args:
        zero: The optimizer.
        number: The number of the group.
    """

    def __init__(self, zero: Any, number: int) -> None:
        self._process_group = zero.real_dp_process_group[number]
        self._rank = dist.get_rank(self._process_group)
        self._weights: torch.Tensor = zero.bit16_groups_flat[number]
        self._partitions = [
            (self._place(part), self._place(part) + part.numel())
            for part in zero.parallel_partitioned_bit16_groups[number]
        ]
        self._places = {
            parameter: (self._place(parameter), self._place(parameter) + parameter.numel())
            for parameter in zero.round_robin_bit16_groups[number]
        }
        self._gradients: torch.Tensor | None = None
        self._kept: set[torch.nn.Parameter] = set()
        self._sum: torch.Tensor | None = None

    def _place(self, part: torch.Tensor) -> int:
        """Return the index of the first element of a view of the flat weights."""
        return (part.data_ptr() - self._weights.data_ptr()) // self._weights.element_size()

    def keep(self, parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        """Copy a gradient to its place, and let it be a view of that."""
        if self._gradients is None:
            self._gradients = torch.empty_like(self._weights)
        begin, end = self._places[parameter]
        place = self._gradients[begin:end].view_as(gradient)
        place.copy_(gradient)
        gradient.data = place
        self._kept.add(parameter)

    def reduce(self) -> None:
        """Add the average of this rank's partition to the sum over the micro-batches."""
        gradients = torch.zeros_like(self._weights) if self._gradients is None else self._gradients
        for begin, end in self._left_out():
            gradients[begin:end].zero_()
        own = self._exchanged(gradients)
        self._sum = own if self._sum is None else self._sum.add_(own)
        self._gradients = None
        self._kept.clear()

    def take(self) -> Any:
        """Return the sum as DeepSpeed's step takes it, and begin a new one."""
        from deepspeed.runtime.zero.stage_1_and_2 import GradPartitionBufferGroup

        assert self._sum is not None
        flat, self._sum = self._sum, None
        return GradPartitionBufferGroup(list(self._views(flat)), flat)

    def _left_out(self) -> Iterator[tuple[int, int]]:
        """Yield the places without a gradient: of weights that were not used, and of padding."""
        at = 0
        for parameter, (begin, end) in self._places.items():
            if begin > at:
                yield at, begin
            if parameter not in self._kept:
                yield begin, end
            at = end
        yield at, self._weights.numel()

    def _exchanged(self, gradients: torch.Tensor) -> torch.Tensor:
        """Return this rank's partition, averaged over the ranks.

        In each round a rank sends to one other rank and receives from one, so that it needs room
        for one partition.
        """
        begin, end = self._partitions[self._rank]
        own = gradients[begin:end]
        ranks = len(self._partitions)
        if ranks == 1:
            return own
        received = torch.empty_like(own)
        for distance in range(1, ranks):
            to, source = (self._rank + distance) % ranks, (self._rank - distance) % ranks
            sent = gradients[slice(*self._partitions[to])]
            group = self._process_group
            works = [
                dist.isend(sent, group=group, group_dst=to),
                dist.irecv(received, group=group, group_src=source),
            ]
            for work in works:
                assert work is not None  # this rank is in the group
                work.wait()
            own += received
        return own.div_(ranks)

    def _views(self, partition: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the slices of a partition: one for each weight, and those that are padding."""
        first, last = self._partitions[self._rank]
        at = first
        for begin, end in self._places.values():
            begin, end = max(begin, first), min(end, last)
            if begin >= end:
                continue
            if begin > at:
                yield _padding(partition[at - first : begin - first])
            yield partition[begin - first : end - first]
            at = end
        if at < last:
            yield _padding(partition[at - first :])


def _padding(view: torch.Tensor) -> torch.Tensor:
    view._zero_padding = True  # type: ignore[attr-defined]  # as DeepSpeed marks it
    return view
