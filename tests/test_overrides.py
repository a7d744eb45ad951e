"""Overrides on the command line: what a value means is decided by its field."""

import pytest

from pipeline.config.load import load_config
from pipeline.config.overrides import read_override, write_override
from pipeline.errors import UserError

AWKWARD = (
    "exp #2/runs",
    "a: b",
    "set [v2]",
    "[v2]",
    "{x, y}",
    "- dash",
    "-dash",
    "it's",
    'half "quoted',
    "100%",
    "a & b * c",
    "*star",
    "!bang",
    "@at",
    "ünï 文",
    "tab\there",
    "a=b",
    "2024",
    "1e3",
    "true",
    "2020-01-01",
    "a::b",
    " trailing ",
    "back\\slash",
)


@pytest.mark.parametrize("text", AWKWARD)
def test_a_field_of_text_takes_the_value_as_it_stands(text: str) -> None:
    assert load_config("digits", [f"data.train={text}"]).data.train == text


@pytest.mark.parametrize("text", [*AWKWARD, "null", '"q"', "it's #1", "\x01", ""])
def test_an_override_can_be_written_for_any_text(text: str) -> None:
    assert read_override(write_override("data.train", text)) == ("data.train", text)


def test_text_in_quotation_marks_is_without_them() -> None:
    assert load_config("digits", ['data.train="a #b"']).data.train == "a #b"
    assert load_config("digits", ["data.train='it''s'"]).data.train == "it's"


def test_null_unsets_a_field_of_text() -> None:
    assert load_config("digits", ["data.test=x", "data.test=null"]).data.test is None


@pytest.mark.parametrize(
    ("text", "expected"), [("0.25", 0.25), ("null", None), ("val #2", "val #2"), ("dir", "dir")]
)
def test_a_field_of_text_or_a_number_takes_either(text: str, expected: str | float | None) -> None:
    assert load_config("digits", [f"data.validation={text}"]).data.validation == expected


def test_other_fields_are_yaml() -> None:
    config = load_config(
        "digits",
        [
            "training.epochs=9",
            "training.learning_rate=1e-3",
            "training.augment={flip: true}",
            "study={num_trials: 2, space: {training.batch_size: {choice: [64]}}}",
        ],
    )
    assert (config.training.epochs, config.training.learning_rate) == (9, 1e-3)
    assert config.training.augment.flip
    assert config.study is not None and config.study.num_trials == 2


def test_fields_of_one_kind_of_section_only_are_known_by_all_kinds() -> None:
    # adapters are a union of kinds; `norm` is text in some of them
    assert read_override("model.adapter.kind=conv") == ("model.adapter.kind", "conv")
    assert read_override("model.adapter.num_channels=8") == ("model.adapter.num_channels", 8)


def test_what_is_not_yaml_is_refused_where_the_field_takes_no_text() -> None:
    with pytest.raises(UserError, match=r"'training\.epochs=a: b: c': not YAML"):
        load_config("digits", ["training.epochs=a: b: c"])
    with pytest.raises(UserError, match=r"overrides are section\.field=value"):
        load_config("digits", ["training.epochs"])
