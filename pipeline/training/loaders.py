"""The loaders of a training's splits, and the number of steps that they give."""

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.batches import media_loader
from pipeline.training.objectives import Objective
from pipeline.training.placing import decoders
from pipeline.training.rank_info import RankInfo
from pipeline.training.streams import stream_steps, training_lanes
from shards import ShardReader, ShardSet
from shards.lanes import Lanes
from shards.loader import ShardLoader

VALIDATION = "validation"


def steps_per_epoch(config: Config, shard_set: ShardSet) -> int:
    """Return the number of optimizer steps in an epoch.

    Samples that do not fill a whole batch are left for a later epoch. Streams leave none.

    Raises:
        UserError: The training split does not fill one batch.
        ShardError: `training.stream` is set, and the split has no streams.
    """
    if lanes := training_lanes(config):
        return stream_steps(lanes, shard_set)
    samples, batch_size = shard_set.num_samples("train"), config.training.batch_size
    if samples < batch_size:
        raise UserError(
            f"training.batch_size is {batch_size}, but the shard set has only {samples} training "
            "samples; lower training.batch_size"
        )
    return samples // batch_size


def train_loader(
    config: Config, objective: Objective, shard_set: ShardSet, rank_info: RankInfo
) -> ShardLoader:
    """Return the loader of the training split, shuffled anew in each epoch.

    Samples that do not fill a whole batch are left for a later epoch.
    """
    lanes = training_lanes(config)
    return _loader(config, objective, shard_set, rank_info, "train", lanes)


def validation_loader(
    config: Config, objective: Objective, shard_set: ShardSet, rank_info: RankInfo
) -> ShardLoader | None:
    """Return the loader of the validation split, each sample once; None if the set has none."""
    if VALIDATION not in shard_set.manifest.counts:
        return None
    lanes = training_lanes(config)
    lanes = lanes and Lanes(lanes.count // lanes.groups)
    return _loader(config, objective, shard_set, rank_info, VALIDATION, lanes)


def _loader(
    config: Config,
    objective: Objective,
    shard_set: ShardSet,
    rank_info: RankInfo,
    split: str,
    lanes: Lanes | None,
) -> ShardLoader:
    training, is_train = config.training, split == "train"
    return media_loader(
        ShardReader(shard_set, split, verify_samples=config.data.verify_samples),
        config.data.formats,
        target=objective.target,
        one_length=training.compile is not None,
        batch_size=config.micro_batch_size(rank_info.world_size),
        global_batch=config.global_micro_batch,
        rank=rank_info.rank,
        world_size=rank_info.world_size,
        seed=config.seed,
        shuffle=is_train,
        balance=training.balance_classes if is_train else 0.0,
        nodes=training.canonical_nodes,
        drop_last=is_train,
        num_workers=training.loader_workers,
        skip_corrupt=config.data.corrupt_samples == "skip",
        pin_memory=rank_info.device.type == "cuda",
        lanes=lanes,
        made_elsewhere=decoders(config.cluster),
    )
