"""The model of an MLflow run: its checkpoint, its card, and the set that it was trained on."""

from typing import Any

from pipeline.config.folders import Folder, folder_at, is_remote
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.model_input import fitted_media
from pipeline.media.format import Media
from pipeline.registry.run_shards import run_shards
from pipeline.registry.served.card import ModelCard
from pipeline.runs.records import read_run_record
from pipeline.runs.storage import exists
from pipeline.training.checkpoints import Checkpoint, read_checkpoint
from pipeline.training.objectives import objective_of
from shards import ShardSet


def is_run_folder(named: str) -> bool:
    """Return whether a user names the folder or URL of a run, and not a run or model in MLflow."""
    folder = folder_at(named)
    if is_remote(folder):
        return True
    return exists(folder) and ("/" in named or exists(folder / "stages"))


def recorded_run(folder: Folder) -> str:
    """Return the MLflow run whose folder this is."""
    for verb in ("train", "tune"):
        record = read_run_record(folder, verb)
        if record is not None and isinstance(record.result.get("run_id"), str):
            return str(record.result["run_id"])
    raise UserError(f"{folder}: is not the folder of a run; run 'perceiver train' first")


def checkpoint_of(run: Any) -> Checkpoint:
    """Return the best checkpoint of a run.

    Raises:
        UserError: The run has none, or it is damaged.
    """
    path = run.data.tags.get("perceiver.checkpoint")
    if path is None:
        raise UserError(
            f"{run.info.run_id}: has no checkpoint (its status is {run.info.status}); finish it "
            "with 'perceiver train'"
        )
    return read_checkpoint(folder_at(path))


def own_set(run: Any, config: Config, shards: str | None) -> ShardSet:
    """Return the set that a run was trained on.

    Args:
        run: The MLflow run.
        config: Its configuration, which says where remote shards are kept.
        shards: The whole address of the set, if it has a password or a signature.

    Raises:
        UserError: Another set lies there, or a password is missing.
        ShardError: No set lies there.
    """
    run_id, address = run.info.run_id, run.data.tags.get("perceiver.shards", config.shards_folder)
    shard_set = ShardSet.open(run_shards(run_id, address, shards), config.data.remote_reading)
    if shard_set.digest != run.data.tags.get("perceiver.shards_digest"):
        raise UserError(
            f"{address}: is not the shard set that run {run_id} was trained on; train on this set "
            "first"
        )
    return shard_set


def card_of(config: Config, shard_set: ShardSet) -> ModelCard:
    """Return the card of a training's model.

    Args:
        config: The configuration of the training.
        shard_set: The set that it was trained on.
    """
    formats = {
        name: fitted_media(fmt, shard_set.manifest.config)
        for name, fmt in config.data.formats.items()
    }
    media: Media = formats if len(formats) > 1 else next(iter(formats.values()))
    is_stream = config.training.stream is not None
    return ModelCard(objective_of(config, shard_set), media, is_stream)
