"""One rule for every verb: what is named, then MLFLOW_TRACKING_URI, then the output's database."""

from pathlib import Path

import pytest

from pipeline.config.load import load_config, with_values
from pipeline.config.tracking_uri import tracking_uri
from pipeline.runs import mlflow_client


def read(*overrides: str) -> str:
    return load_config("digits", ["output=/o", *overrides]).tracking_uri


def test_the_database_in_the_output_is_the_last_resort(monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert read() == "sqlite:////o/mlflow.db" == tracking_uri(None, "/o")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert read() == "sqlite:////o/mlflow.db" == tracking_uri(None, "/o")


def test_the_variable_is_for_verbs_with_a_configuration_as_for_those_without(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    assert read() == "http://team:5000" == tracking_uri(None, "/o")
    assert read("tracking.uri=http://mine:1") == "http://mine:1"
    assert tracking_uri("http://mine:1", "/o") == "http://mine:1"


def test_workers_mean_what_the_driver_meant_whatever_their_environment(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    config = load_config("digits", ["output=/o"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:1")
    assert config.tracking_uri == "http://team:5000"
    assert with_values(config, {"seed": 3}).tracking_uri == "http://team:5000"
    assert type(config).model_validate_json(config.model_dump_json()) == config
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    plain = load_config("digits", ["output=/o"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:1")
    assert plain.tracking_uri == "sqlite:////o/mlflow.db"


def test_a_relative_database_lies_in_the_working_directory(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///team.db")
    assert read() == f"sqlite:///{tmp_path}/team.db"
    assert read("tracking.uri=sqlite:///mine.db") == f"sqlite:///{tmp_path}/mine.db"


def test_a_client_without_a_configuration_follows_the_same_rule(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(Exception, match=r"none\.db: no such database"):
        mlflow_client.registry(None, str(tmp_path / "out"))
