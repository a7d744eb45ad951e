"""What a job is sent: paths that mean the same on every machine."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.load_config import load_config
from pipeline.submit import _with_absolute_paths


def test_a_jobs_relative_paths_are_made_absolute_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["digits", "data.train=raw/train", "shards=sets/a", "output=out", "data.test=s3://b/t"]
    sent = _with_absolute_paths("preprocess", given)
    config = load_config(sent[0], sent[1:])
    assert config.output == str(tmp_path / "out")
    assert config.shards == str(tmp_path / "sets" / "a")
    assert config.data.train == str(tmp_path / "raw" / "train")
    assert config.data.test == "s3://b/t"


def test_a_job_refuses_places_in_its_temporary_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for field in ("output", "shards"):
        with pytest.raises(UserError, match=f"{field}: is 'here', and a Ray job runs in a temp"):
            load_config("digits", ["output=/o", f"{field}=here"])
    assert load_config("digits", ["output=/o", "shards=memory://set"]).shards == "memory://set"
