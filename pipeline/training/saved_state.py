"""What a checkpoint holds of a training on this rank, and how a training takes it up again."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from cluster.engine_state import in_memory, restore_state, saved_fragments
from cluster.fragments import Fragment, own_share, whole_shape
from pipeline.errors import UserError
from pipeline.training.checkpoint_files import Checkpoint, check_shapes
from pipeline.training.checkpoint_state import AVERAGE, CARRIED, MOMENTS, WEIGHTS
from pipeline.training.ema import WeightAverage
from pipeline.training.rank_info import RankInfo
from pipeline.training.streams import CarriedLatents


def own_state(
    engine: Any,
    average: WeightAverage | None,
    carried: CarriedLatents | None,
    rank_info: RankInfo,
) -> dict[str, AbstractContextManager[list[Fragment]]]:
    """Return what this rank saves of each kind of tensors, to be loaded while it is entered.

    Args:
        engine: The engine.
        average: The moving average of the weights, or None.
        carried: What streams carry, or None.
        rank_info: This process among all ranks.
    """

    def share(fragments: list[Fragment]) -> list[Fragment]:
        return own_share(fragments, rank_info.rank, rank_info.world_size)

    @contextlib.contextmanager
    def averaged(average: WeightAverage) -> Iterator[list[Fragment]]:
        with average.fragments() as fragments:
            yield share(fragments)

    @contextlib.contextmanager
    def held(fragments: list[Fragment]) -> Iterator[list[Fragment]]:
        with in_memory(engine):
            yield share(fragments)

    weights, moments = saved_fragments(engine)
    found: dict[str, AbstractContextManager[list[Fragment]]] = {
        WEIGHTS: held(weights),
        MOMENTS: held(moments),
    }
    if carried is not None and (rows := carried.fragments()):
        found[CARRIED] = contextlib.nullcontext(rows)
    if average is not None:
        found[AVERAGE] = averaged(average)
    return found


def restore_training(engine: Any, checkpoint: Checkpoint, average: WeightAverage | None) -> None:
    """Take up the weights, the moments and the average of a checkpoint.

    All ranks must call this (a collective). Each reads only what it holds.

    Args:
        engine: A new engine of the same model, or one that has taken steps.
        checkpoint: The checkpoint.
        average: The moving average of the weights, or None.

    Raises:
        UserError: The checkpoint is not one of this model, cannot be read, or has no average.
        ClusterError: The moments are another optimizer's.
    """
    where = str(checkpoint.path)
    weights, moments = checkpoint.tensors(WEIGHTS), checkpoint.tensors(MOMENTS)
    averaged = checkpoint.tensors(AVERAGE)
    if weights is None:
        raise UserError(f"{where}: has no weights; this checkpoint cannot be used")
    if average is not None and averaged is None:
        raise UserError(
            f"{where}: has no moving average of the weights, and training.ema_decay is set; train "
            "again with --fresh"
        )
    found = {name: tensor.shape for name, tensor in weights.tensors.items()}
    check_shapes(_own_shapes(engine.module), found, where)
    with contextlib.ExitStack() as stack:
        for tensors in filter(None, (weights, moments, averaged)):
            stack.enter_context(tensors)
        restore_state(engine, weights, moments, step=checkpoint.state.updates)
        if average is not None and averaged is not None:
            average.restore(averaged)


def _own_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    parameters = dict(model.named_parameters())
    shapes = {name: whole_shape(parameter) for name, parameter in parameters.items()}
    return {
        name: shapes.get(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()
    }
