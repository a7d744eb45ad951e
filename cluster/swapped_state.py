"""The groups of the optimizer's state that DeepSpeed keeps in files at ZeRO stage 3 (NVMe).

Between steps, the tensors of such a group are empty: float32 weights and moments lie in swap files.
Here a group is brought into memory to be read or changed, one at a time. DeepSpeed's own functions
read all of a group for each weight in it.

A group with less than 1 MiB of weights on a rank is never swapped.

Gradients stay in memory. DeepSpeed 0.19 reads each of them from its file to its place in the group,
which is not at a multiple of 512 bytes unless all sizes are; such a read fails without an error,
and the weights take a step with other numbers.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch


class SwappedState:
    """The swapped groups of an engine, of which one at most is in memory.

    Reading and writing is allowed inside `with`, whose end puts the group back. DeepSpeed's steps
    are not allowed there.

    Args:
        engine: An engine that offloads the optimizer to NVMe.
    """

    def __init__(self, engine: Any) -> None:
        self._zero = engine.optimizer
        self._group: int | None = None
        self._changed = False
        self._zero.optimizer_swapper.swap_out_gradients = self._keep_gradients

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def group_of(self, parameter: torch.Tensor) -> int | None:
        """Return the number of the swapped group that a parameter belongs to, or None."""
        place = self._zero.grad_position.get(self._zero.get_param_id(parameter))
        if place is None or not self._zero._swappable_optimizer_subgroup(place[0]):
            return None
        return int(place[0])

    def read(self, parameter: torch.Tensor, key: str | None) -> torch.Tensor:
        """Return this rank's part of a weight or of a moment, with its padding, as a view.

        The view is valid until another group is read.

        Args:
            parameter: A parameter in a swapped group.
            key: The name of the moment; None for the weight.
        """
        group, start, length = self._zero.grad_position[self._zero.get_param_id(parameter)]
        flat = self._bring_in(group)
        values = flat if key is None else self._zero.optimizer.state[flat][key]
        return values.detach().narrow(0, start, length)

    def write(self, parameter: torch.Tensor, key: str | None, values: torch.Tensor) -> None:
        """Set the first values of this rank's part of a weight or of a moment."""
        self.read(parameter, key).narrow(0, 0, len(values)).copy_(values)
        self._changed = True

    def reset_moments(self, flat: torch.Tensor, keys: tuple[str, ...]) -> bool:
        """Give the optimizer a state of zeros for a group, if it is a swapped one.

        Args:
            flat: The group's weights, as the optimizer knows them.
            keys: The names of the moments.

        Returns:
            Whether it is a swapped group.
        """
        flats = self._zero.fp32_partitioned_groups_flat
        group = next(number for number, each in enumerate(flats) if each is flat)
        if not self._zero._swappable_optimizer_subgroup(group):
            return False
        state = self._zero.optimizer.state[self._bring_in(group)]
        for key in keys:
            if key in state:  # DeepSpeed knows this tensor, and puts its values back
                state[key].zero_()
            else:
                state[key] = torch.zeros_like(flat)
        self._changed = True
        return True

    def _keep_gradients(
        self,
        parameter: Any,
        gradient_offsets: Sequence[int],
        gradient_tensors: Sequence[torch.Tensor],
    ) -> None:
        """Keep a group's gradients in the machine's memory until its step."""
        info = self._zero.optimizer_swapper._get_param_swap_info(parameter)
        on_cpu = (gradient.cpu() for gradient in gradient_tensors)
        info.unswapped_gradients.update(zip(gradient_offsets, on_cpu, strict=True))

    def _bring_in(self, group: int) -> torch.Tensor:
        if self._group != group:
            self._put_back()
            self._zero._optimizer_states_and_gradient_swap_in(group)
            self._group = group
        flat: torch.Tensor = self._zero.fp32_partitioned_groups_flat[group]
        return flat

    def _put_back(self) -> None:
        if self._group is None:
            return
        group, changed = self._group, self._changed
        self._group, self._changed = None, False
        if changed:
            self._zero._optimizer_states_and_gradient_swap_out(group)
        else:
            self._zero._release_swap_buffers(group)
