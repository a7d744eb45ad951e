"""Judge a run's model against the champion, on samples of a split that neither was trained on."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.config.tree import RegistryConfig
from pipeline.errors import GateRefusedError, UserError
from pipeline.inputs.batches import has_array
from pipeline.registry.gate import Comparison, samples_needed
from pipeline.registry.outcomes import Outcomes, outcomes, weights_not_finite
from pipeline.registry.reading import Reading, other_input
from pipeline.registry.served.inference import Predictor
from pipeline.registry.trained_on import TRAIN, TrainedOn, sample_digests
from pipeline.runs.console import Console
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
    """

    samples: int
    left_out: int
    value: float
    champion_value: float | None = None
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Candidate:
    """A run's model and the data that judge it.

    Attributes:
        name: The name of the run, for people.
        predictor: The model.
        record: What it was trained on.
        shard_set: The shard set that it was trained on.
        split: The split of the set that decides.
        max_bad_fraction: The largest share of the split's samples that may be unreadable.
        verify_samples: The same as in `Reading`.
        skip_corrupt: The same as in `Reading`.
    """

    name: str
    predictor: Predictor
    record: TrainedOn
    shard_set: ShardSet
    split: str
    max_bad_fraction: float
    verify_samples: bool = True
    skip_corrupt: bool = True

    @cached_property
    def reading(self) -> Reading:
        """How the model reads its own shard set."""
        media = self.predictor.card.media
        reads_target = has_array(self.objective.target)
        return Reading(media, media, self.verify_samples, self.skip_corrupt, reads_target)

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
        return np.isin(
            sample_digests(self.shard_set, self.split, self.reading), self.record.digests
        )

    @cached_property
    def is_coarse(self) -> bool:
        """Whether so many rows of a table are equal that equal rows need not be the same one."""
        return self.reading.is_of_rows and self.split != TRAIN and self.record.repeated > _COARSE


def judge(
    candidate: Candidate, champion: Champion | None, rules: RegistryConfig, console: Console
) -> Verdict:
    """Judge a run's model.

    Args:
        candidate: The run's model.
        champion: The champion that it must beat; None if there is none.
        rules: By how much, and how surely, it must be better.
        console: It shows what is left out, and which models give values that are not finite.

    Raises:
        GateRefusedError: The model does not beat the champion, or gives values that are not finite.
        UserError: The two models cannot be compared.
    """
    _refuse_what_is_not_finite(candidate)
    known = np.zeros_like(candidate.known) if candidate.is_coarse else candidate.known
    unusable = ~candidate.outcomes.readable & np.isinf(candidate.objective.worst)
    if candidate.is_coarse:
        console.notice(
            f"{candidate.known.sum()} of {len(known)} rows of the {candidate.split} split equal "
            f"training rows, as {candidate.record.repeated:.0%} of the training rows equal each "
            "other: equal rows need not be the same one here, so all count"
        )
    if champion is None:
        _say_left_out(candidate, {"this run": known}, console)
        return _verdict(candidate, ~known & ~unusable)
    return _against(candidate, known, unusable, champion, rules, console)


def _against(
    candidate: Candidate,
    known: np.ndarray,
    unusable: np.ndarray,
    champion: Champion,
    rules: RegistryConfig,
    console: Console,
) -> Verdict:
    shard_set, split = candidate.shard_set, candidate.split
    media = champion.predictor.card.media
    theirs_is, ours_is = champion.predictor.card.objective.name, candidate.objective.name
    if theirs_is != ours_is:
        raise UserError(
            f"{champion.name} is for the objective {theirs_is!r}, this run for {ours_is!r}, so the "
            "two cannot be compared; register this one under another --name"
        )
    if other := other_input(candidate.reading.stored, media):
        raise UserError(
            f"{champion.name} takes other input than this run ({other}), so the two cannot be "
            "compared; register this one under another --name"
        )
    reading = replace(candidate.reading, media=media)
    theirs = outcomes(champion.predictor, shard_set, split, reading)
    reasons = {"this run": known, champion.name: _known_to(champion, candidate, reading, console)}
    uncertain = _uncertain(reading, shard_set, split)
    left_out = np.logical_or.reduce([*reasons.values(), uncertain, unusable])
    _say_left_out(candidate, reasons, console)
    if uncertain.any():
        console.notice(
            f"{uncertain.sum()} rows hold a category that the set does not know, and "
            f"{champion.name} may: left out"
        )
    for remark in champion.predictor.card.objective.remarks(shard_set.manifest.classes):
        console.notice(f"{champion.name} {remark}")
    broken = weights_not_finite(champion.predictor.model.state_dict())
    if broken or not theirs.finite[theirs.readable].any():
        console.notice(
            f"{champion.name} gives no finite value, so this run does not have to beat it"
        )
        return _verdict(candidate, ~left_out, champion_value=candidate.objective.worst)
    if not theirs.finite.all():
        console.notice(
            f"{champion.name} gives values that are not finite for {(~theirs.finite).sum()} of "
            f"{len(known)} samples; these count as wrong"
        )
    needed, remaining = samples_needed(rules), int((~left_out).sum())
    if remaining < needed:
        raise UserError(
            f"{remaining} of {len(known)} samples of the {split} split are left that neither this "
            f"run nor {champion.name} was trained on, and registry.alpha={rules.alpha:g} needs at "
            f"least {needed}; choose another --split, or hold out sources that no model is "
            "trained on"
        )
    comparison = Comparison.of(candidate.outcomes, theirs, ~left_out, type(candidate.objective))
    if not comparison.passes(rules):
        raise GateRefusedError(_refusal(candidate, champion, comparison, rules))
    return _verdict(
        candidate,
        ~left_out,
        champion_value=comparison.champion_value,
        comparison=comparison,
    )


def _refuse_what_is_not_finite(candidate: Candidate) -> None:
    # Weights that are not finite were refused when the checkpoint was loaded.
    finite = candidate.outcomes.finite
    if not finite.all():
        raise GateRefusedError(
            f"not promoted: {candidate.name} gives values that are not finite for "
            f"{(~finite).sum()} of {len(finite)} samples of the {candidate.split} split; train "
            "again with a lower training.learning_rate"
        )


def _known_to(
    champion: Champion, candidate: Candidate, reading: Reading, console: Console
) -> np.ndarray:
    """Return which samples the champion is known to be trained on, bool `[samples]`."""
    if champion.record is None:
        console.notice(
            f"{champion.name} has no record of its training samples, and its shard set is missing: "
            "it may have been trained on some of these samples, which can only help it"
        )
    if champion.record is None or candidate.is_coarse:
        return np.zeros_like(candidate.known)
    digests = sample_digests(candidate.shard_set, candidate.split, reading)
    return np.isin(digests, champion.record)


def _uncertain(reading: Reading, shard_set: ShardSet, split: str) -> np.ndarray:
    """Return for which rows the champion's category is not known, bool `[samples]`."""
    uncertain = np.zeros(shard_set.num_samples(split), bool)
    finders = {
        name: conversion.uncertain
        for name, conversion in reading.conversions.items()
        if conversion.uncertain is not None
    }
    if not finders:
        return uncertain
    for batch in replace(reading, media=reading.stored).batches(shard_set, split):
        for name, find_uncertain in finders.items():
            good = (batch.weights.numpy() > 0) & (batch.lengths[name].numpy() > 0)
            if good.any():
                rows = batch.fields[name].numpy()[good]
                uncertain[batch.numbers.numpy()[good]] |= find_uncertain(rows)
    return uncertain


def _verdict(
    candidate: Candidate,
    used: np.ndarray,
    *,
    champion_value: float | None = None,
    comparison: Comparison | None = None,
) -> Verdict:
    samples = int(used.sum())
    if not samples:
        raise UserError(
            f"no sample of the {candidate.split} split is left: models were trained on all "
            f"{len(used)}; choose another --split"
        )
    value = float(candidate.outcomes.values[used].mean())
    return Verdict(samples, len(used) - samples, value, champion_value, comparison)


def _say_left_out(candidate: Candidate, reasons: dict[str, np.ndarray], console: Console) -> None:
    total = len(candidate.known)
    for who, known in reasons.items():
        if known.any():
            console.notice(
                f"{known.sum()} of {total} samples of the {candidate.split} split are left out: "
                f"{who} was trained on the same content"
            )


def _refusal(
    candidate: Candidate, champion: Champion, comparison: Comparison, rules: RegistryConfig
) -> str:
    asked = f"registry.min_gain={rules.min_gain:g} and registry.alpha={rules.alpha:g}"
    if not candidate.objective.is_right_or_wrong:
        return (
            f"not promoted: {candidate.name} has {comparison} ({champion.name}); {asked} need "
            f"more; {candidate.split} split"
        )
    wins = comparison.wins_needed(rules)
    needed = (
        f"{asked} need {wins} such wins beside {comparison.losses} losses"
        if wins is not None
        else f"so few samples cannot show what {asked} need"
    )
    return (
        f"not promoted: {candidate.name} has {comparison} ({champion.name}); {needed}; "
        f"{candidate.split} split"
    )
