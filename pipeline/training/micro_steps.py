"""One micro-batch of a training: augmentation, forward, backward, and the sums for the metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pipeline.config.tree import Config
from pipeline.inputs.batches import inputs_on
from pipeline.training.augmentation.draws import step_seed
from pipeline.training.augmentation.modalities import ModalityDraws
from pipeline.training.augmentation.samples import augment_samples
from pipeline.training.bad_samples import BadSamples
from pipeline.training.objectives import Batch, Objective
from pipeline.training.objectives.carried import read_part
from pipeline.training.rank_info import RankInfo
from pipeline.training.samples import batch_of
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

    def run(self, batches: Sequence[ShardBatch], seed: int, micro: int) -> torch.Tensor:
        """Run forward and backward for one micro-batch.

        The loss is the weighted mean over the good samples of all ranks.

        Args:
            batches: The micro-batch; of streams, its parts in order.
            seed: The seed of the micro-batch.
            micro: The index of the micro-batch within its step.

        Returns:
            The sums over all ranks, float64 on the CPU, in the order of `no_sums`.
        """
        seeds = [seed, *(step_seed(seed, part) for part in range(1, len(batches)))]
        parts = [self._augmented(*each) for each in zip(batches, seeds, strict=True)]
        weights = [self.objective.loss_weights(samples) for samples in parts]
        bad = float(sum(len(batch.bad) for batch in batches))
        total_weight = torch.stack([each.sum() for each in weights]).sum()
        counts = self._sum_over_ranks([total_weight, torch.tensor(bad)])
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
        total = torch.stack(losses).sum()
        # DeepSpeed averages gradients over the ranks.
        self.engine.backward(total * self.rank_info.world_size / counts[0].clamp(min=1))
        if self.carried is not None:
            self.carried.groups[micro] = self.carried.groups[micro].detached()
        found = [total.detach(), *torch.stack(sums).sum(dim=0)]
        return torch.cat([self._sum_over_ranks(found), counts]).double().cpu()

    def _outputs(self, batch: ShardBatch, samples: Batch, micro: int) -> Any:
        """Return the model's outputs; of streams, from the latents that their rows carry."""
        if self.carried is None or self.recordings is None:
            return self.objective.outputs(self.engine, samples, training=True)
        firsts = rows_of(self.recordings.are_first(batch.numbers.numpy()), self.rank_info.device)
        outputs, self.carried.groups[micro] = read_part(
            self.objective, self.engine, samples, firsts, self.carried.groups[micro]
        )
        return outputs

    def _augmented(self, batch: ShardBatch, seed: int) -> Batch:
        """Return the batch as the objective takes it, on the device, changed at random."""
        target, device = self.objective.target, self.rank_info.device
        formats = self.config.data.formats
        inputs, mask = inputs_on(batch, formats, device)
        return augment_samples(
            batch_of(batch, inputs, mask, target, device, seed),
            self.config.training.augment,
            formats,
            has_masks=target == "mask",
            seed=seed,
            rank=self.rank_info.rank,
            world_size=self.rank_info.world_size,
        )

    def _sum_over_ranks(self, values: list[torch.Tensor]) -> torch.Tensor:
        summed = torch.stack([value.float().to(self.rank_info.device) for value in values])
        dist.all_reduce(summed)
        return summed
