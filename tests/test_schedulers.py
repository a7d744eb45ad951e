"""The schedulers of a study decide as Ray's own, on samples, and a kill changes no decision."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler
from studies import DECAY, RATE, KilledError, Simulation, begins, config_of, decisions_of, rising

from pipeline.config.load import load_config
from pipeline.config.population import FACTORS, Population, perturbed
from pipeline.config.scheduler import Member, Pace, Scheduler
from pipeline.config.schedulers import SCHEDULERS
from pipeline.config.space import SpaceConfig
from pipeline.config.study import StudyConfig
from pipeline.errors import UserError
from pipeline.tuning.journal import Generation, Handover, Note

EPOCHS = 8
SPACE = f"{{{RATE}: {{loguniform: [1e-5, 1e-1]}}, {DECAY}: {{uniform: [0.0, 0.2]}}}}"


def scheduler(name: str, samples: int = 1, **fields: Any) -> Scheduler:
    study = StudyConfig.model_validate(
        {"space": {DECAY: {"choice": (0.0, 0.1)}}, "scheduler": name, **fields}
    )
    return SCHEDULERS[name](study, Pace(EPOCHS, samples, EPOCHS * samples))


def stopped_by(
    chosen: Scheduler, scores: dict[int, list[float]], samples: dict[int, int] | None = None
) -> set[tuple[int, int]]:
    """The trials that are stopped, and after which epoch, if they report in turns."""
    found: set[tuple[int, int]] = set()
    for epoch in range(1, EPOCHS + 1):
        for trial, own in scores.items():
            if any(number == trial for number, _ in found):
                continue
            seen = epoch * (samples or {}).get(trial, 1)
            if chosen.stops(trial, epoch, seen, own[epoch - 1]):
                found.add((trial, epoch))
    return found


LEVELS = {
    trial: [trial / 10 + epoch / 100 for epoch in range(EPOCHS)] for trial in range(7, -1, -1)
}
"""The best trial reports first."""


def test_none_stops_no_trial_and_asha_stops_the_worse_half() -> None:
    assert stopped_by(scheduler("none"), LEVELS) == set()
    stopped = stopped_by(scheduler("asha"), LEVELS)
    assert (7, 1) not in stopped and {trial for trial, _ in stopped} >= {0, 1, 2, 3}


def test_grace_epochs_stop_no_trial() -> None:
    for name in ("asha", "hyperband", "median"):
        early = {epoch for _, epoch in stopped_by(scheduler(name, grace_epochs=3), LEVELS)}
        assert early and min(early) >= 3, name


class RayTrial:
    """What Ray's own schedulers ask of a trial."""

    def __init__(self, number: int) -> None:
        self.trial_id = str(number)


class Controller:
    def get_live_trials(self) -> list[Any]:
        return []


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_median_decides_as_ray_s_own(data: st.DataObject) -> None:
    numbers = st.floats(0, 1, allow_nan=False)
    rows = st.lists(numbers, min_size=EPOCHS, max_size=EPOCHS)
    scores = dict(enumerate(data.draw(st.lists(rows, min_size=4, max_size=6))))
    own = MedianStoppingRule(time_attr="samples", metric="score", mode="max", grace_period=1)
    trials: dict[int, Any] = {number: RayTrial(number) for number in scores}
    controller: Any = Controller()
    expected = set()
    for epoch in range(1, EPOCHS + 1):
        for trial, row in scores.items():
            if any(number == trial for number, _ in expected):
                continue
            result = {"samples": epoch, "score": row[epoch - 1]}
            if own.on_trial_result(controller, trials[trial], result) == TrialScheduler.STOP:
                expected.add((trial, epoch))
    assert stopped_by(scheduler("median"), scores) == expected


def test_hyperband_has_ray_s_brackets_and_draws_them_by_the_seed_alone() -> None:
    import numpy as np

    def brackets(seed: int) -> list[int]:
        study = StudyConfig.model_validate({"space": {DECAY: {"choice": (0.0, 0.1)}}})
        chosen: Any = SCHEDULERS["hyperband"](study, Pace(EPOCHS, 1, EPOCHS, seed))
        ray = chosen._scheduler
        assert isinstance(ray, AsyncHyperBandScheduler)
        for trial in range(40):
            chosen.stops(trial, 1, 1, 0.5)
        return [ray._brackets.index(ray._trial_info[str(trial)]) for trial in range(40)]

    before = np.random.get_state()[1].copy()
    first = brackets(0)
    assert (np.random.get_state()[1] == before).all(), "the global generator is left as it was"
    assert set(first) >= {0, 1} and max(first) <= 3
    assert brackets(0) == first != brackets(1)


def test_trials_are_compared_after_equal_numbers_of_samples() -> None:
    """A trial with a large batch leaves more samples out of each epoch."""
    chosen = scheduler("asha", samples=100)
    assert not chosen.stops(0, 1, 100, 0.5)
    # After its first epoch, this one has seen 60 samples: it is not compared yet.
    assert not chosen.stops(1, 1, 60, 0.1)
    assert chosen.stops(1, 2, 120, 0.2)
    assert not chosen.stops(2, 1, 100, 0.6)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "pbt"])
def test_a_study_killed_after_any_report_decides_as_one_that_never_was(
    name: str, tmp_path: Path
) -> None:
    section = f"{{num_trials: 8, scheduler: {name}, space: {SPACE}}}"
    config = config_of(section, "training.epochs=6")
    (tmp_path / "whole").mkdir()
    whole = Simulation(config, tmp_path / "whole", concurrent=3).run()
    assert any(report.stop for report in whole.journal.reports) == (name != "none")
    (tmp_path / "killed").mkdir()
    killed = Simulation(config, tmp_path / "killed", concurrent=3)
    for kill_at in range(1, len(whole.journal.reports), 3):
        with pytest.raises(KilledError):
            killed.run(kill_at)
    assert decisions_of(killed.run()) == decisions_of(whole)


PBT = f"{{num_trials: 8, scheduler: pbt, perturb_epochs: 2, space: {SPACE}}}"


def test_the_worst_quarter_of_a_population_takes_over_the_best_quarter(tmp_path: Path) -> None:
    simulation = Simulation(config_of(PBT, "training.epochs=6"), tmp_path)
    study = simulation.run()
    assert [begin.trial for begin in begins(study)] == list(range(8))
    assert all(record.epochs == 6 for record in study.records.values())
    generations = [e.generation for e in study.journal.entries if isinstance(e, Generation)]
    assert generations == [2, 4]
    handovers = [entry for entry in study.journal.entries if isinstance(entry, Handover)]
    assert len(handovers) == 4, "2 of 8 trials, twice"
    settings = {begin.trial: begin.settings for begin in begins(study)}
    for epoch in generations:
        ranked = sorted(settings, key=lambda n: rising(settings[n], 0, epoch))
        now = [each for each in handovers if each.epoch == epoch]
        assert {each.trial for each in now} == set(ranked[:2])
        assert {each.donor for each in now} <= set(ranked[-2:])
        for each in now:
            assert each.settings != settings[each.donor]
            settings[each.trial] = each.settings
    assert {n: record.settings for n, record in study.records.items()} == settings
    assert max(r.best_score or 0 for r in study.records.values()) > 0.8


def test_a_population_killed_after_any_report_goes_on_as_one_that_never_was(
    tmp_path: Path,
) -> None:
    config = config_of(PBT, "training.epochs=6")
    (tmp_path / "whole").mkdir()
    whole = Simulation(config, tmp_path / "whole", concurrent=3).run()
    (tmp_path / "killed").mkdir()
    killed = Simulation(config, tmp_path / "killed", concurrent=3)
    for kill_at in range(1, len(whole.journal.reports)):
        with pytest.raises(KilledError):
            killed.run(kill_at)
    found = killed.run()
    assert {n: (r.settings, r.scores, r.handovers) for n, r in found.records.items()} == {
        n: (r.settings, r.scores, r.handovers) for n, r in whole.records.items()
    }
    assert any(isinstance(entry, Note) for entry in found.journal.entries)


def test_a_population_does_not_depend_on_the_order_in_which_its_trials_report(
    tmp_path: Path,
) -> None:
    found = []
    for order in (1, 2):
        (tmp_path / str(order)).mkdir()
        config = config_of(PBT, "training.epochs=6")
        study = Simulation(config, tmp_path / str(order), order=order, concurrent=order).run()
        found.append({n: (r.settings, r.scores) for n, r in study.records.items()})
    assert found[0] == found[1]


def test_a_trial_of_a_population_that_fails_is_left_out_of_it(tmp_path: Path) -> None:
    config = config_of(PBT.replace("num_trials: 8", "num_trials: 4"), "training.epochs=6")
    study = Simulation(config, tmp_path, fails=lambda begin: begin.trial == 1).run()
    assert study.journal.errors == {1: "it failed"}
    assert [record.epochs for _, record in sorted(study.records.items())] == [6, 0, 6, 6]
    assert all(1 not in (e.trial, e.donor) for r in study.records.values() for e in r.handovers)


def test_equal_scores_and_a_trial_alone_change_nothing() -> None:
    space = {DECAY: SpaceConfig.model_validate({"uniform": (0.0, 0.2)})}
    chosen = Population(space, 1, Pace(4, 1, 4))
    assert chosen.takeovers(1, [Member(0, 0.5, {DECAY: 0.1})]) == []
    equal = [Member(number, 0.5, {DECAY: 0.1}) for number in range(4)]
    assert chosen.takeovers(1, equal) == []
    lost = [Member(0, None, {DECAY: 0.1}), Member(1, 0.1, {DECAY: 0.2})]
    (takeover,) = chosen.takeovers(1, lost)
    assert (takeover.trial, takeover.donor) == (0, 1)
    assert [chosen.waits_after(epoch) for epoch in range(5)] == [1, 2, 3, None, None]


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1, exclude_max=True))
def test_perturbed_values_stay_in_the_space(seed: int, share: float) -> None:
    import numpy as np

    for values in (
        {"uniform": (0.1, 0.2)}, {"loguniform": (1e-4, 1e-2)}, {"log_integer": (1, 40)},
        {"integer": (2, 9, 3)}, {"quniform": (0.1, 0.5, 0.1)}, {"choice": ("a", "b", "c")},
    ):  # fmt: skip
        space: Any = SpaceConfig.model_validate(values)
        value = space.at(share)
        changed = perturbed(space, value, np.random.RandomState(seed))
        assert type(changed) is type(value)
        if space.levels is None:
            low, high = space.bounds
            assert low <= changed <= high
        else:
            assert space.holds(changed)
    assert FACTORS == (0.8, 1.2)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("space: {model.encoder.num_latents: {choice: [8, 16]}}", "copies weights between trials"),
        ("search: tpe, space: SPACE", "learns from settings that stay"),
        ("seeds: 3, space: SPACE", "no setting can be trained from other seeds"),
        ("confirm: 3, space: SPACE", "no setting can be trained from other seeds"),
        (
            f"space: {{{DECAY}: {{choice: [0.1]}}, {RATE}: {{choice: [1e-3], "
            f"when: {{{DECAY}: [0.1]}}}}}}",
            "takes no conditions",
        ),
    ],
)
def test_what_a_population_cannot_do_is_refused_with_a_line(section: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config("digits", [f"study={{scheduler: pbt, {section.replace('SPACE', SPACE)}}}"])
    (line,) = str(refused.value).splitlines()
    assert told in line
