"""Studies whose trainings are a formula, with the real queue, samplers and schedulers.

What is killed begins anew from the journal in its folder, as a study's command does.
"""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.conditions import Settings
from pipeline.config.load import load_config
from pipeline.config.scheduler import Takeover
from pipeline.config.study import StudyConfig
from pipeline.config.tree import Config
from pipeline.config.trial_configs import study_base
from pipeline.runs.outbox import RunRef
from pipeline.tuning.decisions import Decisions
from pipeline.tuning.journal import Begin, Failure, StudyJournal
from pipeline.tuning.spending import Spending
from pipeline.tuning.study import Study
from pipeline.tuning.trial_queue import TrialQueue

LATENTS, RATE, DECAY = (
    "model.encoder.num_latents", "training.learning_rate", "training.weight_decay",
)  # fmt: skip
Score = Callable[[Settings, int, int], float]


class KilledError(Exception):
    """The command was killed."""


def config_of(section: str, *overrides: str) -> Config:
    """The shipped digits configuration with a section `study`."""
    return load_config("digits", [f"study={section}", "training.epochs=4", *overrides])


def rising(settings: Settings, seed: int, epoch: int) -> float:
    """A score that rises with the epochs, and is best at a learning rate of 1e-3."""
    import math

    off = abs(math.log10(settings.get(RATE, 1e-3)) + 3)
    noise = random.Random(f"{sorted(settings.items())} {seed}").uniform(-0.02, 0.02)
    return 1 - 0.2 * off - 0.5 / epoch + noise


def sizes(settings: Settings) -> Mapping[str, float]:
    """Costs that grow with the latents."""
    latents = settings.get(LATENTS, 32)
    return {"flops": 1e6 * latents, "parameters": 1e3 * latents}


class Simulation:
    """A study that runs in one process, trial beside trial.

    Args:
        config: The configuration.
        folder: The folder of the journal.
        score: The score of settings, a seed and an epoch.
        concurrent: The number of trials at once.
        order: Draws which of the running trials reports next.
        refuses: Why settings are refused, or None.
        seconds: How long an epoch takes.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        score: Score = rising,
        *,
        concurrent: int = 2,
        order: int = 0,
        refuses: Callable[[Settings], str | None] = lambda settings: None,
        fails: Callable[[Begin], bool] = lambda begin: False,
        seconds: float = 0.0,
    ) -> None:
        assert config.study is not None
        self.section: StudyConfig = config.study
        self.base = study_base(config, config.study)
        self.folder, self.score, self.concurrent = folder, score, concurrent
        self.order, self.refuses, self.fails = order, refuses, fails
        self.seconds = seconds
        self.handed: list[tuple[int, Takeover]] = []

    def open(self) -> Study:
        run = RunRef("sqlite:///none.db", "none", str(self.folder))
        journal = StudyJournal(self.folder)
        return Study(self.base, self.section, self.folder, run, journal, self._samples, sizes)

    def _samples(self, settings: Settings) -> int:
        return 100

    def run(self, kill_at: int | None = None) -> Study:
        """Run the study to its end.

        Args:
            kill_at: The number of reports, from the first one of the whole study, after which the
                command is killed.

        Raises:
            KilledError: It was killed.
        """
        study = self.open()

        def hand_over(takeover: Takeover, epoch: int) -> str:
            self.handed.append((epoch, takeover))
            return "0" * 64

        spending = Spending(study)
        queue = TrialQueue(
            study, study.scheduler(100), self.concurrent, self.refuses, hand_over, spending
        )
        decisions = Decisions(
            study.journal, study.scheduler(100), study.stops_early, study.samples,
            study.is_compared, spending.is_out_of_time,
        )  # fmt: skip
        running: dict[int, int | None] = {}
        while not queue.is_finished:
            while (launch := queue.next()) is not None:
                running[launch.trial] = launch.until
            if running:
                # What runs depends on the reports so far, and so does which of it is faster.
                turn = random.Random(f"{self.order} {len(study.journal.reports)}")
                number = turn.choice(sorted(running))
                if self._step(study, decisions, number, running[number]):
                    del running[number]
                    queue.ended(number)
                if len(study.journal.reports) == kill_at:
                    raise KilledError
        return study

    def _step(self, study: Study, decisions: Decisions, number: int, until: int | None) -> bool:
        """Train a trial for an epoch, and return whether it ends or waits."""
        record = study.records[number]
        if self.fails(Begin(number, record.draw, record.seed, record.settings)):
            study.journal.append(Failure(number, "it failed", final=False))
            return True
        epoch = record.epochs + 1
        score = self.score(record.settings, record.seed, epoch)
        stop = decisions.report(number, epoch, score, self.seconds)
        return stop or epoch == study.epochs(number) or epoch == until


def begins(study: Study) -> list[Begin]:
    """The trials that have begun, in order."""
    return [entry for entry in study.journal.entries if isinstance(entry, Begin)]


def decisions_of(study: Study) -> list[Any]:
    """All that a study has decided, without the notes on what has happened to it."""
    from pipeline.tuning.journal import Note

    return [entry for entry in study.journal.entries if not isinstance(entry, Note)]
