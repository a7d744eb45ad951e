"""What a study tells: settings and trials by rank, intervals, the front, and what happened."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pipeline.config.tree import Config
from pipeline.config.trial_configs import study_base
from pipeline.runs.console import Console
from pipeline.runs.outbox import RunRef
from pipeline.runs.records import write_json
from pipeline.training.train import train
from pipeline.tuning.admission import Admission
from pipeline.tuning.journal import Begin, Failure, Handover, Note, Refusal, Report, StudyJournal
from pipeline.tuning.report import report
from pipeline.tuning.results import checkpoint_score, study_results
from pipeline.tuning.study import Study
from pipeline.tuning.trials import TRIAL_FILE, trial_folder
from shards import ShardSet

RATE, LATENTS = "training.learning_rate", "model.encoder.num_latents"
RATES = (3e-3, 1e-6)
LEFT = {"plot": "p.png", "run_id": "r", "skipped": False, "undelivered": None}


@pytest.fixture(scope="module")
def trained(
    make_config: Callable[..., Config],
    digit_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Two trainings, with a large and a small learning rate, and a function that makes studies.

    The trials of a study are these trainings. The function takes the section `study` and, for each
    trial, the number of its settings and its seed.
    """
    folder = tmp_path_factory.mktemp("trained")
    found = []
    with (folder / "told.txt").open("w") as file:
        for number, rate in enumerate(RATES):
            config = make_config(
                folder, f"shards={digit_shards}", f"name=t{number}", f"{RATE}={rate}",
                "cluster.num_workers=0", "training.epochs=1",
            )  # fmt: skip
            found.append((config.folder / "train", train(config, Console(file, file))))

    def make(path: Path, section: str, trials: list[tuple[int, int]], console: Console) -> Any:
        config = make_config(
            folder, f"shards={digit_shards}", f"study={section}", "training.epochs=1"
        )
        assert config.study is not None
        base = study_base(config, config.study)
        shard_set = ShardSet.open(digit_shards)
        admission = Admission(base, shard_set, console)
        run = RunRef(config.tracking_uri, found[0][1]["run_id"], str(path))
        study = Study(base, config.study, path, run, StudyJournal(path),
                      admission.samples_per_epoch, admission.costs, checkpoint_score)  # fmt: skip
        for number, (draw, seed) in enumerate(trials):
            there = trial_folder(path, number)
            there.mkdir(parents=True)
            (there / "checkpoints").symlink_to(found[draw][0] / "checkpoints")
            settings = {RATE: RATES[draw]}
            write_json(there / TRIAL_FILE, {"params": settings, "run_id": found[draw][1]["run_id"]})
            study.journal.append(Begin(number, draw, seed, settings))
            study.journal.append(Report(number, 1, 0.1, False))
        return study, shard_set

    return {"make": make, "results": [result for _, result in found]}


def told(tmp_path: Path) -> str:
    return "".join((tmp_path / "console.txt").read_text().split())  # cells may be wrapped


SEEDS = f"{{search: grid, seeds: 2, confirm: 1, space: {{{RATE}: {{choice: [3e-3, 1e-6]}}}}}}"


def test_settings_with_several_seeds_have_means_and_intervals(
    trained: dict[str, Any], tmp_path: Path, console: Console
) -> None:
    trials = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    study, shard_set = trained["make"](tmp_path, SEEDS, trials, console)
    result = study_results(study, shard_set)
    better, worse = (each["metrics"]["val_accuracy"] for each in trained["results"])
    assert better > worse
    for setting, accuracy in zip(result["settings"], (better, worse), strict=True):
        assert setting["accuracy"] == pytest.approx(accuracy)
        assert setting["interval"] == pytest.approx([accuracy, accuracy])
        assert (setting["seeds"], len(setting["ids"])) == (2, 2)
        assert setting["forward_flops"] > 1e6
    first, second = result["settings"]
    assert first["memory"] > 2**20 and first["latency_ms"] > 0
    assert not {"memory", "latency_ms"} & second.keys(), "it is on no front: worse and no cheaper"
    assert [trial["id"] for trial in result["trials"]] == ["00000", "00002", "00001", "00003"]
    assert [trial["seed"] for trial in result["trials"]] == [0, 1, 0, 1]
    assert result["best"] == result["trials"][0]
    assert result["confirmed"]["interval"] is None, "one seed has none"
    (confirming,) = result["confirmed"]["trials"]
    assert (confirming["id"], confirming["seed"]) == ("00004", 2)
    client = MlflowClient(study.run.tracking_uri)
    metrics = client.get_run(result["best"]["run_id"]).data.metrics
    for name in ("settings_mean", "settings_low", "settings_high"):
        assert metrics[name] == pytest.approx(better)
    report({**result, **LEFT}, console)
    assert "settings,bytheworseboundofaccuracy" in told(tmp_path)
    assert f"trainedagain:accuracy{better:.4f},from1otherseeds" in told(tmp_path)


def test_what_happened_to_each_trial_is_told(
    trained: dict[str, Any], tmp_path: Path, console: Console
) -> None:
    section = f"{{num_trials: 4, space: {{{RATE}: {{loguniform: [1e-6, 3e-3]}}}}}}"
    study, shard_set = trained["make"](tmp_path, section, [(0, 0), (1, 0)], console)
    journal = study.journal
    for _ in range(3):
        journal.append(Note(0, "resumed, after epoch 1"))
    journal.append(Handover(1, 1, 0, {RATE: 2e-3}, "0" * 64))
    journal.append(Begin(2, 2, 0, {RATE: 1e-5}))
    journal.append(Failure(2, "the loss is not finite", final=False))
    journal.append(Refusal(3, {RATE: 1e-4}, "latent_dim is 36"))
    result = study_results(study, shard_set)
    assert result["failed"] == ["the loss is not finite"]
    assert result["refused"] == ["latent_dim is 36"]
    assert [trial["notes"] for trial in result["trials"]] == [
        ["resumed, after epoch 1"] * 3, ["took over the weights of trial 0 after epoch 1"],
    ]  # fmt: skip
    assert result["trials"][1]["params"] == {RATE: 2e-3}
    assert [setting["interval"] for setting in result["settings"]] == [None, None]
    report({**result, **LEFT}, console)
    for text in (
        "resumed,afterepoch1(3times)",
        "tookovertheweights",
        "atrialfailed:thelossisnotfinite",
        "settingswerenottrained:latent_dimis36",
    ):
        assert text in told(tmp_path)


def test_the_front_of_several_objectives_is_marked(
    trained: dict[str, Any], tmp_path: Path, console: Console
) -> None:
    section = (
        "{num_trials: 3, scheduler: none, objectives: [flops, parameters], "
        f"space: {{{RATE}: {{loguniform: [1e-6, 3e-3]}}}}}}"
    )
    study, shard_set = trained["make"](tmp_path, section, [(0, 0), (1, 0)], console)
    result = study_results(study, shard_set)
    assert result["front"] == ["00000"], "the other one has the same FLOPs and is worse"
    cheap = replace(study, costs=lambda settings: {"flops": settings[RATE], "parameters": 1.0})
    result = study_results(cheap, shard_set)
    assert result["front"] == ["00000", "00001"]
    assert [setting["on_front"] for setting in result["settings"]] == [True, True]
    report({**result, **LEFT}, console)
    assert "*isonthefront" in told(tmp_path) and "1*" in told(tmp_path)


def test_settings_are_admitted_if_they_can_be_trained(
    make_config: Callable[..., Config], digit_shards: Path, tmp_path: Path, console: Console
) -> None:
    base = make_config(tmp_path, f"shards={digit_shards}")
    admission = Admission(base, ShardSet.open(digit_shards), console)
    assert admission.refuses({LATENTS: 16}) is None
    refused = admission.refuses({"model.encoder.num_self_heads": 7})
    assert refused is not None and "num_self_heads" in refused and len(refused.splitlines()) == 1
    refused = admission.refuses({"training.batch_size": 4096})
    assert refused is not None and "training.batch_size is 4096" in refused
    few, many = (admission.costs({LATENTS: count})["flops"] for count in (8, 16))
    assert few < many
    samples = {size: admission.samples_per_epoch({"training.batch_size": size})
               for size in (32, 100, 200)}  # fmt: skip
    assert samples[100] == 200 and samples[200] == 200 and samples[32] % 32 == 0
