"""Matrix products in fp8, by torchao: those of the attends that read latents alone.

Each row of both factors has a scale of its own (torchao's recipe `rowwise`), in the products of the
forward pass, of the gradient of the inputs and of that of the weights. Weights stay float32. The
first and the last products of a model (adapters, cross-attends, decoders) stay in the precision of
autocast.
"""

import importlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from perceiver_model.attention.multi_head import Attend

PACKAGE = "torchao"
HAS_FP8 = (8, 9)
"""The compute capability of the first GPUs with products of fp8, Ada and Hopper."""


def multiplies_fp8(device: torch.device) -> bool:
    """Return whether a device multiplies fp8 itself. Others emulate it.

    The device `meta` computes nothing, and stands for one that does.
    """
    if device.type == "meta":
        return True
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= HAS_FP8


def set_fp8_products(module: nn.Module, enabled: bool) -> None:
    """Let the attends of latents multiply in fp8, or in the precision of autocast again.

    The names of the parameters stay, and the parameters themselves do. On a device that does not
    multiply fp8, the factors are rounded to fp8 and multiplied in the precision of autocast: the
    results are those of fp8, and the speed is not.

    Args:
        module: A model or a part of one, on the device where it computes.
        enabled: Whether to multiply in fp8.

    Raises:
        ImportError: If torchao is not installed.
    """
    for attend in module.modules():
        if isinstance(attend, Attend) and attend.reads_latents:
            if enabled:
                _to_fp8(attend)
            else:
                _replace(attend, lambda layer: type(layer) is not nn.Linear, _as_torch)


def _to_fp8(attend: Attend) -> None:
    float8 = _torchao()
    device = next(attend.parameters()).device
    config = replace(
        float8.Float8LinearConfig.from_recipe_name("rowwise"),
        emulate=not multiplies_fp8(device),
        pad_inner_dim=True,  # the products of fp8 take multiples of 16
    )
    float8.convert_to_float8_training(
        attend, config=config, module_filter_fn=lambda layer, _: type(layer) is nn.Linear
    )


def _torchao() -> Any:
    # It warns of each of its GPU libraries that a machine cannot load, none of which is used here,
    # and torch warns of how it registers a class.
    loggers = [logging.getLogger(name) for name in (PACKAGE, "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        return importlib.import_module(f"{PACKAGE}.float8")
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _replace(
    module: nn.Module,
    wanted: Callable[[nn.Module], bool],
    made: Callable[[nn.Linear], nn.Linear],
) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            if wanted(child):
                setattr(module, name, made(child))
        else:
            _replace(child, wanted, made)


def _as_torch(layer: nn.Linear) -> nn.Linear:
    """Return torch's own linear layer with the same parameters."""
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain.train(layer.training)
