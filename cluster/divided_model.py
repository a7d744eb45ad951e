"""Build a model of which, at ZeRO stage 3, no rank ever holds more than a part and some modules.

`deepspeed.zero.Init` as a context divides every module as soon as it is built, and so prevents a
module from initializing the weights of its own layers. It also draws random numbers on the GPU,
so the initial weights would differ from those of the other stages. Here, modules of some classes
are divided when they become part of another module: they are built on the CPU, whole, one after the
other, and their weights are the same bits as at every other stage.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.modules.module import register_module_module_registration_hook

from cluster.deepspeed_engine import prepare_deepspeed
from cluster.strategy import Strategy


@contextlib.contextmanager
def divided_as_built(
    strategy: Strategy, num_parameters: int, classes: Sequence[type[torch.nn.Module]]
) -> Iterator[None]:
    """Divide the modules of some classes among the ranks while a model is built in the body.

    Nothing is divided below stage 3. All ranks must build the same model.

    Args:
        strategy: The strategy of the engine that will train the model.
        num_parameters: The number of the model's parameters.
        classes: The classes whose modules hold most of the weights. No module may change the
            weights of a part that has such a class.
    """
    if strategy.zero_stage < 3:
        yield
        return
    import deepspeed

    prepare_deepspeed()
    settings = strategy.while_built().to_deepspeed(num_parameters)

    def divide(parent: torch.nn.Module, name: str, part: torch.nn.Module | None) -> None:
        if isinstance(part, tuple(classes)):
            deepspeed.zero.Init(module=part, config_dict_or_path=settings)

    hook = register_module_module_registration_hook(divide)
    try:
        yield
    finally:
        hook.remove()


def fill_own(parameter: Any, read: Callable[[int, int], torch.Tensor]) -> None:
    """Fill what this rank holds of a tensor of a new model, which may be divided.

    Args:
        parameter: The parameter or buffer.
        read: Returns a range of the flattened whole values, `[length]`, given its start and length.
            Nothing else is read.
    """
    with torch.no_grad():
        if not hasattr(parameter, "ds_tensor"):
            parameter.copy_(read(0, parameter.numel()).reshape(parameter.shape))
            return
        start = parameter.ds_tensor.numel() * dist.get_rank()
        length = min(parameter.ds_tensor.numel(), parameter.ds_numel - start)
        if length > 0:
            parameter.ds_tensor.narrow(0, 0, length).copy_(read(start, length))
