"""Linear layers after a cheap function, whose result is computed again in the backward pass.

A linear layer keeps its input for the gradient of its weight. Where that input is a layer
normalisation or a GELU, whose own input is kept anyway, computing it again costs a few operations a
number and saves a third of what a latent self-attend keeps. torch.compile chooses such things by
itself, so compiled code takes the plain modules. Products are `matmul.multiply`'s, but for those
of weights' gradients, where oneDNN was not faster.

What is not kept must not leave gaps between what is, either: glibc before 2.38 never fills a gap
with an aligned array of the same size, and 48 self-attends left 300 MB of them. So results
are allocated before what is freed once they are computed, and residuals are added in place.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from perceiver_model.attention.matmul import faster_by_onednn, multiply


def apply_linear(layer: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
    """layer(tokens)."""
    if not _as_made(layer) or not faster_by_onednn(tokens, layer.weight):
        return layer(tokens)
    if not torch.is_grad_enabled():
        return multiply(tokens, layer.weight, layer.bias)
    return _Linear.apply(tokens, layer.weight, layer.bias)


def normed_linear(norm: nn.LayerNorm, layer: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
    """layer(norm(tokens)), without keeping the normalised tokens."""
    if not torch.is_grad_enabled() or not _as_made(norm, layer):
        return apply_linear(layer, norm(tokens))
    return _NormedLinear.apply(tokens, norm.weight, norm.bias, norm.eps, layer.weight, layer.bias)


def activated_linear(activation: nn.Module, layer: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """layer(activation(hidden)); a GELU's result is not kept."""
    if (
        not torch.is_grad_enabled()
        or not isinstance(activation, nn.GELU)
        or not _as_made(activation, layer)
    ):
        return apply_linear(layer, activation(hidden))
    return _GELULinear.apply(hidden, activation.approximate, layer.weight, layer.bias)


def add_residual(tokens: torch.Tensor, update: torch.Tensor, *modules: nn.Module) -> torch.Tensor:
    """tokens + update, in update's memory where nobody else reads that.

    Args:
        *modules: those whose output `update` is, the last ones that it passed.
    """
    if (
        torch.is_grad_enabled()
        and _as_made(*modules)
        and update.dtype == tokens.dtype
        and not torch.is_autocast_enabled(update.device.type)
    ):
        return update.add_(tokens)
    return tokens + update


def _as_made(*modules: nn.Module) -> bool:
    """Whether what is computed here may stand in for calling the modules.

    Hooks, such as those by which ZeRO stage 3 gathers weights, want the modules to be called;
    torch.compile and torch.func's transforms want operations that they know.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return all(
        type(module) in (nn.LayerNorm, nn.GELU, nn.Linear, nn.Dropout)
        and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        for module in modules
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(tokens, weight, bias)
        return _own(multiply(tokens, weight, bias))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens, weight, bias = ctx.saved_tensors
        return _linear_backward(gradients[0], tokens, weight, bias, ctx.needs_input_grad)


class _NormedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tokens: torch.Tensor,
        gain: torch.Tensor,
        shift: torch.Tensor,
        eps: float,
        weight: torch.Tensor,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(tokens, gain, shift, weight, bias)
        ctx.eps = eps
        norm = functools.partial(
            F.layer_norm, normalized_shape=gain.shape, weight=gain, bias=shift, eps=eps
        )
        return _linear(tokens, norm, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens, gain, shift, weight, bias = ctx.saved_tensors
        normed, mean, scale = torch.native_layer_norm(tokens, gain.shape, gain, shift, ctx.eps)
        needed = True, *ctx.needs_input_grad[-2:]
        grad, *layer_grads = _linear_backward(gradients[0], normed, weight, bias, needed)
        token_grad, *norm_grads = torch.ops.aten.native_layer_norm_backward(
            grad, tokens, gain.shape, mean, scale, gain, shift, [True, True, True]
        )
        return token_grad, *norm_grads, None, *layer_grads


class _GELULinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        approximate: Literal["tanh", "none"],
        weight: torch.Tensor,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.approximate = approximate
        gelu = functools.partial(F.gelu, approximate=approximate)
        return _linear(hidden, gelu, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        activated = F.gelu(hidden, approximate=ctx.approximate)
        needed = True, *ctx.needs_input_grad[-2:]
        grad, *layer_grads = _linear_backward(gradients[0], activated, weight, bias, needed)
        hidden_grad = torch.ops.aten.gelu_backward(grad, hidden, approximate=ctx.approximate)
        return hidden_grad, None, *layer_grads


def _linear(
    tokens: torch.Tensor,
    function: Callable[[torch.Tensor], torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """The linear layer of function(tokens), whose result is freed again."""
    # The result's place, a little larger, since an aligned array does not fit a gap of its size.
    size = tokens.shape[:-1].numel() * len(weight) + 64 if tokens.device.type == "cpu" else 0
    place = tokens.new_empty(size)
    inputs = function(tokens)
    del place
    return _own(multiply(inputs, weight, bias))


def _own(result: torch.Tensor) -> torch.Tensor:
    """The same array, but no view: nothing may be added in place to a function's views."""
    return result.new_empty(0).set_(
        result.untyped_storage(), result.storage_offset(), result.shape, result.stride()
    )


def _linear_backward(
    gradient: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    needed: tuple[bool, ...],
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of a linear layer's inputs, weight and bias, each in its own dtype, where needed.

    Products are in the gradient's dtype, which under autocast is the lower one, as autocast has it.
    """
    rows = gradient.reshape(-1, gradient.shape[-1])
    input_rows = inputs.reshape(-1, inputs.shape[-1])
    input_grad = multiply(gradient, weight.mT.to(gradient.dtype)) if needed[0] else None
    weight_grad = rows.mT @ input_rows.to(rows.dtype) if needed[1] else None
    bias_grad = rows.sum(dim=0) if needed[2] else None
    return (
        None if input_grad is None else input_grad.to(inputs.dtype),
        None if weight_grad is None else weight_grad.to(weight.dtype),
        None if bias_grad is None else bias_grad.to(bias.dtype),
    )
