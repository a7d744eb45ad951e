"""Settings trained from several seeds: who gets them, what ranks, and how the best is confirmed."""

from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from studies import RATE, KilledError, Simulation, begins, config_of, decisions_of

from pipeline.tuning.ranking import confirmation, estimate, ranked_settings
from pipeline.tuning.study import Study

SPACE = f"{{{RATE}: {{choice: [1e-3, 2e-3, 3e-3]}}}}"
GRID = f"{{search: grid, scheduler: none, seeds: 3, space: {SPACE}}}"
MEANS = {1e-3: 0.5, 2e-3: 0.6, 3e-3: 0.7}
SPREADS = {1e-3: 0.01, 2e-3: 0.01, 3e-3: 0.2}


def spread(settings: dict[str, Any], seed: int, epoch: int) -> float:
    """Settings with a higher mean, of which the last varies most between seeds."""
    rate = settings[RATE]
    return MEANS[rate] + SPREADS[rate] * (seed % 3 - 1) - 0.1 / epoch


def trained(study: Study) -> dict[float, list[int]]:
    """The seeds from which each learning rate was trained, in order."""
    found: dict[float, list[int]] = {}
    for begin in begins(study):
        found.setdefault(begin.settings[RATE], []).append(begin.seed)
    return found


def test_each_setting_is_trained_from_the_seeds_after_the_study_s(tmp_path: Path) -> None:
    study = Simulation(config_of(GRID, "seed=7"), tmp_path, spread).run()
    assert trained(study) == {rate: [7, 8, 9] for rate in (1e-3, 2e-3, 3e-3)}
    assert {begin.draw for begin in begins(study)} == {0, 1, 2}
    for record in study.records.values():
        assert study.config(record).seed == record.seed
        assert study.config(record).training.learning_rate == record.settings[RATE]


def test_the_worse_bound_ranks_and_not_the_mean(tmp_path: Path) -> None:
    study = Simulation(config_of(GRID), tmp_path, spread).run()
    ranked = ranked_settings(study)
    assert [each.settings[RATE] for each in ranked] == [2e-3, 1e-3, 3e-3]
    assert max(ranked, key=lambda each: each.estimate.mean).settings[RATE] == 3e-3
    for each in ranked:
        scores = [record.best_score for record in each.trials]
        own = stats.t.interval(0.95, 2, stats.tmean(scores), stats.sem(scores))
        assert (each.estimate.low, each.estimate.high) == pytest.approx(own)
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_an_interval_holds_the_mean_as_often_as_it_says(confidence: float) -> None:
    import numpy as np

    random = np.random.default_rng(0)
    found = [estimate(list(row), confidence) for row in random.normal(3, 1, (4000, 4))]
    held = sum(each.low < 3 < each.high for each in found if each.low and each.high)
    assert held / 4000 == pytest.approx(confidence, abs=0.02)
    assert estimate([0.5], confidence).low is None


def test_settings_that_the_scheduler_cuts_off_get_no_other_seeds(tmp_path: Path) -> None:
    section = GRID.replace("scheduler: none", "scheduler: asha")
    better_first = section.replace("[1e-3, 2e-3, 3e-3]", "[3e-3, 2e-3, 1e-3]")

    def flat(settings: dict[str, Any], seed: int, epoch: int) -> float:
        return MEANS[settings[RATE]] - seed / 1000

    study = Simulation(config_of(better_first), tmp_path, flat, concurrent=1).run()
    assert trained(study) == {3e-3: [0, 1, 2], 2e-3: [0], 1e-3: [0]}
    # Further seeds are not compared, though each is worse than the one before.
    epochs = [r.epochs for r in study.records.values() if r.settings[RATE] == 3e-3]
    assert epochs == [4, 4, 4]
    ranked = ranked_settings(study)
    assert [each.estimate.count for each in ranked] == [3, 1, 1]
    assert [each.estimate.low is None for each in ranked] == [False, True, True]


def test_settings_whose_first_training_fails_get_no_other_seeds(tmp_path: Path) -> None:
    study = Simulation(
        config_of(GRID), tmp_path, spread, fails=lambda begin: begin.settings[RATE] == 2e-3
    ).run()
    assert trained(study) == {1e-3: [0, 1, 2], 2e-3: [0], 3e-3: [0, 1, 2]}
    assert len(study.journal.errors) == 1


def test_a_seed_that_fails_is_missing_from_the_estimate_and_ranks_behind(tmp_path: Path) -> None:
    study = Simulation(
        config_of(GRID), tmp_path, spread,
        fails=lambda begin: (begin.settings[RATE], begin.seed) == (2e-3, 1),
    ).run()  # fmt: skip
    ranked = ranked_settings(study)
    assert [(each.settings[RATE], each.estimate.count) for each in ranked] == [
        (1e-3, 3), (3e-3, 3), (2e-3, 2),
    ]  # fmt: skip


def test_the_best_settings_are_confirmed_from_seeds_that_the_search_did_not_see(
    tmp_path: Path,
) -> None:
    section = GRID.replace("seeds: 3", "seeds: 3, confirm: 4")
    study = Simulation(config_of(section, "seed=5"), tmp_path, spread).run()
    assert trained(study)[2e-3] == [5, 6, 7, 8, 9, 10, 11]
    assert len(begins(study)) == 9 + 4
    assert [begin.seed for begin in begins(study)[9:]] == [8, 9, 10, 11]
    # What the search knew of the settings is not in the estimate, nor the other way round.
    found = confirmation(study, study.records[9].draw)
    assert found is not None
    assert found[0].count == 4 and {record.seed for record in found[1]} == {8, 9, 10, 11}
    (best, *_) = ranked_settings(study)
    assert best.estimate.count == 3


def test_a_finished_study_confirms_when_it_is_asked_to_and_more_when_asked_again(
    tmp_path: Path,
) -> None:
    assert confirmation(Simulation(config_of(GRID), tmp_path, spread).run(), 1) is None
    for count in (2, 3):
        config = config_of(GRID.replace("seeds: 3", f"seeds: 3, confirm: {count}"))
        study = Simulation(config, tmp_path, spread).run()
        assert len(begins(study)) == 9 + count
    assert trained(study)[2e-3] == [0, 1, 2, 3, 4, 5]


def test_a_study_with_seeds_killed_after_any_report_goes_on(tmp_path: Path) -> None:
    section = (
        "{search: tpe, num_trials: 12, seeds: 2, confirm: 2, "
        f"space: {{{RATE}: {{loguniform: [1e-5, 1e-1]}}}}}}"
    )
    config = config_of(section)
    (tmp_path / "whole").mkdir()
    whole = Simulation(config, tmp_path / "whole", concurrent=3).run()
    (tmp_path / "killed").mkdir()
    killed = Simulation(config, tmp_path / "killed", concurrent=3)
    for kill_at in range(1, len(whole.journal.reports), 4):
        with pytest.raises(KilledError):
            killed.run(kill_at)
    assert decisions_of(killed.run()) == decisions_of(whole)
