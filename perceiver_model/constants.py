"""Constants that stay float32 when their module is cast."""

import torch
from torch import nn


class Float32Constant(nn.Module):
    """A float32 constant that follows the device of its module, but not its dtype.

    `module.bfloat16()`, which DeepSpeed calls, rounds every floating-point buffer. The constant is
    therefore stored as its bits in an integer buffer. It is not part of the state dict.
    """

    bits: torch.Tensor

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("bits", values.float().view(torch.int32), persistent=False)

    def forward(self) -> torch.Tensor:
        """Return the constant in float32, with its original shape."""
        return self.bits.view(torch.float32)
