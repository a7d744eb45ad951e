"""`perceiver run`: from raw media to an alias, and on from wherever it was stopped."""

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pipeline.cli.arguments import spelled
from pipeline.cli.parser import parse
from pipeline.config.tree import Config
from pipeline.errors import GateRefusedError, UserError
from pipeline.runs.console import Console
from pipeline.runs.tracking import run_config
from pipeline.tuning.journal import StudyJournal
from pipeline.tuning.journal_lines import JOURNAL_FILE
from pipeline.workflow import STAGES
from pipeline.workflow.run import run

pytestmark = pytest.mark.usefixtures("ray_cluster")

STUDY = (
    "study={search: grid, num_workers: 1, grace_epochs: 1, epochs: 1, space: "
    "{training.learning_rate: {choice: [3e-3, 1e-6]}}}"
)
MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def done(
    make_config: MakeConfig, digit_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """The command, killed within its study, and then stopped after each stage. Then all of it."""
    folder = tmp_path_factory.mktemp("workflow")
    make = functools.partial(
        make_config, folder, f"data.test={digit_images / 'test'}", "cluster.num_workers=0",
        "data.samples_per_shard=100", "registry.model_name=flow", "training.epochs=8",
    )  # fmt: skip
    config = make(STUDY)
    path = folder / "run.yaml"
    path.write_text(json.dumps(config.tree()))
    kill_within_the_study([sys.executable, "-m", "pipeline", "run", str(path)], config)
    with (folder / "told.txt").open("w+") as file:
        console = Console(file, file)
        parts = [run(config, console, until=stage)["stages"] for stage in STAGES]
        file.seek(0)
        told = file.read()
        runs = num_runs(config)
        again = run(config, console)
    return SimpleNamespace(
        config=config, make=make, parts=parts, told=told, again=again, runs=runs, folder=folder
    )


def kill_within_the_study(command: list[str], config: Config) -> None:
    """Run a command until its study has reported an epoch, and kill it."""
    journal = config.folder / "tune" / JOURNAL_FILE
    deadline = time.monotonic() + 600
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (journal.is_file() and StudyJournal(journal.parent).reports):
                assert process.poll() is None, "the command has ended before it was killed"
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()


def num_runs(config: Config) -> int:
    client = MlflowClient(config.tracking_uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    return len(client.search_runs(experiments))


def skipped(result: dict[str, Any]) -> dict[str, bool]:
    return {stage["name"]: stage["skipped"] for stage in result["stages"]}


def test_each_stage_goes_on_from_those_before_it(done: SimpleNamespace) -> None:
    assert [stage["name"] for stage in done.parts[-1]] == list(STAGES)
    for number, part in enumerate(done.parts):
        earlier = [stage["skipped"] for stage in part[:number]]
        assert all(earlier) and len(part) == number + 1
        assert part[-1]["skipped"] == (number == 0), "the shard set was made before the kill"
    assert "resuming the study" in done.told


def test_the_best_trial_is_trained_for_all_epochs_and_registered(done: SimpleNamespace) -> None:
    result = done.again
    client = MlflowClient(done.config.tracking_uri)
    version = client.get_model_version_by_alias("flow", "champion")
    assert result["model_uri"] == "models:/flow@champion"
    assert (version.run_id, str(version.version)) == (result["run_id"], result["version"])
    long = run_config(client, result["run_id"])
    assert long.training.learning_rate == 3e-3
    assert long.training.epochs == done.config.training.epochs == 8
    assert long.folder == done.config.folder.with_name("digits-trial-0")
    assert Path(result["checkpoint"]).is_relative_to(long.folder)
    assert (result["split"], result["samples"]) == ("test", 60)
    assert client.get_run(result["run_id"]).data.metrics["evaluate_test_accuracy"] == (
        pytest.approx(result["metrics"]["accuracy"])
    )


def test_what_is_done_is_skipped_and_nothing_new_is_made(done: SimpleNamespace) -> None:
    assert all(skipped(done.again).values())
    assert num_runs(done.config) == done.runs
    outcomes = [stage["outcome"] for stage in done.again["stages"]]
    assert outcomes == [stage["outcome"] for stage in done.parts[-1]]


def test_an_alias_that_is_gone_is_set_again_and_one_that_has_moved_on_stays(
    done: SimpleNamespace, console: Console
) -> None:
    client = MlflowClient(done.config.tracking_uri)
    client.delete_registered_model_alias("flow", "champion")
    result = run(done.config, console)
    assert [name for name, was in skipped(result).items() if not was] == ["promote"]
    source = client.get_model_version("flow", result["version"]).source
    other = client.create_model_version("flow", source, result["run_id"])
    client.set_registered_model_alias("flow", "champion", other.version)
    assert all(skipped(run(done.config, console)).values())
    assert client.get_model_version_by_alias("flow", "champion").version == other.version
    client.set_registered_model_alias("flow", "champion", result["version"])
    client.delete_model_version("flow", other.version)


def test_a_model_that_does_not_beat_the_champion_is_refused_after_its_stages_are_told(
    done: SimpleNamespace, tmp_path: Path
) -> None:
    shards = done.config.shards_folder
    weak = done.make("name=weak", f"shards={shards}", "training.epochs=1")
    with (tmp_path / "told.txt").open("w+") as file:
        with pytest.raises(GateRefusedError):
            run(weak, Console(file, file))
        file.seek(0)
        table = file.read().split("stages\n")[-1]
        assert all(name in table for name in ("preprocess", "train", "evaluate"))
        assert "promote" not in table and "tune" not in table
        done_again = run(weak, Console(file, file), until="evaluate")
    assert skipped(done_again) == {"preprocess": True, "train": True, "evaluate": True}


def test_a_fresh_run_does_every_stage_again_and_leaves_the_registered_model(
    done: SimpleNamespace, console: Console
) -> None:
    result = run(done.config, console, until="evaluate", fresh=True)
    assert not any(skipped(result).values())
    assert result["metrics"] == pytest.approx(done.again["metrics"])
    client = MlflowClient(done.config.tracking_uri)
    assert client.get_model_version_by_alias("flow", "champion").run_id == done.again["run_id"]


@pytest.mark.parametrize(
    ("overrides", "until", "line"),
    [
        ((), "tune", r"--until tune: digits has no such stage; .* preprocess, train, evaluate"),
        (("data.validation=null",), None, "data.validation: models are compared on a validation"),
        (("registry.alias=latest",), None, "registry.alias='latest'"),
        (("tracking.uri=sqlite:////proc/x.db",), None, "tracking.uri=sqlite:////proc/x.db"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_the_first(
    overrides: tuple[str, ...], until: str | None, line: str,
    make_config: MakeConfig, console: Console, tmp_path: Path,
) -> None:  # fmt: skip
    config = make_config(tmp_path / "runs", *overrides)
    with pytest.raises(UserError, match=line):
        run(config, console, until=until)
    assert not config.folder.exists()


def test_a_job_gets_the_stage_to_stop_after() -> None:
    sent = parse(spelled(parse(["run", "digits", "--until", "tune", "seed=1", "--fresh"])))
    assert (sent.until, sent.fresh, sent.overrides) == ("tune", True, ["seed=1"])
