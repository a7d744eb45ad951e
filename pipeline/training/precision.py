"""What `training.precision` and `training.attention_path` mean for a model."""

import torch
from torch import nn

from cluster.strategy import Precision
from perceiver_model.attention.multi_head import AttentionPath, set_attention_path
from perceiver_model.attention.residual import set_residual_dtype


def products_in(precision: str) -> Precision:
    """Return the precision of the matrix products of a `training.precision`."""
    if precision in ("bf16", "bf16_autocast"):
        return "bf16"
    return "fp16" if precision == "fp16" else "float32"


def compute_as(model: nn.Module, precision: str, attention_path: AttentionPath) -> None:
    """Let a model compute as a training does. The caller autocasts to `products_in`.

    Args:
        model: The model.
        precision: As `training.precision`: with `bf16`, the residual streams are bfloat16.
        attention_path: As `training.attention_path`.
    """
    set_attention_path(model, attention_path)
    set_residual_dtype(model, torch.bfloat16 if precision == "bf16" else None)
