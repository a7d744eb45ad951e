"""The settings that determine a shard set's samples, and those that a decoder is given."""

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
from shards import Manifest
from shards.redaction import redacted, redacted_tree

OTHERWISE = (
    "Give this one another name (name=…) or place (shards=…), or replace the old one with --fresh"
)
_PREFIX = "data."
READING = ("allow", "max_file_bytes")
"""Fields of what may be read: of the machine's safety, not of the samples."""
_WITHOUT_EFFECT = frozenset(
    {"max_bad_fraction", "sandbox", "verify_samples", "corrupt_samples", *READING}
)


def set_identity(config: Config) -> dict[str, Any]:
    """All that determines the samples beside the sources, as JSON holds it.

    It is part of the set's digest, so the places of the sources are not in it: the same files give
    the same set wherever they lie.
    """
    data = config.tree()["data"]
    kept = data.keys() - _WITHOUT_EFFECT - source_places(config.data).keys()
    identity = {f"{_PREFIX}{key}": data[key] for key in kept}
    for name in MODALITIES:
        # Sets that are older than a modality say nothing of it: their digests stay.
        if identity[f"{_PREFIX}{name}"] is None and not modality(name).is_in_every_manifest:
            del identity[f"{_PREFIX}{name}"]
            identity[f"{_PREFIX}columns"].pop(name, None)
    if config.data.strict:
        # As in the manifests of sets that are older than the field: their digests stay.
        del identity[f"{_PREFIX}strict"]
    specs = [spec.to_dict() for spec in position_specs(config.classifier(2))]
    return {**identity, "seed": config.seed, "positions": specs}


def source_places(data: DataConfig) -> dict[str, str]:
    """The splits that have a place of their own, and these: absolute paths, or URLs."""
    places = {split: getattr(data, split) for split in SPLITS}
    return {split: absolute(place) for split, place in places.items() if isinstance(place, str)}


def stored_places(data: DataConfig) -> dict[str, str]:
    """As `source_places`, without secrets."""
    return {split: redacted(place) for split, place in source_places(data).items()}


def stored_reading(data: DataConfig) -> dict[str, Any]:
    """The fields of what may be read, without secrets."""
    return {name: redacted_tree(getattr(data, name)) for name in READING}


def refuse_other_identity(manifest: Manifest, identity: dict[str, Any], what: str) -> None:
    """Refuse to add to, or to pass off as done, what other settings made.

    Raises:
        UserError: names the fields that differ.
    """
    then, now = (flatten(comparable(tree)) for tree in (manifest.config, identity))
    if changed := differences(then, now):
        raise UserError(f"{what} was made with other settings: {changed}. {OTHERWISE}")


def comparable(identity: dict[str, Any]) -> dict[str, Any]:
    """Settings without what the training rows told, which only a set that is made has."""
    fitted = {modality(name).fitted_key for name in MODALITIES}
    return {key: value for key, value in identity.items() if key not in fitted}


def data_config(
    manifest: Manifest, places: Mapping[str, str], reading: Mapping[str, Any]
) -> DataConfig:
    """The section `data` that a set was made with.

    Args:
        places: of the set's sources, as `source_places` gives them.
        reading: the fields of what may be read.

    Raises:
        UserError: the set was made by something else.
    """
    fields = {
        key.removeprefix(_PREFIX): value
        for key, value in manifest.config.items()
        if key.startswith(_PREFIX)
    }
    try:
        return DataConfig.model_validate({**fields, **places, **reading}, strict=False)
    except ValueError as error:
        reason = redacted(" ".join(str(error).split()))[:200]
        raise UserError(
            f"the set's manifest does not say how it was made ({reason}); run 'perceiver "
            "preprocess' with its configuration instead"
        ) from None


def sandbox_settings(
    data: DataConfig, classes: tuple[str, ...], fitted: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of `pipeline.media.members.MemberMaker`.

    Args:
        fitted: what the training rows told, by the manifest's keys.
    """
    formats = {name: fitted_media(fmt, fitted) for name, fmt in data.formats.items()}
    return {
        "formats": {name: media_to_dict(fmt) for name, fmt in formats.items()},
        "allow_missing": list(data.allow_missing),
        "target": asdict(data.target),
        "classes": list(classes),
        "strict": data.strict,
    }
