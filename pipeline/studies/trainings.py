"""An arm that is a training of this pipeline: trained and tested in the calling process."""

from typing import Any

import torch

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.batches import inputs_on
from pipeline.inputs.positions import load_positions
from pipeline.runs.console import Console
from pipeline.studies.sets import split_loader
from pipeline.training.checkpoint_files import load_weights
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.loaders import steps_per_epoch
from pipeline.training.objectives import objective_of
from pipeline.training.precision import compute_as
from pipeline.training.train import train
from shards import ShardSet


def train_perceiver(config: Config, console: Console) -> dict[str, Any]:
    """Train the configuration's Perceiver, and test its last checkpoint.

    Returns:
        The numbers of `trained_perceiver`, and `accuracy` on the test split.
    """
    trained, shard_set, model = trained_perceiver(config, console)
    return {"accuracy": test_accuracy(config, shard_set, model, model), **trained}


def trained_perceiver(
    config: Config, console: Console
) -> tuple[dict[str, Any], ShardSet, torch.nn.Module]:
    """Train the configuration's Perceiver.

    Returns:
        `parameters`, `forward_flops` (of one sample), `seconds` (of the training, with its start),
            `samples_per_second` (of the same time), and `run_id`.
        The set.
        The model with the weights of the last checkpoint.
    """
    trained = train(config, console)
    shard_set = ShardSet.open(config.shards_folder, config.data.remote_reading)
    objective = objective_of(config, shard_set)
    model = objective.build_model(load_positions(shard_set, objective.model_config))
    checkpoint = last_checkpoint(config.folder / "train" / "checkpoints")
    assert checkpoint is not None  # every training saves one at its end
    load_weights(model, checkpoint.load_model(), str(checkpoint.path))
    compute_as(model, config.training.precision, config.training.attention_path)
    numbers = {
        "parameters": trained["parameters"],
        "forward_flops": trained["forward_flops"],
        "seconds": trained["seconds"],
        "samples_per_second": trained_samples(config, shard_set) / trained["seconds"],
        "run_id": trained["run_id"],
    }
    return numbers, shard_set, model


def trained_samples(config: Config, shard_set: ShardSet) -> int:
    """Return how many samples a training takes, each as often as it takes it."""
    steps = steps_per_epoch(config, shard_set) * config.training.epochs
    return steps * config.training.batch_size


@torch.inference_mode()
def test_accuracy(
    config: Config, shard_set: ShardSet, logits: Any, model: Any, split: str = "test"
) -> float:
    """Return the share of the test split whose largest logit is that of its class.

    Args:
        config: The configuration of the arm.
        shard_set: The set.
        logits: Returns logits `[batch, classes]` of inputs and their mask, as `inputs_on` returns
            them.
        model: The module, which is moved to the device and to evaluation mode.
        split: The split.

    Raises:
        UserError: A sample cannot be read. An answer of another number of samples would not be
            comparable.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    right = total = 0
    for batch in split_loader(config, shard_set, split):
        if batch.bad:
            raise UserError(
                f"{shard_set.location}: the {split} split has samples that cannot be read"
            )
        inputs, mask = inputs_on(batch, config.data.formats, device)
        there = batch.weights > 0  # the last batch is filled up
        right += int(((logits(inputs, mask).argmax(dim=1).cpu() == batch.targets) & there).sum())
        total += int(there.sum())
    return right / total
