"""The identity of a shard set: all settings that determine its samples."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from perceiver_model.config_checks import flatten
from pipeline.config.base import differences
from pipeline.config.data import SPLITS, DataConfig, absolute
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.model_input import fitted_media
from pipeline.inputs.positions import position_specs
from pipeline.media import media_to_dict
from pipeline.media.registered import MODALITIES, modality
from shards import Manifest, PositionSpec
from shards.redaction import redacted, redacted_tree

OTHERWISE = (
    "Give this one another name (name=…) or place (shards=…), or replace the old one with --fresh"
)
_PREFIX = "data."
READING = ("allow", "max_file_bytes")
"""The fields that say what may be read. They protect the machine, and do not determine samples."""
_WITHOUT_EFFECT = frozenset(
    {
        "max_bad_fraction",
        "sandbox",
        "verify_samples",
        "corrupt_samples",
        "cache_folder",
        "cache_gigabytes",
        *READING,
    }
)


def set_identity(config: Config) -> dict[str, Any]:
    """Return everything that determines the samples besides the sources, in the types of JSON.

    It is part of the set's digest. So it does not contain the addresses of the sources: the same
    files give the same set wherever they lie.
    """
    data = config.tree()["data"]
    kept = data.keys() - _WITHOUT_EFFECT - source_addresses(config.data).keys()
    identity = {f"{_PREFIX}{key}": data[key] for key in kept}
    for name in MODALITIES:
        # Sets that are older than a modality do not name it. Their digests must stay the same.
        if identity[f"{_PREFIX}{name}"] is None and not modality(name).is_in_every_manifest:
            del identity[f"{_PREFIX}{name}"]
            identity[f"{_PREFIX}columns"].pop(name, None)
        else:
            fields = identity[f"{_PREFIX}{name}"]
            identity[f"{_PREFIX}{name}"] = modality(name).in_manifest(fields)
    if config.data.strict:
        # Sets that are older than this field do not have it. Their digests must stay the same.
        del identity[f"{_PREFIX}strict"]
    if config.data.group is None:
        del identity[f"{_PREFIX}group"]
    specs = [spec.to_dict() for spec in needed_positions(config)]
    return {**identity, "seed": config.seed, "positions": specs}


def needed_positions(config: Config) -> tuple[PositionSpec, ...]:
    """Return the Fourier position tables that the model reads from the set."""
    return () if config.model.autoregressive else position_specs(config.classifier(2))


def source_addresses(data: DataConfig) -> dict[str, str]:
    """Return the absolute path or the URL of each split that has its own source."""
    addresses = {split: getattr(data, split) for split in SPLITS}
    return {
        split: absolute(address) for split, address in addresses.items() if isinstance(address, str)
    }


def stored_addresses(data: DataConfig) -> dict[str, str]:
    """Return the same as `source_addresses`, without secrets."""
    return {split: redacted(address) for split, address in source_addresses(data).items()}


def stored_reading(data: DataConfig) -> dict[str, Any]:
    """Return the fields that say what may be read, without secrets."""
    return {name: redacted_tree(getattr(data, name)) for name in READING}


def refuse_other_identity(manifest: Manifest, identity: dict[str, Any], what: str) -> None:
    """Refuse to add to a set, or to accept it as done, if it was made with other settings.

    Args:
        manifest: The manifest of the set.
        identity: The identity that is wanted now.
        what: The name of the set, for the error.

    Raises:
        UserError: Fields differ; the text names them.
    """
    then, now = (flatten(comparable(tree)) for tree in (manifest.config, identity))
    if changed := differences(then, now):
        raise UserError(f"{what} was made with other settings: {changed}. {OTHERWISE}")


def comparable(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an identity without what any set of the same samples may have otherwise.

    That is what was fitted to the rows, which only a finished set has, and the position tables,
    which may be added to it.
    """
    free = {"positions", *(modality(name).fitted_key for name in MODALITIES)}
    return {key: value for key, value in identity.items() if key not in free}


def data_config(
    manifest: Manifest, addresses: Mapping[str, str], reading: Mapping[str, Any]
) -> DataConfig:
    """Return the section `data` that a set was made with.

    Args:
        manifest: The manifest of the set.
        addresses: The addresses of its sources, as from `source_addresses`.
        reading: The fields that say what may be read.

    Raises:
        UserError: Something other than this pipeline made the set.
    """
    fields = {
        key.removeprefix(_PREFIX): value
        for key, value in manifest.config.items()
        if key.startswith(_PREFIX)
    }
    try:
        return DataConfig.model_validate({**fields, **addresses, **reading}, strict=False)
    except ValueError as error:
        reason = redacted(" ".join(str(error).split()))[:200]
        raise UserError(
            f"the set's manifest does not say how it was made ({reason}); run 'perceiver "
            "preprocess' with its configuration instead"
        ) from None


def sandbox_settings(
    data: DataConfig, classes: tuple[str, ...], fitted: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of `pipeline.media.members.MemberMaker`.

    Args:
        data: The section `data` of the configuration.
        classes: The names of the classes.
        fitted: What was fitted to the training rows, by the keys of the manifest.
    """
    formats = {name: fitted_media(fmt, fitted) for name, fmt in data.formats.items()}
    return {
        "formats": {name: media_to_dict(fmt) for name, fmt in formats.items()},
        "allow_missing": list(data.allow_missing),
        "target": asdict(data.target),
        "classes": list(classes),
        "strict": data.strict,
    }
