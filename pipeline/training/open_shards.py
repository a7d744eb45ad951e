"""The shard set of a training, checked against the configuration."""

from pipeline.config.objectives import OBJECTIVE_CONFIGS
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.positions import load_positions
from pipeline.media.registered import MODALITIES, modality
from pipeline.training.backbone import check_backbone
from pipeline.training.objectives import objective_of
from shards import ShardSet


def open_shards(config: Config) -> ShardSet:
    """Open the configuration's shard set, and check that the model can be trained on it.

    Raises:
        UserError: No objective is trained on such targets, or the set was made with another
            modality or format.
        ShardError: There is no set, or its Fourier configuration differs from the model's.
    """
    if config.trained_for is None:
        kinds = ", ".join(each().kind for each in OBJECTIVE_CONFIGS if "none" in each.targets)
        raise UserError(
            f"objective.kind is missing: data.target.kind is {config.data.target.kind!r}; give one "
            f"of {kinds}"
        )
    try:
        config.trained_for.check(config)
    except ValueError as error:
        raise UserError(str(error)) from None
    shard_set = ShardSet.open(config.shards_folder, config.data.remote_reading)
    check_format(config, shard_set)
    try:
        objective = objective_of(config, shard_set)
    except ValueError as error:
        raise UserError(f"{config.shards_folder}: {error}") from None
    load_positions(shard_set, objective.model_config)
    check_backbone(config.model, getattr(objective.model_config, "input", None))
    return shard_set


def check_format(config: Config, shard_set: ShardSet) -> None:
    """Check that a shard set was made with the modalities and formats of the configuration.

    Raises:
        UserError: It was made with others. The message names the first difference.
    """
    made = shard_set.manifest.config
    data = config.tree()["data"]
    wanted = {f"data.{key}": modality(key).in_manifest(data[key]) for key in MODALITIES}
    for field, value in wanted.items():
        if made.get(field) != value:
            raise UserError(
                f"{config.shards_folder}: was made with {field}={made.get(field)}, the "
                f"configuration has {value}; run 'perceiver preprocess' again, or mend {field}"
            )
