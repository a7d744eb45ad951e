"""The optimizer of a model's parameters, and the groups that they are in."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from cluster.fragments import whole_shape
from cluster.optimizers import OPTIMIZERS
from perceiver_model.attention.multi_head import MLP, Attend
from pipeline.config.training import TrainingConfig


def make_optimizer(
    model: nn.Module,
    config: TrainingConfig,
    rate_scales: Mapping[str, float] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """Build an optimizer that decays weights and latents, but not biases and norms.

    See Perceiver IO (arXiv 2107.14795), appendix H.

    Args:
        model: The model whose trainable parameters are optimized.
        config: The optimizer, the learning rate, the weight decay and the other hyperparameters.
        rate_scales: The factor of the learning rate of each parameter that does not have 1. Its
            parameter group has it as `learning_rate_scale`.
    """
    spec = OPTIMIZERS[config.optimizer]
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if _is_matrix(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if not _is_matrix(p)], "weight_decay": 0.0},
    ]
    if spec.splits_matrices:
        hidden = hidden_matrices(model)
        decayed = groups[0]["params"]
        groups[0]["params"] = [p for p in decayed if p not in hidden]
        matrices = [p for p in decayed if p in hidden]
        groups.append(groups[0] | {"params": matrices, "hidden_matrices": True})
    scale_of: dict[torch.Tensor, float] = {
        model.get_parameter(name): factor for name, factor in rate_scales.items()
    }
    groups = [part for group in groups for part in _by_scale(group, scale_of)]
    return spec.build([group for group in groups if group["params"]], config)


def _is_matrix(parameter: torch.Tensor) -> bool:
    """Return whether a parameter has two dimensions or more. Stage 3 may have divided it."""
    return len(whole_shape(parameter)) > 1


def _by_scale(
    group: dict[str, Any], scale_of: Mapping[torch.Tensor, float]
) -> list[dict[str, Any]]:
    """Divide a parameter group by the factors of the learning rate."""
    parts: dict[float, list[torch.Tensor]] = {}
    for parameter in group["params"]:
        parts.setdefault(scale_of.get(parameter, 1.0), []).append(parameter)
    return [
        group | {"params": params} | ({} if scale == 1 else {"learning_rate_scale": scale})
        for scale, params in parts.items()
    ]


def hidden_matrices(model: nn.Module) -> set[torch.Tensor]:
    """Return the weights of the linear layers in the model's attentions and their MLPs.

    Latents, positions, embeddings, convolutions and the last layer are none of them.
    """
    return {
        layer.weight
        for module in model.modules()
        if isinstance(module, Attend | MLP)
        for layer in module.children()
        if isinstance(layer, nn.Linear)
    }
