"""`perceiver plan` of a configuration with a study: the smallest and the largest trial."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import load_config, with_values
from pipeline.config.trial_configs import study_base
from pipeline.plan.plan import plan
from pipeline.plan.report import report
from pipeline.plan.request import Request
from pipeline.runs.console import Console

REQUEST = Request(gpu="h100", samples=10_000, price=2.0)
LATENTS, CROSSES = "model.encoder.num_latents", "model.encoder.num_cross_attends"
HEADS, DIM = "model.encoder.num_self_heads", "model.encoder.latent_dim"
RATE = "training.learning_rate"


def planned(folder: Path, console: Console, *overrides: str, request: Request = REQUEST) -> Any:
    config = load_config("digits", [f"output={folder}", *overrides])
    return config, plan(config, console, request)


def test_the_range_of_a_study_is_that_of_its_corners(tmp_path: Path, console: Console) -> None:
    space = (
        f"study.space={{{LATENTS}: {{choice: [32, 16, 24]}}, {CROSSES}: {{choice: [1, 2]}}, "
        f"{RATE}: {{loguniform: [1e-4, 1e-2]}}}}"
    )
    config, result = planned(tmp_path, console, space, "study.search=random", "study.num_trials=6")
    study = result["study"]
    assert (study["trials"], study["workers"], study["epochs"]) == (6, 1, 13)
    assert study["fields"] == sorted([LATENTS, CROSSES])
    assert study["fields_without_effect"] == [RATE]
    assert (study["corners"], study["all_corners"], study["refused"]) == (4, True, [])
    base = study_base(config, config.study)
    for end, settings in (("smallest", {LATENTS: 16, CROSSES: 1}),
                          ("largest", {LATENTS: 32, CROSSES: 2})):  # fmt: skip
        trial = plan(with_values(base, {**settings, "study": None}), console, REQUEST)
        chosen = trial["memory"]["stages"][trial["memory"]["zero_stage"]]
        expected = {
            "parameters": trial["parameters"]["trained"], "memory": chosen["peak"],
            "step_seconds": trial["step"]["seconds"], "seconds": trial["run"]["seconds"],
        }  # fmt: skip
        for name, value in expected.items():
            assert study[name][end]["value"] == value, name
            # Cross-attends share their weights.
            shown = {LATENTS: settings[LATENTS]} if name == "parameters" else settings
            assert study[name][end]["settings"] == shown, name
        assert trial["study"] is None
    hours = 6 * study["seconds"]["largest"]["value"] / 3600
    assert study["most_device_hours"] == pytest.approx(hours)
    assert study["most_cost"] == pytest.approx(2 * hours)
    assert not any(text.startswith("study:") for text in result["problems"])

    report(result, console)
    told = (tmp_path / "console.txt").read_text()
    assert "study of 6 trials, each on 1 worker" in told
    assert f"no effect on these: {RATE}" in told


def test_a_trial_that_does_not_fit_or_is_refused_is_a_problem(
    tmp_path: Path, console: Console
) -> None:
    # 36 channels have 4 heads, but not 8.
    space = (
        f"study.space={{{LATENTS}: {{choice: [16, 4096]}}, {HEADS}: {{choice: [4, 8]}}, "
        f"{DIM}: {{choice: [64, 36]}}}}"
    )
    small = Request(gpu="mine", gpu_memory=1.25, gpu_tflops=1, samples=1000)
    _, result = planned(tmp_path, console, space, request=small)
    study = result["study"]
    assert study["corners"] == 6
    (reason,) = study["refused"]
    assert "num_self_heads" in reason
    problems = [text for text in result["problems"] if text.startswith("study:")]
    assert any("are refused" in text and "num_self_heads" in text for text in problems)
    assert any(f"{LATENTS}=4096" in text and "mine has 1.2" in text for text in problems)


def test_a_space_with_many_corners_is_searched_field_by_field(
    tmp_path: Path, console: Console
) -> None:
    encoder = {"num_latents": [8, 16], "latent_dim": [32, 64], "num_cross_attends": [1, 2],
               "num_self_attends": [1, 2], "self_widening": [1, 2]}  # fmt: skip
    fields = ", ".join(
        f"model.encoder.{name}: {{choice: {ends}}}" for name, ends in encoder.items()
    )
    cpu = Request(gpu="cpu", samples=1000)
    _, result = planned(tmp_path, console, f"study.space={{{fields}}}", request=cpu)
    study = result["study"]
    assert not study["all_corners"]
    largest = {f"model.encoder.{name}": ends[1] for name, ends in encoder.items()}
    assert study["memory"]["largest"]["settings"] == largest
    assert study["seconds"]["largest"]["settings"] == largest


def test_a_configuration_without_a_study_has_no_range(tmp_path: Path, console: Console) -> None:
    _, result = planned(tmp_path, console, "study=null")
    assert result["study"] is None
