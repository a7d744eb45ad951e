"""The results of small trainings."""

import torch
from safetensors.torch import load_file

from pipeline.config.tree import Config
from pipeline.training.checkpoints import last_checkpoint


def final_weights(config: Config) -> dict[str, torch.Tensor]:
    last = last_checkpoint(config.folder / "train" / "checkpoints")
    assert last is not None
    return load_file(last.weights_file)


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)
