"""Compare the settings of a study: means over seeds, their intervals, ranks and the front."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.config.conditions import Settings
from pipeline.tuning.study import Study
from pipeline.tuning.trial_records import TrialRecord


@dataclass(frozen=True)
class Estimate:
    """The mean of scores, and the confidence interval of the mean that they were drawn from.

    Attributes:
        count: The number of scores.
        mean: Their mean.
        low, high: The bounds of Student's t interval; None of a single score.
    """

    count: int
    mean: float
    low: float | None
    high: float | None


def estimate(scores: Sequence[float], confidence: float) -> Estimate:
    """Return the mean of scores with its interval.

    Args:
        scores: The scores, at least one.
        confidence: The level of the interval, such as 0.95.
    """
    mean = statistics.fmean(scores)
    if len(scores) == 1:
        return Estimate(1, mean, None, None)
    from scipy.stats import t

    half = statistics.stdev(scores) / math.sqrt(len(scores))
    half *= float(t.ppf((1 + confidence) / 2, len(scores) - 1))
    return Estimate(len(scores), mean, mean - half, mean + half)


@dataclass(frozen=True)
class SettingScore:
    """What a study knows of settings.

    Attributes:
        draw: The number of the settings.
        settings: The settings.
        estimate: The mean of the best scores of its trainings.
        trials: The trainings that count, the best one first.
        costs: The `flops` and `parameters`.
    """

    draw: int
    settings: Settings
    estimate: Estimate
    trials: list[TrialRecord]
    costs: dict[str, float] = field(default_factory=dict)

    @property
    def bound(self) -> float:
        """The score that ranks: the lower bound, or the only score."""
        return self.estimate.mean if self.estimate.low is None else self.estimate.low


def ranked_settings(study: Study) -> list[SettingScore]:
    """Return the settings of a study that have a finite score, best first.

    Settings with fewer trainings than `study.seeds` come after those with all of them, since a
    single score has no interval. Of equal ones, that with fewer FLOPs comes first.
    """
    found = []
    for draw, of_draw in study.by_draw(study.records).items():
        scored = [
            (score, record)
            for record in of_draw
            if record.error is None
            and study.reached_end(record)
            and (score := study.final_score(study, record)) is not None
        ]
        if not scored:
            continue
        trials = [r for _, r in sorted(scored, key=lambda each: (-each[0], each[1].number))]
        settings = trials[0].settings
        found.append(
            SettingScore(
                draw,
                settings,
                estimate([score for score, _ in scored], study.section.confidence),
                trials,
                dict(study.costs(settings)),
            )
        )
    return sorted(
        found,
        key=lambda each: (
            -each.estimate.count if study.section.seeds > 1 else 0,
            -each.bound,
            each.costs.get("flops", 0.0),
            each.draw,
        ),
    )


def best_draw(study: Study) -> int | None:
    """Return the number of the best settings; None if none has a score."""
    ranked = ranked_settings(study)
    return ranked[0].draw if ranked else None


def confirmation(study: Study, draw: int) -> tuple[Estimate, list[TrialRecord]] | None:
    """Return what the trainings from other seeds say of settings; None without one.

    Args:
        study: The study.
        draw: The number of the settings.
    """
    trials = [
        record
        for record in study.records.values()
        if record.draw == draw and study.is_confirming(record) and record.error is None
    ]
    trials = [record for record in trials if study.reached_end(record)]
    scored = [(study.final_score(study, record), record) for record in trials]
    found = [(score, record) for score, record in scored if score is not None]
    if not found:
        return None
    scores = [score for score, _ in found]
    return estimate(scores, study.section.confidence), [record for _, record in found]
