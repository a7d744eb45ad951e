"""The command line: what it prints, where, and its exit status."""

import json
import shutil
import socket
from pathlib import Path

import pytest
from cli_commands import files_in, perceiver, python
from small_digits import digits_config

from pipeline.cli.main import main
from pipeline.cli.parser import parse
from pipeline.config.load import load_config
from pipeline.media.sandbox.sandbox import protections
from shards import Sample, publish, write_shard

HEAVY = {"ray", "torch", "mlflow", "deepspeed", "pydantic", "numpy", "pandas", "pyarrow", "rich"}


def make_set(folder: Path) -> Path:
    """A published shard set of two samples."""
    samples = [Sample(f"k{n}", {"cls": b"0"}, n, f"train/{n}.png", "0" * 64) for n in range(2)]
    write_shard(folder / "staging", 0, "train", samples)
    publish(
        folder / "staging", folder / "set", numbers=[0], config={}, input_digest="0" * 64,
        classes=("cat", "owl"),
    )  # fmt: skip
    return folder / "set"


# --- lightness ---


@pytest.mark.parametrize("args", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(args):
    code = f"""
import sys
import tempfile
import time
from pipeline.cli.main import main
try:
    main({args!r})
except SystemExit as end:
    assert end.code == 0, end.code
found = {HEAVY!r} & set(sys.modules)
assert not found, found
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "perceiver" in done.stdout


def test_reading_a_configuration_imports_no_engine(tmp_path):
    code = """
import sys
import tempfile
import time
from pipeline.cli.main import main
assert main(["config", "digits"]) == 0
found = {"ray", "torch", "mlflow", "deepspeed"} & set(sys.modules)
assert not found, found
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


# --- results ---


@pytest.mark.parametrize("name", ["digits", "audio", "imagenet"])
def test_config_prints_yaml_that_reads_back_equal(tmp_path, capsys, name):
    assert main(["config", name, "seed=3", "training.learning_rate=1e-4"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    expected = load_config(name, ["seed=3", "training.learning_rate=1e-4"])
    assert load_config(str(tmp_path / "printed.yaml")) == expected
    assert main(["config", str(tmp_path / "printed.yaml")]) == 0
    assert capsys.readouterr().out == printed


def test_config_as_json_is_the_tree_and_what_the_sandbox_holds(capsys):
    assert main(["config", "--json", "digits", "seed=3"]) == 0
    found = json.loads(capsys.readouterr().out)
    here = protections()
    held = {name: layers for name, layers in here.layers.items() if layers}
    assert found.pop("sandbox") == {"held": held, "missing": here.missing}
    assert found == load_config("digits", ["seed=3"]).tree()


def test_config_says_what_the_sandbox_holds_and_what_not(capsys):
    assert main(["config", "digits"]) == 0
    printed = capsys.readouterr().out
    here = protections()
    for name, layers in here.layers.items():
        expected = ", ".join(layers) or f"NOT HELD ({here.missing[name]})"
        assert f"#   {name}: {expected}\n" in printed


@pytest.mark.parametrize(
    "args",
    [
        ["config", "digits", "--json", "seed=3"],
        ["config", "--json", "digits", "seed=3"],
        ["config", "digits", "seed=3", "--json"],
        ["config", "--json", "--", "digits", "seed=3"],
        ["config", "digits", "--json", "--", "seed=3"],
        ["config", "digits", "--json", "--debug", "seed=3"],
    ],
)
def test_options_may_stand_anywhere_among_the_overrides(capsys, args):
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 3


def parsed(*args: str) -> dict:
    return vars(parse(list(args)))


def test_every_verb_takes_its_options_in_any_place():
    for verb in ("preprocess", "train", "tune"):
        found = parsed(verb, "x.yaml", "a.b=1", "--fresh", "c=2", "--json", "d=3")
        assert (found["overrides"], found["fresh"]) == (["a.b=1", "c=2", "d=3"], True)
        assert found["json"]
    found = parsed("predict", "models:/a@b", "1.png", "--to", "x.csv", "2.png", "--json", "3.png")
    assert (found["inputs"], str(found["to"])) == (["1.png", "2.png", "3.png"], "x.csv")
    assert parsed("promote", "--json", "r", "--name", "n")["run_id"] == "r"
    assert parsed("inspect", "s", "--json")["shards"] == "s"


def test_behind_two_dashes_nothing_is_an_option():
    found = parsed("predict", "models:/a@b", "--json", "--", "--to", "-x.png")
    assert (found["inputs"], found["to"]) == (["--to", "-x.png"], None)
    found = parsed("submit", "--no-wait", "--", "train", "c.yaml", "--json", "a=1")
    assert (found["command"], found["json"]) == (["train", "c.yaml", "--json", "a=1"], False)


@pytest.mark.parametrize("args", [["train", "x.yaml", "--jsno", "a=1"], ["inspect", "a", "b"]])
def test_unknown_options_and_surplus_arguments_are_refused(capsys, args):
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_inspect_and_verify_a_shard_set(tmp_path, capsys):
    shards = str(make_set(tmp_path))
    assert main(["inspect", "--json", shards]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["splits"]["train"]["samples"] == 2
    assert found["class_counts"] == {"train": {"cat": 1, "owl": 1}}
    assert "owl" in printed.err
    assert main(["verify", "--json", shards]) == 0
    assert json.loads(capsys.readouterr().out) == {"shards": shards, "problems": []}
    assert main(["verify", shards]) == 0
    assert capsys.readouterr().out.strip().endswith(found["digest"])


def test_inspect_shows_a_person_tables(tmp_path, capsys):
    assert main(["inspect", str(make_set(tmp_path))]) == 0
    printed = capsys.readouterr()
    assert (
        "digest " in printed.out and "owl" in printed.out and "quarantined files: 0" in printed.out
    )
    assert printed.err == ""


def test_verify_names_damage_and_fails(tmp_path, capsys):
    shards = make_set(tmp_path)
    tar = shards / "shard-00000.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    assert main(["verify", str(shards)]) == 1
    assert capsys.readouterr().out.startswith("shard-00000.tar: ")
    assert main(["verify", "--json", str(shards)]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["file"] == "shard-00000.tar"


# --- the input is at fault ---


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["config", "digitz"], "perceiver config: digitz: no such configuration file"),
        (["config", "digits", "training.epoch=3"], "training.epoch: unknown key; did you mean"),
        (["config", "digits", "training.epochs"], "'training.epochs': overrides are section.field"),
        (["config", "digits", "seed=-1"], "perceiver config: digits: seed: is -1; must be greater"),
        (["verify", "raw"], "raw: no manifest.json: not a shard set"),
        (["inspect", "raw"], "raw: no manifest.json: not a shard set"),
        (
            ["inspect", "nowhere"],
            "nowhere: no manifest.json: there is nothing here; check the path",
        ),
        (["inspect", "raw/a.txt"], "no manifest.json"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, monkeypatch, capsys, args, message):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"perceiver {args[0]}: ") and message in line
    assert files_in(tmp_path) == ["raw/a.txt"]


def test_every_problem_of_a_configuration_has_its_line(capsys):
    assert main(["config", "digits", "seed=-1", "trainig.epochs=2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("perceiver config: digits: ") for line in lines)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["preprocess", "digits", "data.train=missing", "output=out"],
            "perceiver preprocess: data.train=missing: no such folder",
        ),
        (["train", "digits", "training.epoch=3", "output=out"], "did you mean 'epochs'?"),
        (["predict", "models:/a@b", "raw", "--output", "out"], "out/mlflow.db: no such database; "),
        (["promote", "abc", "--output", "out"], "out/mlflow.db: no such database; name MLflow's"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_leaves_nothing_behind(tmp_path, args, message):
    done = perceiver(*args, folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"perceiver {args[0]}: ") and message in line
    assert files_in(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


def test_a_cluster_that_does_not_answer_is_told_and_leaves_nothing_behind(digit_images, tmp_path):
    with socket.socket() as silent:  # bound, but listening to nobody
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = perceiver(
            "preprocess", "digits", f"data.train={digit_images / 'train'}", "data.validation=null",
            "data.test=null", f"cluster.address={address}", folder=tmp_path,
            RAY_py_gcs_connect_timeout_s="1", RAY_gcs_rpc_server_connect_timeout_s="1",
        )  # fmt: skip
    assert done.returncode == 2
    assert f"cluster.address={address}: no Ray cluster answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


def test_a_run_folder_that_was_there_stays(tmp_path):
    kept = tmp_path / "out" / "digits" / "stages" / "train.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    done = perceiver("preprocess", "digits", "data.train=missing", "output=out", folder=tmp_path)
    assert done.returncode == 2
    assert kept.is_file()


@pytest.mark.parametrize("args", [[], ["fly"], ["train"], ["predict", "models:/a@b"]])
def test_wrong_usage_exits_2(capsys, args):
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2
    assert "usage: perceiver" in capsys.readouterr().err


def test_debug_shows_the_traceback_too(capsys):
    assert main(["config", "--debug", "digitz"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and printed.splitlines()[-1].startswith(
        "perceiver config: digitz: "
    )


def test_a_training_ends_with_its_report(tmp_path, empty_database, capfd):
    values = {"training.epochs": 1, "tracking.examples": 0}
    config = digits_config(tmp_path / "out", "digits", (0, 1), values)
    shutil.copy(empty_database, tmp_path / "out" / "mlflow.db")
    path = tmp_path / "digits.yaml"
    path.write_text(json.dumps(config.tree()))
    for _ in range(2):  # done, and skipped
        assert main(["train", str(path)]) == 0
        assert "best checkpoint" in capfd.readouterr().out
