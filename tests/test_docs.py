"""What the documentation says is so: its examples run, its commands and names are there."""

import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from shard_sets import make_set

from pipeline.cli.parser import parse
from pipeline.config.fields import types_of_field
from pipeline.config.load import load_config
from pipeline.preprocess.sources.listing import list_sources
from shards import ShardReader, ShardSet

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PACKAGES = "(?:perceiver_model|shards|cluster|pipeline|benchmarks|tests)"


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


def test_the_data_page_s_loader_runs(tmp_path):
    make_set(tmp_path / "set")
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    (loader,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    names = {"folder": tmp_path / "set"}
    exec(compile(loader, "docs/data.md", "exec"), names)
    assert (names["state"]["samples"], names["state"]["epoch"]) == (9, 0)


# extending.md configures kinds that it adds first; its own test runs it.
YAML_BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    if page.name != "extending.md"
    for number, block in enumerate(
        re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
    )
]


@pytest.mark.parametrize("block", YAML_BLOCKS)
def test_every_configuration_in_the_docs_loads(block, tmp_path):
    rest = {
        "name": "page",
        "data": {"train": "images", "image": {"height": 32, "width": 32}},
        "model": {"adapter": {"kind": "pixels"}},
    }
    path = tmp_path / "page.yaml"
    path.write_text(yaml.safe_dump(rest | yaml.safe_load(block)), encoding="utf-8")
    load_config(str(path), [])


def test_the_readme_and_the_pages_have_configurations():
    pages = {parameters.id.rpartition("-")[0] for parameters in YAML_BLOCKS}
    assert {"README", "data", "tutorial"} <= pages


def test_the_tutorial_draws_the_images_that_its_configuration_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    (draw,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    exec(compile(draw, "docs/tutorial.md", "exec"), {})
    (tree,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.S)
    (tmp_path / "shapes.yaml").write_text(tree, encoding="utf-8")
    config = load_config("shapes.yaml", [])
    source_table = list_sources(config)
    assert source_table.classes == ("circle", "square", "triangle")
    assert (source_table.table.num_rows, len(source_table.refused)) == (300, 0)
    asked = re.findall(r"new/\w+(?:/\w+\.png)?", text)
    assert asked and all((tmp_path / name).exists() for name in asked)


def commands() -> list[str]:
    """Every whole command line of `perceiver` in the docs: in blocks, and in code in a line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```(?:bash|text)\n(.*?)```", text, flags=re.S):
            for line in block.replace("\\\n", " ").splitlines():
                found += re.findall(r"^(?:\$ )?perceiver (?!\w+:)(.*)", line)
                found += re.findall(r"python -m pipeline (.*)", line)
        prose = re.sub(r"```.*?```", "", text, flags=re.S)
        found += re.findall(r"`perceiver ([^`]* [^`]*)`", prose)
    return list(dict.fromkeys(" ".join(command.split()) for command in found))


@pytest.mark.parametrize("command", commands())
def test_every_command_in_the_docs_is_one_that_perceiver_takes(command):
    # An ellipsis stands for more of the same.
    words = [word for word in shlex.split(command, comments=True) if word != "…"]
    args = parse(words)
    if words[0] == "submit":
        args = parse(args.command) if args.command[0] != "VERB" else args
    for override in getattr(args, "overrides", ()):
        field = override.partition("=")[0]
        wrong_on_purpose = field == "training.learning_ratee"
        assert bool(types_of_field(field.split("."))) != wrong_on_purpose, field


def test_the_docs_have_commands_of_every_verb():
    verbs = {command.split()[0] for command in commands()}
    assert {
        "preprocess",
        "train",
        "tune",
        "evaluate",
        "promote",
        "predict",
        "submit",
        "bench",
    } <= verbs


def test_the_make_targets_in_the_docs_are_there():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:^|`)make (\w+)", text, flags=re.M))
    assert {"demo", "test", "docs"} <= named <= set(targets)


def test_the_code_that_the_docs_name_is_there():
    """Paths such as `shards/reader.py`, and names such as `shards.reader.ShardReader.read`."""
    missing = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        written = re.findall(r"Write `([\w./]+)`", text)  # by the reader
        for path in set(re.findall(rf"`({PACKAGES}/[\w/.*]*)`", text)) - {*written}:
            if not any(ROOT.glob(path.rstrip("/").replace("NAME", "*"))):
                missing.append(f"{page.name}: {path}")
        for name in re.findall(rf"`({PACKAGES}(?:\.(?!parquet)\w+)+)`", text):
            if not is_named(name) and not types_of_field(name.split(".")):
                missing.append(f"{page.name}: {name}")
    assert missing == []


def is_named(dotted: str) -> bool:
    """Whether a module has the name, and a class in it the rest."""
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_wraps_at_100(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    assert [line for line in text.splitlines() if len(line) > 100 and line[0] != "|"] == []
