"""The settings of a study's trials are a function of its space and the seed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.load import load_config
from pipeline.config.study import StudyConfig
from pipeline.config.trial_configs import draw_settings, study_base, trial_config
from pipeline.errors import UserError

SPACE = {
    "training.learning_rate": {"loguniform": (3e-4, 3e-3)},
    "model.encoder.num_latents": {"choice": (32, 64, 128)},
    "training.label_smoothing": {"uniform": (0.0, 0.2)},
}


def study(**fields: object) -> StudyConfig:
    return StudyConfig.model_validate({"space": SPACE, **fields})


def test_the_same_seed_draws_the_same_settings() -> None:
    # Known values: a later version must draw them, too, or a resumed study would mix two sequences.
    first, second = draw_settings(study(num_trials=2), 0)
    assert first == {
        "model.encoder.num_latents": 64,
        "training.label_smoothing": pytest.approx(0.05729923470544216),
        "training.learning_rate": pytest.approx(0.00031574606722479235),
    }
    assert draw_settings(study(num_trials=2), 0) == [first, second]
    assert draw_settings(study(num_trials=2), 1) != [first, second]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**100), few=st.integers(1, 10), more=st.integers(0, 10))
def test_more_trials_go_on_with_the_same_sequence(seed: int, few: int, more: int) -> None:
    drawn = draw_settings(study(num_trials=few + more), seed)
    assert len(drawn) == few + more
    assert drawn[:few] == draw_settings(study(num_trials=few), seed)
    for trial in drawn:
        assert trial["model.encoder.num_latents"] in (32, 64, 128)
        assert 3e-4 <= trial["training.learning_rate"] <= 3e-3
        assert 0 <= trial["training.label_smoothing"] <= 0.2


def test_neither_the_order_of_the_fields_nor_concurrency_changes_them() -> None:
    turned = dict(reversed(SPACE.items()))
    expected = draw_settings(study(num_trials=5), 3)
    assert draw_settings(study(num_trials=5, space=turned), 3) == expected
    assert draw_settings(study(num_trials=5, max_concurrent_trials=1), 3) == expected


def test_the_draws_cover_the_space() -> None:
    drawn = draw_settings(study(num_trials=300), 0)
    rates = sorted(trial["training.learning_rate"] for trial in drawn)
    assert rates[0] < 3.1e-4
    assert rates[-1] > 2.9e-3
    assert 8e-4 < rates[150] < 1.1e-3, "half of them lie below the geometric mean"
    for count in (32, 64, 128):
        assert 70 < sum(t["model.encoder.num_latents"] == count for t in drawn) < 130


def test_a_grid_runs_every_combination_once() -> None:
    space = {"training.epochs": {"choice": (1, 2)}, "training.seed": {"choice": (3, 4, 5)}}
    grid = study(search="grid", space=space)
    drawn = draw_settings(grid, 0)
    assert len(drawn) == grid.trials == 6
    assert len({tuple(trial.items()) for trial in drawn}) == 6


def test_num_trials_is_for_a_random_search() -> None:
    space = {"training.epochs": {"choice": (1, 2)}}
    assert study().trials == 8
    assert study(search="grid", space=space, num_trials=2).trials == 2
    with pytest.raises(ValueError, match=r"num_trials is 5, but search 'grid' .* are 2"):
        study(search="grid", space=space, num_trials=5)


def test_a_trial_is_a_configuration_although_another_value_does_not_go_with_it() -> None:
    heads, width = "model.encoder.num_self_heads", "model.encoder.latent_dim"
    space = f"{{{heads}: {{choice: [4, 8]}}, {width}: {{choice: [64, 36]}}}}"
    config = load_config("digits", [f"study={{search: grid, space: {space}}}"])
    assert config.study is not None
    base = study_base(config, config.study)
    fits = {heads: 8, width: 64}
    assert trial_config(base, fits).model.encoder.num_self_heads == 8
    assert trial_config(base, fits).study == config.study
    with pytest.raises(UserError, match="latent_dim is 36; must be a multiple of num_self_heads"):
        trial_config(base, fits | {width: 36})
