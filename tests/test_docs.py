"""The examples of the documentation run as they stand."""

import re
from pathlib import Path

import torch
import yaml
from shard_sets import make_set

from pipeline.config.load import load_config
from shards import ShardReader, ShardSet

DOCS = Path(__file__).parent.parent / "docs"


def test_the_models_examples_run_one_after_the_other(tmp_path):
    torch.manual_seed(0)
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    names = {"folder": tmp_path}
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) > 5
    for block in blocks:
        exec(compile(block, "docs/models.md", "exec"), names)


def test_the_reader_in_the_format_s_description_reads_a_set(tmp_path, capsys):
    make_set(tmp_path / "set")
    text = (DOCS / "shard-format.md").read_text(encoding="utf-8")
    (reader,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    names = {"folder": tmp_path / "set"}
    exec(compile(reader, "docs/shard-format.md", "exec"), names)
    assert capsys.readouterr().out == "sample-000 0 (3, 7, 3)\n"
    expected = ShardReader(ShardSet.open(tmp_path / "set"), "val")
    read = list(names["read_set"](tmp_path / "set", "val"))
    assert len(read) == len(expected) == 3
    for number, (key, target, members) in enumerate(read):
        sample = expected.read(number)
        assert (key, target) == (sample.key, sample.target)
        assert members == {name: bytes(value) for name, value in sample.members.items()}


def test_the_data_page_s_configurations_load_and_its_loader_runs(tmp_path):
    make_set(tmp_path / "set")
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.S)
    assert len(blocks) > 5
    for block in blocks:
        tree = {"name": "page", "model": {"adapter": {"kind": "pixels"}}, **yaml.safe_load(block)}
        path = tmp_path / "page.yaml"
        path.write_text(yaml.safe_dump(tree))
        load_config(str(path), [])
    (loader,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    names = {"folder": tmp_path / "set"}
    exec(compile(loader, "docs/data.md", "exec"), names)
    assert (names["state"]["samples"], names["state"]["epoch"]) == (9, 0)
