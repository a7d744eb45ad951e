"""Which trial of a study starts next."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config.conditions import Settings
from pipeline.config.scheduler import Member, Scheduler, Takeover
from pipeline.config.search import SEARCHES
from pipeline.config.study import SEED
from pipeline.tuning.draws import Draws
from pipeline.tuning.journal import (
    Begin,
    Failure,
    Generation,
    Handover,
    Note,
    Refusal,
    Report,
)
from pipeline.tuning.ranking import best_draw
from pipeline.tuning.spending import Spending
from pipeline.tuning.study import Study

MAX_REFUSALS = 1000
"""The most settings in a row that are refused before a study draws no others."""
MAX_TOO_DEAR = 20
"""The most settings in a row that do not fit into the budget before it counts as spent."""


@dataclass(frozen=True)
class Launch:
    """A trial that starts.

    Attributes:
        trial: The number of the trial.
        until: The number of epochs after which it waits for others; None trains it to its end.
    """

    trial: int
    until: int | None


class TrialQueue:
    """Choose the trials to start, one after another.

    First come trials that were cut off with the study, then further seeds of settings that are
    done, then new settings, and, when all have ended, the trials that confirm the best settings.

    Args:
        study: The study, with the journal so far.
        scheduler: The scheduler, for trials that wait for each other.
        concurrent: The most trials at the same time.
        refuses: Returns why settings cannot be trained; None if they can.
        hand_over: Copies the weights of a trial to another one, and returns their sha256. It takes
            the takeover and the epoch.
        spending: What the study has spent of its budget.

    Attributes:
        is_finished: Whether all trials have ended.
    """

    def __init__(
        self,
        study: Study,
        scheduler: Scheduler,
        concurrent: int,
        refuses: Callable[[Settings], str | None],
        hand_over: Callable[[Takeover, int], str],
        spending: Spending,
    ) -> None:
        self._study, self._scheduler, self._concurrent = study, scheduler, concurrent
        self._refuses, self._hand_over = refuses, hand_over
        self._spending = spending
        sampler = SEARCHES[study.section.search].sampler(
            study.section.space, study.base.seed, 1 + len(study.section.objectives)
        )
        self._draws = Draws(study, sampler)
        self._draws.catch_up()
        self._running: set[int] = set()
        self._left: set[int] = set()
        self._no_more_draws = False
        # A study that had ended at its budget goes on because the budget has grown.
        self._counted_from = 0 if study.open_trials() else len(study.journal.entries)
        for number in study.open_trials():
            if not self._waits(number):
                study.journal.append(Note(number, _restarted(study, number)))
        self.is_finished = False

    def ended(self, trial: int) -> None:
        """Record that a trial no longer runs."""
        self._running.discard(trial)
        if trial in self._study.open_trials() and not self._waits(trial):
            self._left.add(trial)  # it failed, or a notice has stopped it

    def next(self) -> Launch | None:
        """Return the next trial to start; None if none starts now.

        The journal has the trial when this returns.

        Raises:
            UserError: The sampler draws other settings than before the study was resumed.
        """
        if len(self._running) >= self._concurrent or self.is_finished:
            return None
        self._draws.catch_up()
        number = self._next()
        if number is None:
            self.is_finished = not self._running
            return None
        self._running.add(number)
        return Launch(number, self._scheduler.waits_after(self._study.records[number].epochs))

    def _next(self) -> int | None:
        for choose in (self._restart, self._further_seed, self._new_settings):
            if (number := choose()) is not None:
                return number
        if self._running or any(self._study.records[n].error is None for n in self._left):
            return None
        number = self._after_waiting()
        return self._confirmation() if number is None else number

    def _restart(self) -> int | None:
        """Start a trial again that was cut off with the study, or has waited for others."""
        for number in self._study.open_trials():
            if number not in self._running | self._left and not self._waits(number):
                return number
        return None

    def _after_waiting(self) -> int | None:
        """When all trials wait for each other, let the worst take over the weights of the best."""
        study = self._study
        waiting = [study.records[n] for n in study.open_trials() if self._waits(n)]
        if not waiting:
            return None
        epoch = waiting[0].epochs
        members = [Member(r.number, r.scores[epoch], r.settings) for r in waiting]
        for takeover in self._scheduler.takeovers(epoch, members):
            heir = study.records[takeover.trial]
            if any(each.epoch == epoch for each in heir.handovers):
                continue  # before the study was killed
            weights = self._hand_over(takeover, epoch)
            study.journal.append(
                Handover(takeover.trial, epoch, takeover.donor, takeover.settings, weights)
            )
        study.journal.append(Generation(epoch))
        return self._restart()

    def _further_seed(self) -> int | None:
        """Begin the training of settings from a further seed."""
        study = self._study
        if study.section.seeds == 1:
            return None
        for draw, trials in study.by_draw(study.records).items():
            if len(trials) < study.section.seeds and study.wants_seeds(trials):
                if self._spending.refuses(trials[0].settings):
                    continue
                return self._begin(draw, trials[0].settings, study.base.seed + len(trials))
        return None

    def _new_settings(self) -> int | None:
        """Begin a trial of new settings, as long as there are to be others."""
        study, refused = self._study, 0
        while self._draws.accepted < study.section.trials and not self._no_more_draws:
            too_dear = self._too_dear_since_an_end()
            # What running trials leave over may be enough for others.
            if too_dear >= (1 if self._running else MAX_TOO_DEAR):
                return None
            if self._spending.is_out_of_time():
                return None
            settings = self._draws.ask()
            if settings is None or refused >= MAX_REFUSALS:
                self._no_more_draws = True
                return None
            draw = self._draws.asked - 1
            reason = self._refuses(settings)
            is_too_dear = reason is None and bool(reason := self._spending.refuses(settings))
            if reason is None:
                number = self._begin(draw, settings, settings.get(SEED, study.base.seed))
                self._draws.catch_up()
                return number
            refused += 1
            study.journal.append(Refusal(draw, settings, reason, is_too_dear))
            self._draws.catch_up()
        return None

    def _too_dear_since_an_end(self) -> int:
        """Return how many settings did not fit into the budget since a trial has last ended."""
        count = 0
        for entry in reversed(self._study.journal.entries[self._counted_from :]):
            match entry:
                case Refusal(is_too_dear=True):
                    count += 1
                case Failure():
                    break
                case Report(trial=trial, epoch=epoch, stop=stop):
                    if stop or epoch >= self._study.epochs(trial):
                        break
                case _:
                    pass
        return count

    def _confirmation(self) -> int | None:
        """Begin the next training of the best settings from another seed."""
        study = self._study
        if not study.section.confirm:
            return None
        draw = best_draw(study)
        if draw is None:
            return None
        before = [r for r in study.records.values() if r.draw == draw and study.is_confirming(r)]
        if len(before) >= study.section.confirm:
            return None
        settings = study.of_draw(study.records, draw)[0].settings
        if self._spending.refuses(settings):
            return None
        seed = study.base.seed + study.section.seeds + len(before)
        return self._begin(draw, settings, seed)

    def _begin(self, draw: int, settings: Settings, seed: int) -> int:
        number = len(self._study.records)
        self._study.journal.append(Begin(number, draw, seed, settings))
        return number

    def _waits(self, trial: int) -> bool:
        """Return whether a trial has finished an epoch at whose end it waits for others."""
        epochs = self._study.records[trial].epochs
        if not epochs or epochs <= self._study.journal.generation:
            return False
        return self._scheduler.waits_after(epochs - 1) == epochs


def _restarted(study: Study, trial: int) -> str:
    record = study.records[trial]
    why = "tried again after an error" if record.error is not None else "resumed"
    return f"{why}, after epoch {record.epochs}" if record.epochs else f"{why} from its start"
