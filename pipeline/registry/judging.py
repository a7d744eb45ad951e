"""Judge a run's model against the champion, on samples of a split that neither was trained on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.config.tree import RegistryConfig
from pipeline.errors import GateRefusedError, UserError
from pipeline.registry.gate import Comparison, differences
from pipeline.registry.intervals import mean_interval
from pipeline.registry.judged_models import Candidate, Champion, Verdict
from pipeline.registry.outcomes import outcomes, weights_not_finite
from pipeline.registry.paired_test import smallest_p, units_needed
from pipeline.registry.places import places_of
from pipeline.registry.reading import Reading, other_input
from pipeline.registry.slices import Places, Slice, worse_slices
from pipeline.registry.trained_on import sample_digests
from pipeline.runs.console import Console
from shards import ShardSet


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
    places = places_of(candidate.shard_set, candidate.split, console)
    if champion is None:
        _say_left_out(candidate, {"this run": known}, console)
        return _verdict(candidate, ~known & ~unusable, candidate.units(places))
    return _against(candidate, known, unusable, champion, places, rules, console)


def _against(
    candidate: Candidate,
    known: np.ndarray,
    unusable: np.ndarray,
    champion: Champion,
    places: Places,
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
    units = candidate.units(places)
    broken = weights_not_finite(champion.predictor.model.state_dict())
    if broken or not theirs.finite[theirs.readable].any():
        console.notice(
            f"{champion.name} gives no finite value, so this run does not have to beat it"
        )
        return _verdict(candidate, ~left_out, units, champion_value=candidate.objective.worst)
    if not theirs.finite.all():
        console.notice(
            f"{champion.name} gives values that are not finite for {(~theirs.finite).sum()} of "
            f"{len(known)} samples; these count as wrong"
        )
    _refuse_too_few(candidate, champion, units, ~left_out, rules)
    ours, kind = candidate.outcomes, type(candidate.objective)
    comparison = Comparison.of(ours, theirs, ~left_out, kind, units=units, alpha=rules.alpha)
    if rules.alpha < smallest_p(rules.alpha) and not comparison.is_exact:
        raise UserError(
            f"registry.alpha={rules.alpha:g}: the paired test of {kind.sample_metric} gives no p "
            f"below {smallest_p(rules.alpha):.2g}; give a larger one"
        )
    if not comparison.passes(rules):
        raise GateRefusedError(_refusal(candidate, champion, comparison, rules))
    gains, classes = differences(ours, theirs, kind), shard_set.manifest.classes
    worse = worse_slices(gains, ours, theirs, ~left_out, units, places, classes, rules.slice_alpha)
    _judge_slices(candidate, champion, worse, rules, console)
    return _verdict(
        candidate,
        ~left_out,
        units,
        champion_value=comparison.champion_value,
        comparison=comparison,
        worse=worse,
    )


def _refuse_too_few(
    candidate: Candidate,
    champion: Champion,
    units: np.ndarray,
    used: np.ndarray,
    rules: RegistryConfig,
) -> None:
    """Refuse to compare two models on fewer units than could show anything."""
    needed, remaining = units_needed(rules.alpha), len(np.unique(units[used]))
    if remaining < needed:
        of_units = "" if remaining == used.sum() else f" of {remaining} recordings or groups"
        raise UserError(
            f"{used.sum()} of {len(used)} samples{of_units} of the {candidate.split} split are "
            f"left that neither this run nor {champion.name} was trained on, and "
            f"registry.alpha={rules.alpha:g} needs at least {needed}; choose another --split, or "
            "hold out sources that no model is trained on"
        )


def _judge_slices(
    candidate: Candidate,
    champion: Champion,
    worse: Sequence[Slice],
    rules: RegistryConfig,
    console: Console,
) -> None:
    """Report the parts that got worse.

    Raises:
        GateRefusedError: There are any, and the rules refuse them.
    """
    if worse and rules.worse_slices == "refuse":
        more = f", and {len(worse) - 3} more" if len(worse) > 3 else ""
        raise GateRefusedError(
            f"not promoted: {candidate.name} is worse than {champion.name} on "
            f"{'; '.join(map(str, worse[:3]))}{more} (registry.worse_slices=refuse); "
            f"{candidate.split} split"
        )
    for one in worse:
        console.notice(f"worse than {champion.name} on {one}")


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
    units: np.ndarray,
    *,
    champion_value: float | None = None,
    comparison: Comparison | None = None,
    worse: Sequence[Slice] = (),
) -> Verdict:
    samples = int(used.sum())
    if not samples:
        raise UserError(
            f"no sample of the {candidate.split} split is left: models were trained on all "
            f"{len(used)}; choose another --split"
        )
    values = candidate.outcomes.values[used]
    return Verdict(
        samples,
        len(used) - samples,
        float(values.mean()),
        champion_value,
        comparison,
        mean_interval(values, units[used], is_right_or_wrong=candidate.objective.is_right_or_wrong),
        tuple(worse),
    )


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
    if not candidate.objective.is_right_or_wrong or comparison.units is not None:
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
