"""A worker of Ray Train that reports where it runs and what it has."""

import os
from typing import Any


def placed_worker(variables: list[str]) -> list[dict[str, Any]]:
    """Return, of every worker by rank, its machine, resources, variables and patience."""
    import ray
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _get_default_group

    context = ray.get_runtime_context()
    backend = _get_default_group()._get_backend(torch.device("cpu"))
    own = {
        "node": context.get_node_id(),
        "resources": context.get_assigned_resources(),
        "variables": {name: os.environ.get(name) for name in variables},
        "timeout": backend.options._timeout.total_seconds(),
    }
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found
