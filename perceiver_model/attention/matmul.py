"""Products of tokens and weights, by the library that is faster at them.

On an x86 processor torch leaves float32 products to MKL. oneDNN, which it brings along for
convolutions, was measured 1.1 to 1.3 times as fast on an AMD EPYC with AVX-512, for weights of
512 x 512 numbers and more (docs/performance.md), and no faster for smaller ones.
"""

import torch
import torch.nn.functional as F
from torch import nn

LARGE_WEIGHT = 512 * 512
"""Numbers in a weight from which oneDNN pays."""


def multiply(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """inputs Wᵀ + b, as `torch.nn.functional.linear`, which it is where gradients are recorded.

    inputs `[..., in channels]`, weight `[out channels, in channels]`, bias `[out channels]`.
    `torch.backends.mkldnn.flags(enabled=False)` leaves everything to MKL.
    """
    if not torch.is_grad_enabled() and faster_by_onednn(inputs, weight):
        return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return F.linear(inputs, weight, bias)


def faster_by_onednn(inputs: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether this product is one for oneDNN, which knows no gradients."""
    return (
        weight.numel() >= LARGE_WEIGHT
        and inputs.device.type == weight.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        # Subclasses (distributed or quantised tensors, say) multiply in their own way, and torch's
        # FLOP counter knows torch's own products only.
        and torch._C._len_torch_dispatch_stack() == 0
        and type(inputs) is torch.Tensor
        and type(weight) in (torch.Tensor, nn.Parameter)
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )
