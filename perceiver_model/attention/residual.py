"""The dtype of the residual stream: what attends and MLPs add to, and layer norms read."""

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm(nn.LayerNorm):
    """Layer normalisation that keeps the dtype of a residual stream of fewer bits.

    Mean and variance are computed in float32, whatever the dtype is. Autocast would return float32,
    which takes twice the memory of bfloat16 and is cast again by the next product.

    Attributes:
        residual_dtype: The dtype of the residual stream; None is the parameters' own.
    """

    residual_dtype: torch.dtype | None = None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Normalise `[..., channels]`; the shape stays the same.

        Tokens in `residual_dtype` keep it. Others are normalised as torch does it.
        """
        if tokens.dtype != self.residual_dtype:
            return super().forward(tokens)
        if torch.compiler.is_compiling():
            return self._spelled_out(tokens)
        weight, bias = self.weight.to(tokens.dtype), self.bias.to(tokens.dtype)
        with torch.autocast(tokens.device.type, enabled=False):
            return F.layer_norm(tokens, self.normalized_shape, weight, bias, self.eps)

    def _spelled_out(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the same by operations that autocast leaves alone.

        The compiler makes one kernel of them. A graph that switches autocast off is not kept in
        its cache.
        """
        content = tokens.float()
        centred = content - content.mean(dim=-1, keepdim=True)
        scale = (centred.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()
        return (centred * scale * self.weight + self.bias).to(tokens.dtype)


class ResidualStream(nn.Module):
    """A module that adds to its input.

    Attributes:
        residual_dtype: The dtype of the residual stream under autocast; None is that of the input.
    """

    residual_dtype: torch.dtype | None = None

    def stream(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens as the residual stream has them. The first module of a stream casts."""
        if self.residual_dtype is None or not torch.is_autocast_enabled(tokens.device.type):
            return tokens
        return tokens.to(self.residual_dtype)


def set_residual_dtype(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Set the dtype of the residual streams in `module`.

    It is for autocast to the same dtype: weights stay float32, and products are in `dtype` already.
    Without autocast it changes nothing.

    Args:
        module: A model or a part of one.
        dtype: The dtype; None keeps that of the inputs, float32 under autocast.
    """
    for submodule in module.modules():
        if isinstance(submodule, ResidualStream | LayerNorm):
            submodule.residual_dtype = dtype
