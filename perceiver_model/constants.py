"""Buffers that stay float32 when the module around them is cast."""

import torch
from torch import nn


class Float32Constant(nn.Module):
    """A float32 constant that follows its module's device but not its dtype.

    `module.bfloat16()`, which DeepSpeed calls, rounds every floating buffer; so the constant is
    kept as its bits, in an integer buffer. It is not part of the state dict.
    """

    bits: torch.Tensor

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("bits", values.float().view(torch.int32), persistent=False)

    def forward(self) -> torch.Tensor:
        """The constant: float32, in the shape it was given."""
        return self.bits.view(torch.float32)
