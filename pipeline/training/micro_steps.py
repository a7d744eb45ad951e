"""One micro-batch of a training: augmentation, forward, backward, and the sums for the metrics."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from pipeline.config.tree import Config
from pipeline.training.augmentation.draws import step_seed
from pipeline.training.augmentation.modalities import ModalityDraws
from pipeline.training.augmentation.samples import augment_samples
from pipeline.training.bad_samples import BadSamples
from pipeline.training.feed import MicroBatch
from pipeline.training.objectives import Batch, Objective
from pipeline.training.objectives.carried import read_part
from pipeline.training.rank_info import RankInfo
from pipeline.training.streams import CarriedLatents, rows_of
from shards.loader import ShardBatch
from shards.recordings import Recordings


@dataclass
class MicroSteps:
    """Runs the micro-batches of a training.

    Attributes:
        config: The configuration.
        objective: What the model is trained for.
        engine: DeepSpeed's engine around the model.
        rank_info: This process among all ranks.
        bad: The samples that could not be read.
        carried: What streams carry from part to part; None if samples are read alone.
        recordings: The recordings of the training split, if they are read as streams.
    """

    config: Config
    objective: Objective
    engine: Any
    rank_info: RankInfo
    bad: BadSamples
    carried: CarriedLatents | None
    recordings: Recordings | None

    def __post_init__(self) -> None:
        self._modality_draws = ModalityDraws(self.engine.module)

    def run(self, micro_batch: MicroBatch, seed: int, micro: int) -> torch.Tensor:
        """Run forward and backward for one micro-batch, without waiting for the device.

        The loss is the weighted mean over the good samples of all ranks.

        Args:
            micro_batch: The micro-batch.
            seed: The seed of the micro-batch.
            micro: The index of the micro-batch within its step.

        Returns:
            The sums of this rank, float64 on the device, in the order of `no_sums`.
        """
        batches = micro_batch.batches
        seeds = [seed, *(step_seed(seed, part) for part in range(1, len(batches)))]
        parts = [self._augmented(*each) for each in zip(micro_batch.samples, seeds, strict=True)]
        weights = [self.objective.loss_weights(samples) for samples in parts]
        own_weight = torch.stack([each.sum() for each in weights]).sum()
        total_weight = micro_batch.total_weight
        if total_weight is None:
            total_weight = self._sum_over_ranks(own_weight)
        losses, sums = [], []
        for batch, samples, of_part in zip(batches, parts, weights, strict=True):
            self.bad.note(batch)
            self._modality_draws.draw(
                len(samples.weights), seed=samples.seed, rank=self.rank_info.rank
            )
            outputs = self._outputs(batch, samples, micro)
            losses.append((self.objective.losses(outputs, samples, training=True) * of_part).sum())
            with torch.no_grad():
                sums.append(self.objective.sums(outputs, samples))
        loss = torch.stack(losses).sum()
        # DeepSpeed averages gradients over the ranks.
        self.engine.backward(loss * self.rank_info.world_size / total_weight.clamp(min=1))
        if self.carried is not None:
            self.carried.groups[micro] = self.carried.groups[micro].detached()
        bad = own_weight.new_full((), sum(len(batch.bad) for batch in batches))
        found = [loss.detach(), *torch.stack(sums).sum(dim=0), own_weight, bad]
        return torch.stack([each.float() for each in found]).double()

    def _outputs(self, batch: ShardBatch, samples: Batch, micro: int) -> Any:
        """Return the model's outputs; of streams, from the latents that their rows carry."""
        if self.carried is None or self.recordings is None:
            return self.objective.outputs(self.engine, samples, training=True)
        firsts = rows_of(self.recordings.are_first(batch.numbers.numpy()), self.rank_info.device)
        outputs, self.carried.groups[micro] = read_part(
            self.objective, self.engine, samples, firsts, self.carried.groups[micro]
        )
        return outputs

    def _augmented(self, samples: Batch, seed: int) -> Batch:
        """Return the samples changed at random."""
        return augment_samples(
            replace(samples, seed=seed),
            self.config.training.augment,
            self.config.data.formats,
            has_masks=self.objective.target == "mask",
            seed=seed,
            rank=self.rank_info.rank,
            global_batch=self.config.global_micro_batch,
        )

    def _sum_over_ranks(self, weight: torch.Tensor) -> torch.Tensor:
        total = weight.float()
        if self.rank_info.world_size > 1:
            total = total.clone()
            dist.all_reduce(total)
        return total
