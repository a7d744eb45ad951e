"""Verbs in a folder whose name means something in YAML, URLs, globs or SQL addresses."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from pipeline.cli.main import main
from pipeline.config.sqlite_uri import absolute_uri, sqlite_path, sqlite_uri
from pipeline.runs.records import read_run_record

NAME = "exp #2: [v2] ünï 100% ?a&b=c {x,y} 'q'"
CONFIG = """
name: t
data:
  train: rows.csv
  validation: 0.2
  table: {numeric: [age]}
  target: {kind: class, column: label}
model:
  adapter: {kind: columns}
  encoder: {num_latents: 4, latent_dim: 16, num_blocks: 1, num_cross_attends: 1,
            num_self_attends: 1, num_cross_heads: 1, num_self_heads: 2, cross_channels: 16,
            latent_init_std: 1.0}
training: {epochs: 1, batch_size: 16, schedule: {warmup_epochs: 0}}
cluster: {num_workers: 0}
tracking: {system_metrics: false}
registry: {model_name: t}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / NAME
    folder.mkdir()
    ages = [20 + i % 50 for i in range(120)]
    frame = pd.DataFrame({"age": ages, "label": ["old" if a > 45 else "young" for a in ages]})
    frame.to_csv(folder / "rows.csv", index=False)
    (folder / "t.yaml").write_text(CONFIG)
    monkeypatch.chdir(folder)
    return folder


def test_every_verb_works_in_a_folder_of_any_name(
    folder: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["data.train=rows.csv", f"output={folder}/out #1"]
    assert main(["preprocess", "t.yaml", *overrides]) == 0
    assert main(["train", "t.yaml", *overrides]) == 0
    record = read_run_record(folder / "out #1" / "t", "train")
    assert record is not None
    registry = ["--output", "out #1"]
    assert main(["promote", record.result["run_id"], *registry]) == 0
    assert main(["predict", "models:/t@champion", "rows.csv", *registry, "--to", "a #b.csv"]) == 0
    assert len(pd.read_csv("a #b.csv")) == 120
    assert main(["inspect", "out #1/t/shards"]) == 0
    assert main(["verify", "out #1/t/shards"]) == 0
    shutil.move("out #1/t/shards", "-shards")
    assert main(["verify", "--", "-shards"]) == 0
    assert {path.name for path in folder.iterdir()} == {
        "rows.csv", "t.yaml", "out #1", "a #b.csv", "-shards"
    }  # fmt: skip
    assert list(folder.parent.iterdir()) == [folder], "nothing lies in a folder of a similar name"


@pytest.mark.parametrize("name", ["plain", "a b", "q?x=1", "100%", "%41", "#h", "ünï"])
def test_a_database_of_any_path_has_a_uri(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "mlflow.db"
    assert sqlite_path(sqlite_uri(path)) == path


def test_a_uri_of_a_relative_database_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///runs/m.db") == f"sqlite:///{tmp_path}/runs/m.db"
    for same in ("sqlite:////a/m.db", "http://h:1/x", "postgresql://h/d", "sqlite://"):
        assert absolute_uri(same) == same
