"""The search space `perceiver`, scaled to a configuration's own model and data."""

import pytest

from perceiver_model.flops import num_tokens
from pipeline.config.load import load_config, with_values
from pipeline.config.trial_configs import draw_settings, trial_config
from pipeline.errors import UserError

NAMED = "study={space: perceiver}"


def choices(config: str, *overrides: str) -> dict[str, tuple[object, ...]]:
    study = load_config(config, [NAMED, *overrides]).study
    assert study is not None
    found = {}
    for field, space in study.space.items():
        assert space.choice is not None
        found[field] = space.choice
    return found


@pytest.mark.parametrize("config", ["digits", "audio", "points", "text", "imagenet", "segment"])
def test_every_value_holds_by_itself_and_the_own_one_is_among_them(config: str) -> None:
    base = load_config(config, ["study=null"])
    for field, values in choices(config).items():
        section, _, name = field.rpartition(".")
        own = base
        for key in section.split("."):
            own = getattr(own, key)
        assert getattr(own, name) in values
        assert len(values) > 1
        for value in values:
            with_values(base, {field: value})


def test_there_are_never_more_latents_than_half_of_the_tokens():
    base = load_config("digits", ["study=null"])
    assert base.trained_for is not None
    tokens = num_tokens(base.trained_for.model(base, num_classes=2))
    assert max(choices("digits")["model.encoder.num_latents"]) == tokens // 2
    smaller = choices("digits", "data.image={height: 16, width: 16, channels: 1}")
    assert max(smaller["model.encoder.num_latents"]) == 32  # 64 tokens


def test_a_grid_has_no_more_bands_than_it_can_show_but_the_own_ones():
    assert choices("digits")["model.positions.num_bands"] == (4, 7, 8)  # of 14 rows of tokens
    assert max(choices("imagenet")["model.positions.num_bands"]) == 112  # of 224 rows


def test_perceiver_ar_has_its_own_fields():
    assert {field.rpartition(".")[0] for field in choices("autoregressive")} == {
        "model.autoregressive"
    }


def test_its_trials_are_trainings():
    config = load_config("digits", ["study={space: perceiver, num_trials: 20}"])
    assert config.study is not None
    made = 0
    for settings in draw_settings(config.study, config.seed):
        try:
            trial_config(config, settings)
            made += 1
        except UserError:
            continue
    assert made > 10


def test_another_name_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match=r"study\.space is 'perciever'; .* of a space: perceiver"):
        load_config("digits", ["study={space: perciever}"])
