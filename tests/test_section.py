"""Sections as trees of plain values: their digests, their leaves, and as YAML."""

import hashlib

import yaml

from pipeline.config import Config
from pipeline.load_config import load_config
from pipeline.section import canonical_json, digest, flatten


def test_equal_trees_have_equal_digests_whatever_their_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest(value) for value in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, [1])}) == 5
    assert digest({"b": 2, "a": [1]}) == hashlib.sha256(b'{"a":[1],"b":2}').hexdigest()
    assert canonical_json({"b": None, "a": True}) == '{"a":true,"b":null}'


def test_flatten_names_leaves_by_dotted_paths():
    tree = {"a": 1, "b": {"c": [1, {"d": 2}], "e": {"f": None}}}
    assert flatten(tree) == {"a": 1, "b.c": [1, {"d": 2}], "b.e.f": None}


def test_the_tree_survives_yaml():
    config = load_config("audio")
    text = yaml.safe_dump(config.tree(), sort_keys=False)
    assert Config.model_validate_json(canonical_json(yaml.safe_load(text))) == config
