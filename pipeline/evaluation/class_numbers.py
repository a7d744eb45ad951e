"""The classes of a set as the model numbers them: a set may have fewer, in another order."""

from dataclasses import dataclass, replace

import torch

from pipeline.errors import UserError
from pipeline.inputs.batches import TARGET
from shards.loader import ShardBatch

_UNLABELLED = 255
"""The number of pixels without a class, as `pipeline.media.image.masks.UNLABELLED`."""


@dataclass(frozen=True)
class Renumbering:
    """How the set's numbers of classes become those of the model.

    Attributes:
        target: The kind of the targets.
        numbers: The model's number of each class of the set.
        num_classes: The number of the model's classes.
    """

    target: str
    numbers: tuple[int, ...]
    num_classes: int

    @classmethod
    def between(
        cls, target: str, stored: tuple[str, ...], known: tuple[str, ...], where: str
    ) -> "Renumbering":
        """Return the renumbering of a set for a model.

        Args:
            target: The kind of the targets.
            stored: The names of the set's classes.
            known: The names of the model's classes; empty if the model has none.
            where: What errors call the set.

        Raises:
            UserError: The set has a class that the model does not know.
        """
        if not known:
            return cls(target, (), 0)
        if unknown := [name for name in stored if name not in known]:
            some = f"{', '.join(unknown[:5])}{' …' * (len(unknown) > 5)}"
            raise UserError(
                f"{where}: has the classes {some}, which the model does not know; name a set of "
                "the model's own classes"
            )
        return cls(target, tuple(map(known.index, stored)), len(known))

    def of(self, batch: ShardBatch) -> ShardBatch:
        """Return a batch whose targets have the model's numbers."""
        if self.numbers == tuple(range(self.num_classes)):
            return batch
        numbers = torch.tensor(self.numbers, dtype=torch.int64)
        if self.target == "multi_label":
            marks = batch.fields[TARGET]
            renumbered = marks.new_zeros(len(marks), self.num_classes)
            renumbered[:, numbers] = marks
            return self._with_array(batch, renumbered)
        if self.target == "mask":
            table = torch.full((256,), _UNLABELLED, dtype=torch.uint8)
            table[: len(numbers)] = numbers.to(torch.uint8)
            return self._with_array(batch, table[batch.fields[TARGET].long()])
        known = torch.cat([numbers, torch.tensor([-1])])  # -1 stays -1
        return replace(batch, targets=known[batch.targets])

    @staticmethod
    def _with_array(batch: ShardBatch, targets: torch.Tensor) -> ShardBatch:
        return replace(batch, fields={**batch.fields, TARGET: targets})
