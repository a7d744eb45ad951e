"""Sections as trees of plain values: their differences, their leaves, and as YAML."""

import json

import yaml

from perceiver_model.config_checks import flatten
from pipeline.config.base import differences
from pipeline.config.load import load_config
from pipeline.config.tree import Config


def test_differences_name_three_fields_and_count_the_others():
    then = {"a": 1, "b": "x", "c": None, "d": 4.0, "e": [1]}
    assert differences(then, dict(then)) is None
    assert differences(then, {**then, "b": "y"}) == "b was 'x', is 'y'"
    assert (
        differences({}, then)
        == "a was None, is 1; b was None, is 'x'; d was None, is 4.0 and 1 more"
    )


def test_flatten_names_leaves_by_dotted_paths():
    tree = {"a": 1, "b": {"c": [1, {"d": 2}], "e": {"f": None}}}
    assert flatten(tree) == {"a": 1, "b.c": [1, {"d": 2}], "b.e.f": None}


def test_the_tree_survives_yaml():
    config = load_config("audio")
    text = yaml.safe_dump(config.tree(), sort_keys=False)
    assert Config.model_validate_json(json.dumps(yaml.safe_load(text))) == config
