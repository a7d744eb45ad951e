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
from pipeline.runs.records import read_run_record
from pipeline.runs.tracking import run_config
from pipeline.workflow import STAGES
from pipeline.workflow.run import run

pytestmark = pytest.mark.usefixtures("ray_cluster")

STUDY = (
    "study={search: grid, num_workers: 1, grace_epochs: 1, epochs: 1, space: "
    "{training.learning_rate: {choice: [3e-3, 1e-6]}}}"
)
MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def make(
    make_config: MakeConfig, digit_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> MakeConfig:
    """Configurations in one output folder, on one set with a test split."""
    folder = tmp_path_factory.mktemp("workflow")
    return functools.partial(
        make_config, folder, f"data.test={digit_images / 'test'}", "cluster.num_workers=0",
        "data.samples_per_shard=100", "registry.model_name=flow",
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(make: MakeConfig) -> SimpleNamespace:
    """The command, stopped after each stage, and then all of it."""
    config = make(STUDY, "training.epochs=8")
    with (Path(config.output) / "told.txt").open("w+") as file:
        console = Console(file, file)
        parts = [run(config, console, until=stage)["stages"] for stage in STAGES]
        runs = num_runs(config)
        again = run(config, console)
    return SimpleNamespace(config=config, parts=parts, again=again, runs=runs)


def run_until_killed(config: Config, path: Path) -> None:
    """Run the command in a process of its own until it has a checkpoint, and kill it."""
    path.write_text(json.dumps(config.tree()))
    deadline = time.monotonic() + 400
    command = [sys.executable, "-m", "pipeline", "run", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not any((config.folder / "train" / "checkpoints").glob("step-*/state.json")):
                assert process.poll() is None, "the command has ended before it was killed"
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            process.kill()


def num_runs(config: Config) -> int:
    client = MlflowClient(config.tracking_uri)
    experiment = client.get_experiment_by_name(config.name)
    assert experiment is not None
    return len(client.search_runs([experiment.experiment_id]))


def skipped(result: dict[str, Any]) -> dict[str, bool]:
    return {stage["name"]: stage["skipped"] for stage in result["stages"]}


def test_each_stage_goes_on_from_those_before_it(done: SimpleNamespace) -> None:
    assert [stage["name"] for stage in done.parts[-1]] == list(STAGES)
    for number, part in enumerate(done.parts):
        earlier = [stage["skipped"] for stage in part[:number]]
        assert all(earlier) and len(part) == number + 1
        assert not part[-1]["skipped"]


def test_a_killed_command_goes_on_where_it_was(
    done: SimpleNamespace, make: MakeConfig, console: Console, tmp_path: Path
) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    config = make(
        "name=killed", "registry.model_name=killed", "training.epochs=30",
        "training.checkpoint_steps=3", f"cluster.address={address}",
    )  # fmt: skip
    run_until_killed(config, tmp_path / "killed.yaml")
    before = read_run_record(config.folder, "train")
    assert before is not None and not before.done
    result = run(config, console)
    assert skipped(result) == {
        "preprocess": True, "train": False, "evaluate": False, "promote": False,
    }  # fmt: skip
    record = read_run_record(config.folder, "train")
    assert record is not None and record.seconds > before.seconds
    assert result["run_id"] == before.result["run_id"], "it is the same training"
    told = (tmp_path / "console.txt").read_text()
    assert told.count("its output is there and verifies; skipped") == 1


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
    done: SimpleNamespace, make: MakeConfig, tmp_path: Path
) -> None:
    shards = done.config.shards_folder
    weak = make("name=weak", f"shards={shards}", "training.epochs=1")
    with (tmp_path / "told.txt").open("w+") as file:
        with pytest.raises(GateRefusedError):
            run(weak, Console(file, file))
        file.seek(0)
        table = file.read().rpartition("stages ")[2]
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
