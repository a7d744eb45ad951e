"""Muon for the matrices of hidden layers, AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Muon(torch.optim.Optimizer):
    """Torch's Muon and AdamW, each with its own parameter groups.

    Muon's learning rate is adjusted to the size of AdamW's steps (Liu et al., arXiv 2502.16982), so
    that one learning rate and one weight decay suit both.

    Args:
        groups: Parameter groups with `params` and `weight_decay`. Muon steps those with a true
            `hidden_matrices`.
        lr: The learning rate.
        betas: The decay rates of AdamW.
        eps: The constant in the denominator of AdamW's steps.
        momentum: The decay rate of Muon's mean of the gradient; None takes torch's default.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float | None,
    ) -> None:
        chosen: dict[str, Any] = {} if momentum is None else {"momentum": momentum}
        matrices = [g | {"moments": ("momentum_buffer",)} for g in groups if _is_muons(g)]
        others = [g | {"moments": ("exp_avg", "exp_avg_sq")} for g in groups if not _is_muons(g)]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts += [
                torch.optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw", **chosen)
            ]
        if others:
            self._parts += [torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps)]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        # The parts step what this optimizer shows: the same groups and the same state.
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        for part in self._parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch types it with overloads
        """Take one step.

        Args:
            closure: Computes the loss and the gradients again.

        Returns:
            The loss that `closure` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def _is_muons(group: dict[str, Any]) -> bool:
    return bool(group.get("hidden_matrices"))
