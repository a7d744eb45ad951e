"""What `training.precision` and `training.attention_path` mean for a model."""

import torch
from torch import nn

from cluster.strategy import Precision
from perceiver_model.attention.fp8 import multiplies_fp8, set_fp8_products
from perceiver_model.attention.multi_head import AttentionPath, set_attention_path
from perceiver_model.attention.residual import set_residual_dtype
from pipeline.errors import UserError


def products_in(precision: str) -> Precision:
    """Return the precision that a `training.precision` autocasts to.

    With `fp8`, this is the precision of the products that are not in fp8.
    """
    if precision in ("bf16", "bf16_autocast", "fp8"):
        return "bf16"
    return "fp16" if precision == "fp16" else "float32"


def compute_as(model: nn.Module, precision: str, attention_path: AttentionPath) -> None:
    """Let a model compute as a training does. The caller autocasts to `products_in`.

    Args:
        model: The model, on the device where it computes.
        precision: As `training.precision`: with `bf16` and `fp8`, the residual streams are
            bfloat16; with `fp8`, the latents' self-attends multiply in fp8.
        attention_path: As `training.attention_path`.

    Raises:
        UserError: The precision is `fp8`, and torchao is not installed.
    """
    set_attention_path(model, attention_path)
    set_residual_dtype(model, torch.bfloat16 if precision in ("bf16", "fp8") else None)
    try:
        set_fp8_products(model, precision == "fp8")
    except ImportError as error:
        raise UserError(
            f"training.precision: fp8 needs torchao ({error}): pip install "
            "'perceiver-pipeline[fp8]' on each machine that trains or evaluates"
        ) from None


def precision_notes(precision: str, device: torch.device) -> list[str]:
    """Return what a person should know of a precision on a device."""
    if precision != "fp8" or multiplies_fp8(device):
        return []
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    return [
        f"training.precision: fp8 is emulated, because {name} has no products of fp8: the losses "
        "are those of fp8, the speed is not"
    ]
