"""What the trials of a study have spent of its budget, and whether others fit into the rest."""

from typing import Any

from pipeline.config.conditions import Settings
from pipeline.tuning.study import Study
from pipeline.tuning.trial_records import TrialRecord

TRAINING_PASSES = 3
"""A training step takes as many FLOPs as three forward passes: the backward pass takes two."""


class Spending:
    """The spending of a study, which follows from its journal.

    Args:
        study: The study. Its costs and samples are asked only if `study.budget` bounds the FLOPs.
    """

    def __init__(self, study: Study) -> None:
        self._study, self._budget = study, study.section.budget

    def flops(self) -> float:
        """Return the FLOPs of all epochs that trials have reported."""
        records = self._study.records.values()
        return sum(each.epochs * self._flops_per_epoch(each.settings) for each in records)

    def device_hours(self) -> float:
        """Return the hours of the workers of all epochs that trials have reported."""
        seconds = sum(each.seconds for each in self._study.records.values())
        return seconds * self._study.section.num_workers / 3600

    def is_out_of_time(self, seconds: float = 0.0) -> bool:
        """Return whether the device hours are spent.

        Args:
            seconds: The seconds of an epoch that is not in the journal yet.
        """
        bound = self._budget.device_hours
        more = seconds * self._study.section.num_workers / 3600
        return bound is not None and self.device_hours() + more >= bound

    def refuses(self, settings: Settings) -> str | None:
        """Return why a trial of settings may not begin now; None if it fits.

        It must fit beside the epochs that trials which have begun are still to train.
        """
        if self.is_out_of_time():
            return f"study.budget.device_hours={self._budget.device_hours:g} is spent"
        bound = self._budget.flops
        if bound is None:
            return None
        spent, reserved, needed = self.flops(), self._reserved(), self._whole(settings)
        if spent + reserved + needed <= bound:
            return None
        beside = f", {reserved:.3g} are for trials that have begun" if reserved else ""
        return (
            f"it takes {needed:.3g} FLOPs of study.budget.flops={bound:.3g}, of which "
            f"{spent:.3g} are spent{beside}"
        )

    def told(self) -> dict[str, Any] | None:
        """Return `flops` and `device_hours`, each with `spent` and `budget`; None without any."""
        found = {}
        if self._budget.flops is not None:
            found["flops"] = {"spent": self.flops(), "budget": self._budget.flops}
        if self._budget.device_hours is not None:
            found["device_hours"] = {
                "spent": self.device_hours(), "budget": self._budget.device_hours
            }  # fmt: skip
        return found or None

    def _reserved(self) -> float:
        """Return the FLOPs that trials which have begun may still take."""
        return sum(self._left(self._study.records[number]) for number in self._study.open_trials())

    def _left(self, record: TrialRecord) -> float:
        epochs = self._study.epochs_of(record.settings) - record.epochs
        return max(0, epochs) * self._flops_per_epoch(record.settings)

    def _whole(self, settings: Settings) -> float:
        return self._study.epochs_of(settings) * self._flops_per_epoch(settings)

    def _flops_per_epoch(self, settings: Settings) -> float:
        samples = self._study.samples_per_epoch(settings)
        return TRAINING_PASSES * self._study.costs(settings)["flops"] * samples


def told_of_budget(budget: dict[str, dict[str, float]] | None) -> list[str]:
    """Return in words what was spent, one line for each bound, from `Spending.told`."""
    return [
        f"{found['spent']:.4g} of study.budget.{name}={found['budget']:.4g} are spent"
        for name, found in (budget or {}).items()
    ]
