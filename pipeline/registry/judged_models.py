"""The two models that a promotion compares, and what it finds."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.errors import UserError
from pipeline.inputs.batches import has_array
from pipeline.media.format import Media
from pipeline.registry.gate import Comparison
from pipeline.registry.outcomes import Outcomes, outcomes
from pipeline.registry.reading import Reading
from pipeline.registry.served.inference import Predictor
from pipeline.registry.slices import Places, Slice
from pipeline.registry.trained_on import TRAIN, TrainedOn, sample_digests
from pipeline.training.objectives import Objective
from shards import ShardSet

_COARSE = 0.5
"""The share of a table's training rows that equal another one, above which equal rows do not count
as the same row.
"""


@dataclass(frozen=True)
class Champion:
    """The model that an alias names.

    Attributes:
        name: The name of its registered model and its version, for people.
        predictor: The model.
        record: The digests of what it was trained on (`pipeline.registry.trained_on.TrainedOn`);
            None if that is not known any more.
    """

    name: str
    predictor: Predictor
    record: np.ndarray | None


@dataclass(frozen=True)
class Verdict:
    """Why a model may be promoted.

    Attributes:
        samples: The number of samples that it was judged on.
        left_out: The number of samples of the split that were not used.
        value: The mean of the selection metric over the samples used, such as the accuracy. A
            sample that cannot be read counts as wrong.
        champion_value: The champion's value on the same samples; None if there is no champion.
        comparison: The comparison; None if there was nothing to compare with, because there is no
            champion or it gives no finite value.
        interval: The 95% confidence interval of the value; None if there is none.
        worse: The parts of the samples on which it is significantly worse than the champion.
    """

    samples: int
    left_out: int
    value: float
    champion_value: float | None = None
    comparison: Comparison | None = None
    interval: tuple[float, float] | None = None
    worse: tuple[Slice, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A run's model and the data that judge it.

    Attributes:
        name: The name of the run, for people.
        predictor: The model.
        record: What it was trained on.
        shard_set: The shard set that judges it.
        split: The split of the set that decides.
        max_bad_fraction: The largest share of the split's samples that may be unreadable.
        verify_samples: The same as in `Reading`.
        skip_corrupt: The same as in `Reading`.
        stored: The formats of the set's samples; None if the model was trained on this set.
        own_set: The set that the model was trained on, if it is another one.
    """

    name: str
    predictor: Predictor
    record: TrainedOn
    shard_set: ShardSet
    split: str
    max_bad_fraction: float
    verify_samples: bool = True
    skip_corrupt: bool = True
    stored: Media | None = None
    own_set: ShardSet | None = None

    @cached_property
    def reading(self) -> Reading:
        """How the model reads the shard set."""
        media = self.predictor.card.media
        reads_target = has_array(self.objective.target)
        stored = media if self.stored is None else self.stored
        return Reading(stored, media, self.verify_samples, self.skip_corrupt, reads_target)

    @property
    def trained_set(self) -> ShardSet:
        """The set that the model was trained on."""
        return self.own_set or self.shard_set

    @property
    def objective(self) -> Objective:
        """What the model is trained for."""
        return self.predictor.card.objective

    @cached_property
    def outcomes(self) -> Outcomes:
        """The model's outcomes on the split.

        Raises:
            UserError: Too many samples cannot be read.
        """
        found = outcomes(self.predictor, self.shard_set, self.split, self.reading)
        bad, total = int((~found.readable).sum()), len(found.readable)
        if bad == total or bad / total > self.max_bad_fraction:
            raise UserError(
                f"{bad} of {total} samples of the {self.split} split cannot be read; run "
                "'perceiver verify', then 'perceiver preprocess' again"
            )
        return found

    @cached_property
    def known(self) -> np.ndarray:
        """Which samples the model was trained on, bool `[samples]`."""
        return np.isin(self.digests, self.record.digests)

    @cached_property
    def digests(self) -> np.ndarray:
        """The digest of each sample's content, `S32 [samples]`."""
        return sample_digests(self.shard_set, self.split, self.reading)

    def units(self, places: Places) -> np.ndarray:
        """Return the unit of the paired test of each sample, int64 `[samples]`.

        The samples of a group are one unit, and so are the parts of a file. Each row of a table is
        one, whatever it equals.
        """
        if places.groups is not None:
            return np.unique(places.groups.astype(str), return_inverse=True)[1]
        if self.reading.is_of_rows:
            return np.arange(len(self.digests))
        return np.unique(self.digests, return_inverse=True)[1]

    @cached_property
    def is_coarse(self) -> bool:
        """Whether so many rows of a table are equal that equal rows need not be the same one."""
        return self.reading.is_of_rows and self.split != TRAIN and self.record.repeated > _COARSE
