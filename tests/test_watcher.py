"""Every end of a command has a line and a status, also where its process could not say so."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest


def command(work: str, prelude: str = "") -> list[str]:
    code = f"""
import os, signal, sys, time
from pathlib import Path
from cluster.interrupts import sigterm_raises
from pipeline.runs import watcher
from pipeline.runs.watcher import report_log, watched
{prelude}
def work():
    report_log(Path("/a/log"))
    {work}
sys.exit(watched("train", work))
"""
    return [sys.executable, "-c", code]


def ended(work: str) -> tuple[int, str, str]:
    done = subprocess.run(command(work), capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_a_verb_that_ends_by_itself_keeps_its_status_and_its_output(status: int) -> None:
    assert ended(f'print("out"); print("err", file=sys.stderr); return {status}') == (
        status, "out\n", "err\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("work", "status", "told"),
    [
        ("os._exit(1)", 1, "was ended from within (status 1), as Ray does when its raylet"),
        ("os._exit(0)", 1, "was ended from within (status 0)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was killed (SIGKILL), by the system for"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "crashed in native code (SIGSEGV)"),
        ("os.abort()", 134, "crashed in native code (SIGABRT)"),
    ],
)
def test_an_end_without_a_word_has_a_line(work: str, status: int, told: str) -> None:
    code, out, err = ended(work)
    (line,) = err.strip().splitlines()
    assert (code, out) == (status, "")
    assert line.startswith(f"perceiver train: {told}")
    assert line.endswith("; the same command goes on from what is done; log: /a/log")


def test_a_crash_after_the_end_changes_nothing() -> None:
    work = "import atexit; atexit.register(os.kill, os.getpid(), signal.SIGSEGV); return 0"
    assert ended(work) == (0, "", "")


WAITS = """
    try:
        with sigterm_raises():
            print("ready", os.getpid(), flush=True); time.sleep(30)
    except KeyboardInterrupt as end:
        print(type(end).__name__, getattr(end, "number", 2), flush=True)
        time.sleep(0.5)  # a second one would be seen
        return 100 + getattr(end, "number", 2)
"""


SLOW_PARENT = """
passed_on = watcher._signals_passed_on
def slow(child):
    time.sleep(0.5)
    return passed_on(child)
watcher._signals_passed_on = slow
"""


def start(
    work: str = WAITS, prelude: str = "", **options: object
) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(command(work, prelude), stdout=subprocess.PIPE, text=True, **options)
    assert process.stdout is not None
    ready, pid = process.stdout.readline().split()
    assert ready == "ready"
    return process, int(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_arrives_once(number: int, group: bool) -> None:
    """To the process alone (kill), or to its whole group (a terminal, timeout)."""
    process, child = start(
        start_new_session=True,
        # Whatever started the tests may ignore it, as nohup does SIGHUP.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert child != process.pid
    os.killpg(process.pid, number) if group else process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    kind = "KeyboardInterrupt" if number == signal.SIGINT else "Terminated"
    assert out.splitlines() == [f"{kind} {int(number)}"]
    assert process.returncode == 100 + number


def test_a_signal_waits_until_it_can_be_passed_on() -> None:
    """The child may be at work before its parent is ready to pass signals on."""
    process, _ = start(WAITS, prelude=SLOW_PARENT, start_new_session=True)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (out.splitlines(), process.returncode) == (["Terminated 15"], 115)


def test_nohup_is_obeyed() -> None:
    work = WAITS.replace("time.sleep(30)", "time.sleep(2)") + '    print("went on"); return 0'
    process, _ = start(work, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("went on\n", 0)


def test_the_work_dies_with_a_killed_parent() -> None:
    process, child = start()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        if psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        assert not psutil.pid_exists(child)


def test_a_paused_command_pauses_its_work() -> None:
    process, child = start(WAITS.replace("30", "3") + "    return 0")
    process.send_signal(signal.SIGTSTP)
    statuses = [psutil.Process(pid) for pid in (process.pid, child)]
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if all(p.status() == psutil.STATUS_STOPPED for p in statuses):
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"{[p.status() for p in statuses]}")
    process.send_signal(signal.SIGCONT)
    assert process.wait(10) == 0


def test_the_death_of_the_raylet_has_a_line(make_config, digit_shards: Path, tmp_path) -> None:
    """Ray's native code then ends the process that trains, five times of six without a word."""
    config = make_config(
        tmp_path / "out", f"shards={digit_shards}", "cluster.num_workers=1", "training.epochs=500"
    )
    (tmp_path / "c.yaml").write_text(json.dumps(config.tree()))
    arguments = [sys.executable, "-m", "pipeline", "train", str(tmp_path / "c.yaml")]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        progress = config.folder / "train" / "progress.json"
        deadline = time.monotonic() + 120
        while not progress.is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        below = psutil.Process(process.pid).children(recursive=True)
        (raylet,) = [p for p in below if p.name() == "raylet"]
        raylet.kill()
        _, err = process.communicate(timeout=120)
    last = err.splitlines()[-1]
    assert last.startswith("perceiver train: ") and "the same command goes on" in last
    if process.returncode == 2:  # Ray noticed in time to say so itself
        assert "was lost" in last
    else:
        assert process.returncode == 1, err
        assert "raylet" in last and "log: " in last
