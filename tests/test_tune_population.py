"""Population-based training: weights are handed over, and a killed study goes on from there."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from saved_checkpoints import load

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.training.checkpoints import last_checkpoint, read_checkpoint
from pipeline.tuning.hand_over import checkpoint_after, hand_over
from pipeline.tuning.journal import Generation, Handover, StudyJournal
from pipeline.tuning.report import report
from pipeline.tuning.trials import trial_folder
from pipeline.tuning.tune import tune

STUDY = (
    "study={scheduler: pbt, search: grid, epochs: 2, "
    "space: {training.learning_rate: {choice: [3e-3, 1e-6]}}}"
)


def test_weights_are_handed_over_and_a_killed_population_goes_on(
    make_config: Callable[..., Config],
    digit_shards: Path,
    ray_cluster: None,
    tmp_path: Path,
    console: Console,
) -> None:
    import ray

    address = f"cluster.address={ray.get_runtime_context().gcs_address}"
    config = make_config(tmp_path, f"shards={digit_shards}", STUDY, address)
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(config.tree()))
    folder = config.folder / "tune"
    with subprocess.Popen([sys.executable, "-m", "pipeline", "tune", str(path)]) as process:
        try:
            deadline = time.monotonic() + 500
            while '"generation"' not in read(folder / "reports.jsonl"):
                assert process.poll() is None, "the study has ended before it was killed"
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
    (handover,) = handovers(folder)
    assert (handover.trial, handover.donor, handover.epoch) == (1, 0, 1)
    donor, heir = (checkpoint_after(trial_folder(folder, n) / "checkpoints", 1) for n in (0, 1))
    for kind in ("weights", "optimizer"):
        given, taken = load(donor, kind), load(heir, kind)
        assert given.keys() == taken.keys() and given
        assert all(torch.equal(given[name], taken[name]) for name in given)
    assert donor.model_sha256() == heir.model_sha256() == handover.weights
    assert heir.state == donor.state

    result = tune(config, console)
    assert [h for h in handovers(folder) if h.epoch == 1] == [handover]
    assert generations(folder) == [1], "trials do not wait at their end"
    trials = {trial["id"]: trial for trial in result["trials"]}
    assert {name: trial["epochs"] for name, trial in trials.items()} == {"00000": 2, "00001": 2}
    assert "took over the weights of trial 0 after epoch 1" in trials["00001"]["notes"]
    assert trials["00001"]["params"] == handover.settings
    # What came of the weights that it took, and not of its own.
    last = last_checkpoint(trial_folder(folder, 1) / "checkpoints")
    assert last is not None and last.state.scores[0] == donor.state.score
    client = MlflowClient(config.tracking_uri)
    statuses = {client.get_run(trial["run_id"]).info.status for trial in result["trials"]}
    assert statuses == {"FINISHED"}
    report(result, console)
    assert "tookovertheweights" in "".join((tmp_path / "console.txt").read_text().split())
    assert tune(config, console)["skipped"]
    more = make_config(
        tmp_path, f"shards={digit_shards}", address, STUDY.replace("1e-6]", "1e-6, 1e-5]")
    )
    with pytest.raises(UserError, match="made with other settings"):
        tune(more, console)

    # A handover that a kill cut short is done again.
    torn = trial_folder(folder, 1) / "checkpoints" / donor.path.name
    (torn / "state.json").unlink(missing_ok=True)
    again = hand_over(trial_folder(folder, 0), trial_folder(folder, 1), 1)
    assert again == handover.weights == read_checkpoint(torn).model_sha256()
    with pytest.raises(UserError, match="no checkpoint after epoch 7, which another trial is to"):
        hand_over(trial_folder(folder, 0), trial_folder(folder, 1), 7)


def read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def generations(folder: Path) -> list[int]:
    entries = StudyJournal(folder).entries
    return [entry.generation for entry in entries if isinstance(entry, Generation)]


def handovers(folder: Path) -> list[Handover]:
    return [entry for entry in StudyJournal(folder).entries if isinstance(entry, Handover)]
