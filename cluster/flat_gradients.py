"""Gradients at ZeRO stages 1 and 2 on a CPU: one flat tensor, from the backward pass to the step.

The optimizer steps the model's own weights, too, of which DeepSpeed keeps a copy in float32.

DeepSpeed copies each gradient into a bucket, its own part of the bucket into a partition, and the
partition into the flat tensor that the optimizer steps. On a CPU each copy reads and writes memory
that no cache holds. Here a gradient is copied once, to the place in a flat tensor that its weight
has among the flat weights. The ranks exchange slices of that tensor, and the optimizer steps one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from cluster.strategy import MAX_BUCKET_ELEMENTS, Strategy


def are_flat(
    num_parameters: int,
    *,
    device: str,
    offloads: bool,
    overlaps: bool,
    keys: Mapping[str, Any],
) -> bool:
    """Return whether gradients lie in flat tensors at ZeRO stages 1 and 2.

    They do if all of them fit into one bucket, so that DeepSpeed would hold as much.

    Args:
        num_parameters: The number of trained parameters.
        device: The type of the device: only those of a `cpu` do.
        offloads: Whether the optimizer or the weights are offloaded.
        overlaps: Whether communication overlaps the backward pass.
        keys: The further keys of DeepSpeed's configuration. With any for ZeRO, its own way is kept.
    """
    is_own_way = offloads or overlaps or bool(keys.get("zero_optimization"))
    return device == "cpu" and not is_own_way and num_parameters <= MAX_BUCKET_ELEMENTS


def use_flat_gradients(engine: Any, strategy: Strategy, num_parameters: int) -> None:
    """Let an engine at stage 1 or 2 step the model's weights by flat gradients, if `are_flat`.

    Args:
        engine: The engine.
        strategy: The strategy that was asked for.
        num_parameters: The number of the model's parameters.
    """
    zero = engine.optimizer
    if (
        engine.zero_optimization_stage() in (1, 2)
        and are_flat(
            num_parameters,
            device=strategy.device,
            offloads=strategy.offload_optimizer != "none",
            overlaps=strategy.overlap_communication,
            keys=strategy.deepspeed,
        )
        and not zero.use_grad_accum_attribute
        and hasattr(zero, "_get_preflattened_grad_partition")  # since DeepSpeed 0.19
    ):
        gradients = _FlatGradients(zero)
        zero.reduce_independent_p_g_buckets_and_remove_grads = gradients.keep
        zero.independent_gradient_partition_epilogue = gradients.reduce
        _step_own_weights(zero)


def _step_own_weights(zero: Any) -> None:
    """Let the optimizer's tensors be those of the model. Their copy after a step costs nothing."""
    for number, partitions in enumerate(zero.parallel_partitioned_bit16_groups):
        own = partitions[dist.get_rank(zero.real_dp_process_group[number])]
        stepped = zero.single_partition_of_fp32_groups[number]
        if own.dtype == stepped.dtype:
            stepped.data = own.data
    zero._link_all_hp_params()  # the parameters know their slices of what is stepped


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
        # Fresh memory is slow: the system clears its pages when they are first written.
        self._spare: torch.Tensor | None = None
        self._received: torch.Tensor | None = None
        self._sum: torch.Tensor | None = None
        self._sum_lies_in: torch.Tensor | None = None

    def _place(self, part: torch.Tensor) -> int:
        """Return the index of the first element of a view of the flat weights."""
        return (part.data_ptr() - self._weights.data_ptr()) // self._weights.element_size()

    def keep(self, parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        """Copy a gradient to its place, and let it be a view of that."""
        if self._gradients is None:
            self._gradients = self._unused()
        begin, end = self._places[parameter]
        place = self._gradients[begin:end].view_as(gradient)
        place.copy_(gradient)
        gradient.data = place
        self._kept.add(parameter)

    def reduce(self) -> None:
        """Add the average of this rank's partition to the sum over the micro-batches."""
        gradients = self._unused() if self._gradients is None else self._gradients
        for begin, end in self._left_out():
            gradients[begin:end].zero_()
        own = self._exchanged(gradients)
        if self._sum is None:
            self._sum, self._sum_lies_in = own, gradients
        else:
            self._sum += own
            self._spare = gradients
        self._gradients = None
        self._kept.clear()

    def take(self) -> Any:
        """Return the sum as DeepSpeed's step takes it, and begin a new one.

        It is valid until the next backward pass.
        """
        from deepspeed.runtime.zero.stage_1_and_2 import GradPartitionBufferGroup

        assert self._sum is not None
        flat, self._sum, self._spare = self._sum, None, self._sum_lies_in
        return GradPartitionBufferGroup(list(self._views(flat)), flat)

    def _unused(self) -> torch.Tensor:
        """Return a flat tensor that holds nothing of use."""
        spare, self._spare = self._spare, None
        return torch.empty_like(self._weights) if spare is None else spare

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
        if self._received is None:
            self._received = torch.empty_like(own)
        for distance in range(1, ranks):
            to, source = (self._rank + distance) % ranks, (self._rank - distance) % ranks
            sent = gradients[slice(*self._partitions[to])]
            group = self._process_group
            works = [
                dist.isend(sent, group=group, group_dst=to),
                dist.irecv(self._received, group=group, group_src=source),
            ]
            for work in works:
                assert work is not None  # this rank is in the group
                work.wait()
            own += self._received
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
