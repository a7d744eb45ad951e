"""Linear layers after a cheap function, whose result is computed again in the backward pass.

A linear layer keeps its input for the gradient of its weight. Where that input is a layer
normalisation or a GELU, whose own input is kept anyway, computing it again costs a few operations a
number and saves a third of what a latent self-attend keeps. torch.compile chooses such things by
itself, so compiled code takes the plain modules.

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


def normed_linear(norm: nn.LayerNorm, layer: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
    """layer(norm(tokens)), without keeping the normalised tokens."""
    if not _recomputes(norm, layer):
        return layer(norm(tokens))
    return _NormedLinear.apply(tokens, norm.weight, norm.bias, norm.eps, layer.weight, layer.bias)


def activated_linear(activation: nn.Module, layer: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """layer(activation(hidden)); a GELU's result is not kept."""
    if not isinstance(activation, nn.GELU) or not _recomputes(activation, layer):
        return layer(activation(hidden))
    return _GELULinear.apply(hidden, activation.approximate, layer.weight, layer.bias)


def add_residual(tokens: torch.Tensor, update: torch.Tensor, *modules: nn.Module) -> torch.Tensor:
    """tokens + update, in update's memory where nobody else reads that.

    modules: whose output `update` is, the last ones that it passed.
    """
    if (
        _recomputes(*modules)
        and update.dtype == tokens.dtype
        and not torch.is_autocast_enabled(update.device.type)
    ):
        return update.add_(tokens)
    return tokens + update


def _recomputes(*modules: nn.Module) -> bool:
    """Whether there is a backward pass to save memory for, and the modules are as torch made them.

    Hooks, such as those by which ZeRO stage 3 gathers weights, want the modules to be called.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return all(
        type(module) in (nn.LayerNorm, nn.GELU, nn.Linear, nn.Dropout)
        and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        for module in modules
    )


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
        grad, *layer_grads = _linear_backward(gradients[0], normed, weight, bias)
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
        grad, *layer_grads = _linear_backward(gradients[0], activated, weight, bias)
        hidden_grad = torch.ops.aten.gelu_backward(grad, hidden, approximate=ctx.approximate)
        return hidden_grad, None, *layer_grads


def _linear(
    tokens: torch.Tensor,
    function: Callable[[torch.Tensor], torch.Tensor],
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """The linear layer of function(tokens), whose result is freed again."""
    if torch.is_autocast_enabled(tokens.device.type):
        return F.linear(function(tokens), weight, bias)
    output = tokens.new_empty((*tokens.shape[:-1], len(weight)))
    rows = output.flatten(0, -2)
    torch.addmm(bias, function(tokens).flatten(0, -2), weight.mT, out=rows)
    return output


def _linear_backward(
    gradient: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of a linear layer's inputs, weight and bias, each in its own dtype.

    Products are in the gradient's dtype, which under autocast is the lower one, as autocast has it.
    """
    rows = gradient.flatten(0, -2)
    input_grad = gradient @ weight.to(gradient.dtype)
    weight_grad = rows.mT @ inputs.flatten(0, -2).to(gradient.dtype)
    return (
        input_grad.to(inputs.dtype),
        weight_grad.to(weight.dtype),
        rows.sum(dim=0).to(bias.dtype),
    )
