"""Finds the shard set that was made from a configuration's data, under any name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceiver_model.config_checks import flatten
from pipeline.config.base import differences
from pipeline.config.folders import folder_at, is_remote
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.identity import (
    comparable,
    needed_positions,
    set_identity,
    source_addresses,
)
from pipeline.preprocess.ledger import ledger_addresses
from pipeline.runs.console import Console
from pipeline.runs.storage import exists
from shards import ShardError, ShardSet
from shards.redaction import without_secrets


def with_shards(config: Config, console: Console) -> Config:
    """Return the configuration with the path of its shard set filled in.

    A set belongs to its data, not to a name. If `shards` is null and `output/name/shards` does not
    exist, this function looks in `output/*/shards` for a set from the same sources with the same
    settings. The seed may differ, as it may for a set in the run's own folder. A set with the same
    seed is preferred.

    Args:
        config: The configuration.
        console: The console that reports a set found under another name.

    Raises:
        UserError: There is no such set, or there are several different ones.
    """
    if config.shards is not None or exists(folder_at(config.shards_folder)):
        return config
    if is_remote(config.folder):
        raise UserError(
            f"{config.shards_folder}: there is no shard set; run 'perceiver preprocess' with this "
            "configuration first, or name a set with shards=…"
        )
    identity = set_identity(config)
    found: dict[Path, ShardSet] = {}
    others: list[str] = []
    for folder in sorted(Path(config.output).glob("*/shards")):
        digest, addresses = ledger_addresses(folder)
        if _named(addresses) != _named(source_addresses(config.data)):
            continue
        try:
            shard_set = ShardSet.open(folder)
        except ShardError:
            continue
        if shard_set.digest != digest:  # the ledger of an older set, left by a killed run
            continue
        if differs := _difference(shard_set.manifest.config, identity):
            others.append(f"{folder} holds the same data, made with other settings: {differs}")
        elif not all(map(shard_set.holds, needed_positions(config))):
            others.append(
                f"{folder} holds the same data without this model's Fourier features: 'perceiver "
                f"preprocess' with shards={folder} adds them"
            )
        else:
            found[folder] = shard_set
    same_seed = {
        folder: shard_set
        for folder, shard_set in found.items()
        if shard_set.manifest.config.get("seed") == config.seed
    }
    found = same_seed or found
    if not found:
        hint = f" ({others[0]})" if others else ""
        raise UserError(
            f"{config.shards_folder}: there is no shard set, and none of this data in "
            f"{config.output}{hint}; run 'perceiver preprocess' with this configuration first, or "
            "name a set with shards=…"
        )
    if len({shard_set.digest for shard_set in found.values()}) > 1:
        several = ", ".join(map(str, found))
        raise UserError(
            f"{config.output}: several shard sets of this data differ: {several}; name one with "
            "shards=…"
        )
    folder = next(iter(found))
    console.notice(f"shard set {folder}: was made from this data under another name")
    return config.model_copy(update={"shards": str(folder)})


def _named(addresses: Mapping[str, str]) -> dict[str, str]:
    """Return the addresses without secrets: a new signature does not make a new source."""
    return {split: without_secrets(address) for split, address in addresses.items()}


def _difference(made: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """Return how the settings of two sets differ, apart from the seed; None if they are equal."""
    then, now = (flatten(comparable(tree)) for tree in (made, wanted))
    then.pop("seed", None)
    now.pop("seed", None)
    return differences(then, now)
