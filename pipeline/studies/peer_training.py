"""Trains a peer like the Perceiver of the same configuration: same batches, optimizer, schedule."""

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cluster.strategy import AUTOCAST_DTYPES
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.batches import inputs_on
from pipeline.plan.live_tensors import LiveTensors, Operation
from pipeline.studies.peer_inputs import reading_of
from pipeline.studies.peers.table import count_parameters, sized_peer
from pipeline.studies.trainings import test_accuracy, trained_samples
from pipeline.training.loaders import steps_per_epoch, train_loader
from pipeline.training.objectives import objective_of
from pipeline.training.optimizer import make_optimizer
from pipeline.training.precision import products_in
from pipeline.training.rank_info import RankInfo
from pipeline.training.schedule import learning_rate
from shards import ShardSet
from shards.loader import ShardBatch


class PeerTraining:
    """The training of a peer.

    Args:
        config: The configuration of the arm: the set, the Perceiver whose size counts, the section
            `training`, and the seed. It must not augment.
        name: The name of the peer.
    """

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.shard_set = ShardSet.open(config.shards_folder, config.data.remote_reading)
        self.objective = objective_of(config, self.shard_set)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.reading = reading_of(config, self.shard_set, self.objective, self.device)
        torch.manual_seed(config.seed)
        self.model: nn.Module = sized_peer(
            name, self.reading.shape, self.objective.num_parameters()
        )
        self.model.to(self.device)

    def batches(self) -> Any:
        """Return the loader of the training split, that of a training with this configuration."""
        alone = RankInfo(0, 0, 0, 1, self.device)
        return train_loader(self.config, self.objective, self.shard_set, alone)

    def logits(self, inputs: Any, mask: Any = None) -> torch.Tensor:
        """Return logits `[batch, classes]` of inputs and their mask, as `inputs_on` returns them.

        Only clouds of points have a mask.
        """
        masks = () if mask is None else (mask,)
        found: torch.Tensor = self.model(self.reading(inputs), *masks)
        return found

    def train(self) -> None:
        """Train for all epochs."""
        training = self.config.training
        optimizer = make_optimizer(self.model, training)
        steps, step = steps_per_epoch(self.config, self.shard_set), 0
        loader = self.batches()
        self.model.train()
        parts = training.gradient_accumulation_steps
        for epoch in range(training.epochs):
            loader.set_epoch(epoch)
            for number, batch in enumerate(loader, start=1):
                (self._loss(batch) / parts).backward()
                if number % parts:
                    continue
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, steps, training)
                if training.gradient_clipping is not None:
                    nn.utils.clip_grad_norm_(self.model.parameters(), training.gradient_clipping)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1

    def _loss(self, batch: ShardBatch) -> torch.Tensor:
        if batch.bad:
            raise UserError(f"{self.shard_set.location}: has training samples that cannot be read")
        inputs, mask = inputs_on(batch, self.config.data.formats, self.device)
        training = self.config.training
        dtype = AUTOCAST_DTYPES.get(products_in(training.precision))
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            logits = self.logits(inputs, mask)
        targets = batch.targets.to(self.device)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=training.label_smoothing)
        return loss + getattr(self.model, "penalty", 0.0)  # TabNet's masks have one

    def forward_flops(self) -> int:
        """Return the FLOPs of matrix products, convolutions and attention of one sample."""
        operations: list[Operation] = []
        self.model.eval()
        # The fast path of torch's encoder layers is one operation, whose FLOPs nobody counts.
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), LiveTensors(note=operations.append):
                self.logits(self.reading.blank())
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        return sum(operation.flops for operation in operations)


def train_peer(config: Config, name: str) -> dict[str, Any]:
    """Train a peer and test it. Returns the same as `train_perceiver`, without `run_id`."""
    started = time.time()
    peer = PeerTraining(config, name)
    peer.train()
    seconds = time.time() - started
    return {
        "accuracy": test_accuracy(config, peer.shard_set, peer.logits, peer.model),
        "parameters": count_parameters(peer.model),
        "forward_flops": peer.forward_flops(),
        "seconds": seconds,
        "samples_per_second": trained_samples(config, peer.shard_set) / seconds,
    }
