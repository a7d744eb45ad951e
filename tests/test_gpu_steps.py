"""`python -m benchmarks.gpu`: its schedule, and the whole way at a small scale."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu.schedule import Figures, Place, Run, Step, run_steps
from benchmarks.gpu.steps import STAGES, STEPS, config_of
from pipeline.config.load import load_config


def step(name: str, *code: str, seconds: float = 60.0) -> Step:
    """Return a step that runs lines of Python, and answers with what they write."""

    def run(place: Place, command: Run) -> Figures:
        return {"wrote": command(["-c", "\n".join(code)]).strip()}

    return Step(name, run, seconds)


def test_each_step_has_an_answer_and_none_takes_anothers_time(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    sleeper = "import subprocess; child = subprocess.Popen(['sleep', '60'])"
    steps = [
        step("good", "print('yes')"),
        step("wrong", "raise SystemExit('no such file')"),
        step("slow", sleeper, f"open({str(pid)!r}, 'w').write(str(child.pid))", "child.wait()",
             seconds=3.0),
        step("later", "print('also')"),
    ]  # fmt: skip
    began = time.monotonic()
    assert not run_steps(steps, Place(tmp_path, True), seconds=60.0)
    assert time.monotonic() - began < 40
    report = (tmp_path / "report.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {answer["step"]: answer for answer in map(json.loads, report)}
    assert [answers[each.name]["status"] for each in steps] == ["ok", "failed", "failed", "ok"]
    assert answers["good"]["wrote"] == "yes"
    assert "status 1: no such file" in answers["wrong"]["error"]
    assert "out of time" in answers["slow"]["error"]
    with contextlib.suppress(psutil.NoSuchProcess):  # its new parent may not have asked for it yet
        assert psutil.Process(int(pid.read_text())).status() == psutil.STATUS_ZOMBIE


def test_a_step_without_time_is_not_begun(tmp_path: Path) -> None:
    assert not run_steps([step("late", "print(1)")], Place(tmp_path, True), seconds=0.0)
    (line,) = (tmp_path / "report.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["error"] == "no time was left"


@pytest.mark.parametrize("is_small", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_the_trainings_are_configured(tmp_path: Path, is_small: bool, stage: int) -> None:
    words = config_of(Place(tmp_path, is_small))
    config = load_config(words[0], [*words[1:], f"training.zero_stage={stage}"])
    assert config.zero_stage == stage
    assert config.cluster.use_gpu is not is_small


def test_correctness_comes_first_and_tables_last() -> None:
    names = [each.name for each in STEPS]
    assert names[0] == "tests"
    assert names[-2:] == ["table", "table-fp8"]


@pytest.mark.skipif(
    "PERCEIVER_SLOW_TESTS" not in os.environ, reason="takes minutes; PERCEIVER_SLOW_TESTS=1 runs it"
)
@pytest.mark.timeout(900)
def test_the_whole_way_at_a_small_scale(tmp_path: Path) -> None:
    names = ",".join(each.name for each in STEPS[:-1])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--small", "--seconds", "800", "--only", names,
         "--folder", str(tmp_path)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    answers = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    found = {answer["step"]: answer for answer in answers}
    losses = [found[f"train-{stage}"]["train_loss"] for stage in STAGES]
    assert losses == pytest.approx([losses[0]] * len(STAGES), rel=1e-3)
    assert found["predict"]["files"] == 60
