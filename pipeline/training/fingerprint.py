"""What determines the weights of a training, so that it resumes only as what it was."""

from dataclasses import MISSING, fields
from typing import Any

from cluster.deepspeed_keys import keys_of_weights
from perceiver_model.config_checks import flatten
from pipeline.config.model import ModelConfig
from pipeline.config.objectives import default_objective
from pipeline.config.training import TrainingConfig
from pipeline.config.tree import Config
from pipeline.training.backbone import weights_fingerprint
from shards import ShardSet

DEEPSPEED = "training.deepspeed"
PRECISIONS = {"bf16": "bf16, residual stream too", "bf16_autocast": "bf16"}
"""How records name a precision. Older ones knew `bf16_autocast` alone, and called it `bf16`."""
SAME_TO_ROUNDING = frozenset(
    {
        "training.zero_stage",
        "training.gradient_accumulation_steps",
        "training.activation_checkpointing",
        "training.attention_path",
        "training.compile",
        "training.offload.optimizer",
        "training.offload.parameters",
        "training.offload.nvme_path",
        "training.overlap_communication",
        DEEPSPEED,
    }
)
"""Fields that change how a training is computed, but its weights only by rounding."""
DEFAULTS = flatten(
    {
        "model": ModelConfig().model_dump(mode="json"),
        "training": TrainingConfig().model_dump(mode="json"),
    }
)
"""The default values of the fields that determine the weights, without those of adapters."""


def training_fingerprint(
    config: Config, shard_set: ShardSet, init_sha256: str | None = None
) -> dict[str, Any]:
    """Return everything that determines the weights.

    Where the training runs, and on how many workers, is not part of it. The fields in
    `SAME_TO_ROUNDING` are included so that a change can be reported.

    Args:
        config: The configuration.
        shard_set: The shard set.
        init_sha256: The digest of the weights of `model.init`, which count instead of their place.
    """
    tree = config.tree()
    chosen = {key: tree[key] for key in ("seed", "model", "training")}
    if init := config.model.init:
        chosen["model"] = {key: value for key, value in tree["model"].items() if key != "init"}
        chosen |= {
            "model.init.sha256": init_sha256,
            "model.init.freeze": sorted(init.freeze),
            "model.init.learning_rate_scale": sorted(map(list, init.learning_rate_scale.items())),
        }
    ignored = {"training.log_steps", "training.loader_workers", "training.checkpoint_steps"}
    if config.training.on_bad_step == "rollback":  # to the last checkpoint
        ignored.remove("training.checkpoint_steps")
    flat = {key: value for key, value in flatten(chosen).items() if key not in ignored}
    flat = {key: value for key, value in flat.items() if not key.startswith(f"{DEEPSPEED}.")}
    precision = config.training.precision
    flat["training.precision"] = PRECISIONS.get(precision, precision)
    rounded, others = keys_of_weights(config.training.deepspeed)
    flat |= {DEEPSPEED: rounded} if rounded else {}
    flat |= {f"{DEEPSPEED}.{key}": value for key, value in others.items()}
    flat |= weights_fingerprint(config.model)
    return {**flat, **_objective_fields(config), "shards.digest": shard_set.digest}


def default_values(config: Config) -> dict[str, Any]:
    """Return the default values of the fields that determine the weights.

    An older record lacks the fields that were added after it, and was made with their defaults.
    """
    adapters = {"model.adapter": config.model.adapter}
    adapters |= {
        f"model.modalities.{name}.adapter": part.adapter
        for name, part in config.model.modalities.items()
    }
    return DEFAULTS | {
        f"{path}.{field.name}": list(default) if isinstance(default, tuple) else default
        for path, adapter in adapters.items()
        if adapter is not None
        for field in fields(adapter)
        if (default := field.default) is not MISSING
    }


def _objective_fields(config: Config) -> dict[str, Any]:
    """Return the objective's fields that differ from the objective that the targets imply.

    A training that is older than the section `objective` has none of them.
    """
    assert config.trained_for is not None
    fields = flatten({"objective": config.trained_for.model_dump(mode="json")})
    implied = default_objective(config.data.target.kind)
    default = flatten({"objective": implied.model_dump(mode="json")}) if implied else {}
    return {key: value for key, value in fields.items() if default.get(key, ...) != value}


def same_to_rounding(config: Config) -> frozenset[str]:
    """Return the fields that may change between two launches of this training."""
    if config.training.stream is None:
        return SAME_TO_ROUNDING
    # Rows without a part do not count in the mean of their micro-batch, and not all have some.
    return SAME_TO_ROUNDING - {"training.gradient_accumulation_steps"}
