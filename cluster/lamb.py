"""LAMB (You et al., arXiv 1904.00962), whole on one worker or in slices under ZeRO.

Each tensor's step is Adam's, with decoupled weight decay, scaled by the tensor's trust ratio: the
norm of its weights divided by the norm of that step. It is optax's `lamb`, with which DeepMind
trained the Perceivers: `scale_by_adam`, `add_decayed_weights`, `scale_by_trust_ratio`. Every tensor
has a trust ratio, biases and norms too. It is 1 where one of the two norms is 0.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from cluster.tensor_slices import TensorSlice, squared_norms


class Lamb(torch.optim.Optimizer):
    """LAMB.

    All parameters are in one group, because ZeRO steps one group after the other: one group is one
    `all_reduce` for the norms of all tensors. Each parameter keeps the weight decay and the
    learning rate's scale of the group in which it was given.

    The state of a parameter, or of a flat tensor of ZeRO, is `step`, `mu` and `nu`: the number of
    steps, and the running means of the gradient and of its square, float32 in its shape.

    Args:
        groups: Parameter groups with `params`, `weight_decay`, and optionally
            `learning_rate_scale`, by which the learning rate is multiplied.
        lr: The learning rate.
        betas: The decay rates of `mu` and `nu`.
        eps: Added to the square root of the second moment.

    Raises:
        ValueError: A group has another key, which would have no effect.
    """

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
    ) -> None:
        self.tensors: list[torch.nn.Parameter] = []
        self._weight_decay: list[float] = []
        self._rate_scale: list[float] = []
        for group in groups:
            if odd := group.keys() - {"params", "weight_decay", "learning_rate_scale"}:
                raise ValueError(f"LAMB does not know {', '.join(sorted(odd))} of parameter groups")
            self.tensors += group["params"]
            self._weight_decay += [group["weight_decay"]] * len(group["params"])
            scale = group.get("learning_rate_scale", 1.0)
            self._rate_scale += [scale] * len(group["params"])
        super().__init__(self.tensors, {"lr": lr, "betas": betas, "eps": eps})
        self._is_sliced = False
        self._slices: dict[torch.Tensor, list[TensorSlice]] = {
            tensor: [TensorSlice(index, 0, tensor.numel())]
            for index, tensor in enumerate(self.tensors)
        }

    def use_slices(self, slices: Mapping[torch.Tensor, list[TensorSlice]]) -> None:
        """Step flat tensors from now on, which hold this rank's slices of the parameters.

        Args:
            slices: The slices in each flat tensor. `TensorSlice.tensor` is an index of `tensors`.
        """
        self._is_sliced = True
        self._slices = dict(slices)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch types it with overloads
        """Take one step. With slices, all ranks must call this (a collective).

        Args:
            closure: Computes the loss and the gradients again.

        Returns:
            The loss that `closure` returned.

        Raises:
            RuntimeError: A parameter is not one of the tensors or slices that LAMB was given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        stepped = [flat for flat in group["params"] if flat.grad is not None]
        updates = self._adam_updates(stepped, group["betas"], group["eps"])
        weights, steps, pieces = [], [], []
        for flat, update in zip(stepped, updates, strict=True):
            if flat not in self._slices:
                raise RuntimeError(
                    "LAMB steps a tensor whose layout it does not know; build the engine with "
                    "initialize_engine"
                )
            for piece in self._slices[flat]:
                pieces.append(piece)
                weights.append(piece.of(flat))
                steps.append(piece.of(update))
        for piece, weight, step in zip(pieces, weights, steps, strict=True):
            if self._weight_decay[piece.tensor]:
                step.add_(weight, alpha=self._weight_decay[piece.tensor])
        ratios = self._trust_ratios(pieces, weights, steps)
        if pieces:
            scales = [self._rate_scale[piece.tensor] for piece in pieces]
            factors = [-group["lr"] * a * b for a, b in zip(scales, ratios, strict=True)]
            torch._foreach_mul_(steps, factors)
            torch._foreach_add_(weights, steps)
        return loss

    def _adam_updates(
        self, tensors: Sequence[torch.Tensor], betas: tuple[float, float], eps: float
    ) -> Sequence[torch.Tensor]:
        """Return Adam's steps of the tensors, without the learning rate."""
        if not tensors:
            return []
        for tensor in tensors:
            if not self.state[tensor]:
                self.state[tensor] = {
                    "step": torch.tensor(0.0),
                    "mu": torch.zeros_like(tensor),
                    "nu": torch.zeros_like(tensor),
                }
        states = [self.state[tensor] for tensor in tensors]
        for state in states:
            state["step"] += 1
        gradients: list[torch.Tensor] = [
            tensor.grad for tensor in tensors if tensor.grad is not None
        ]
        mus, nus = [state["mu"] for state in states], [state["nu"] for state in states]
        torch._foreach_lerp_(mus, gradients, 1 - betas[0])
        torch._foreach_mul_(nus, betas[1])
        torch._foreach_addcmul_(nus, gradients, gradients, 1 - betas[1])
        counts = [float(state["step"]) for state in states]
        roots = torch._foreach_div(nus, [1 - betas[1] ** count for count in counts])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, eps)
        updates = torch._foreach_div(mus, [1 - betas[0] ** count for count in counts])
        torch._foreach_div_(updates, roots)
        return updates

    def _trust_ratios(
        self,
        pieces: Sequence[TensorSlice],
        weights: Sequence[torch.Tensor],
        steps: Sequence[torch.Tensor],
    ) -> list[float]:
        """Return the trust ratio of each piece: that of the whole tensor."""
        device = self.param_groups[0]["params"][0].device
        squares = torch.stack(
            [
                squared_norms(values, pieces, len(self.tensors), device)
                for values in (weights, steps)
            ]
        )
        if self._is_sliced:
            dist.all_reduce(squares)
        weight_norms, step_norms = squares.sqrt().tolist()
        return [
            weight_norms[piece.tensor] / step_norms[piece.tensor]
            if weight_norms[piece.tensor] and step_norms[piece.tensor]
            else 1.0
            for piece in pieces
        ]
