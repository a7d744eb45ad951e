"""`perceiver bench model`: its workers, the input that it refuses, what it prints."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_bench import job

from benchmarks import jobs, machine, variants, worker
from benchmarks.jobs import ask_worker
from benchmarks.worker import do
from perceiver_model.families.presets import PRESETS
from pipeline.cli.main import main

pytestmark = pytest.mark.usefixtures("short_bench")


# --- workers ---


def worker_that(tmp_path: Path, monkeypatch, script: str) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(program))


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("kill -9 $$", "out_of_memory"),
        ("exit 3", "failed"),
        ("exit 0", "failed"),
        ('cat > /dev/null; echo noise; echo \'{"status": "ok"}\'', "ok"),
    ],
)
def test_whatever_becomes_of_a_worker_there_is_an_answer(tmp_path, monkeypatch, script, status):
    worker_that(tmp_path, monkeypatch, script)
    assert ask_worker(job("train"))["status"] == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (RuntimeError("shapes\ndiffer"), "failed"),
    ],
)
def test_an_exception_is_an_answer(monkeypatch, error, status):
    def raising(*_):
        raise error

    monkeypatch.setattr(worker, "raw_images", raising)
    answer = do(job("inference"))
    assert answer["status"] == status
    if status == "failed":
        assert answer["error"] == "RuntimeError: shapes differ"
        assert "raising" in answer["traceback"]


def test_time_is_of_at_least_three_steps_and_the_seconds_asked_for():
    steps = []
    assert len(machine.time_steps(lambda: steps.append(None), "cpu", 0.0, 1.0)) == 3
    assert len(steps) == 3
    times = machine.time_steps(lambda: time.sleep(0.001), "cpu", 0.01, 0.001)
    assert len(times) == 10 and sum(times) >= 0.01
    assert machine.warm_up(lambda: time.sleep(0.002), "cpu") >= 0.002


# --- bad input ---


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--preset", "imagent"], "--preset imagent: no preset 'imagent': did you mean 'imagenet'"),
        (["--preset", "modelnet40"], "--preset modelnet40: not a classifier of images; those are"),
        (["--vs", "timm"], "--vs timm: no such peer; known: transformers, lucidrains, none"),
        (
            ["--preset", "imagenet", "--vs", "transformers"],
            "--vs transformers: has no such model; of the presets it has io-imagenet-fourier",
        ),
        (["--device", "tpu"], "--device tpu: must be one of auto, cpu, cuda"),
        (
            ["--precision", "fp4"],
            "--precision fp4: must be one of auto, float32, bf16, bf16_autocast, fp8",
        ),
        (["--batch-sizes", "1,zwei"], "--batch-sizes 1,zwei: must be integers of at least 1"),
        (["--batch-sizes", "0"], "--batch-sizes 0: must be integers of at least 1"),
        (["--checkpointed", "0.5,2"], "--checkpointed 0.5,2: must be shares above 0"),
        (["--work", "training"], "--work training: must be one of train, inference, cross-attend"),
        (["--work", ","], "--work: names nothing"),
        (
            ["--preset", "io-imagenet-conv", "--work", "memory"],
            "--work memory: needs a preset of pixels with Fourier features, not io-imagenet-conv",
        ),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_told_in_one_line(capfd, args, message):
    assert main(["bench", "model", *args]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("perceiver bench: ") and message in line


def test_a_peer_that_is_not_installed_is_told_how_to_get(monkeypatch, capfd):
    monkeypatch.setattr(variants, "find_spec", lambda name: None)
    assert main(["bench", "model"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "transformers is not installed: pip install 'perceiver-pipeline[bench]'" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_that_is_absent_is_told(bench_here, capfd):
    assert main(["bench", "model", "--preset", "tiny", "--device", "cuda"]) == 2
    assert "--device cuda: torch finds no CUDA device here" in capfd.readouterr().err


def test_peers_are_those_with_a_model_of_the_preset():
    has = {
        name: [peer for peer in variants.PEERS if variants.has_model(peer, config)]
        for name, config in PRESETS.items()
    }
    assert has["imagenet"] == ["lucidrains"]
    assert has["io-imagenet-fourier"] == ["transformers", "lucidrains"]
    assert has["io-imagenet-learned"] == has["io-imagenet-conv"] == ["transformers"]
    assert has["imagenet-cross-attends-first"] == []
    assert has["io-mlm-bytes"] == has["modelnet40"] == []


def test_help_imports_nothing_heavy():
    code = """
import sys
from pipeline.cli.main import main
try:
    main(["bench", "model", "--help"])
except SystemExit as end:
    assert end.code == 0, end.code
found = {"torch", "ray", "transformers", "rich", "numpy"} & set(sys.modules)
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--preset" in done.stdout


def test_the_driver_itself_needs_no_torch():
    code = "import sys, benchmarks.model, benchmarks.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_json_may_stand_before_or_behind_the_subject(bench_here, capfd):
    args = ["--preset", "tiny", "--vs", "none", "--no-compile", "--work", "inference"]
    for words in (["bench", "--json", "model"], ["bench", "model", "--json"]):
        assert main([*words, *args, "--device", "cpu"]) == 0
        result = json.loads(capfd.readouterr().out.splitlines()[-1])
        assert [row["label"] for row in result["rows"]] == ["ours"]


def test_console_shows_a_table_without_json(bench_here, capfd):
    args = ["--preset", "tiny", "--vs", "none", "--no-compile", "--work", "inference"]
    assert main(["bench", "model", *args, "--device", "cpu"]) == 0
    assert "images/s" in capfd.readouterr().out
