"""One command at a time in a run's folder."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.runs import run_lock as module
from pipeline.runs.run_lock import run_lock

HOLD = """
import sys, time
from pathlib import Path
from pipeline.runs.run_lock import run_lock
with run_lock(Path(sys.argv[1]), "it", print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "a.lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_works_there(held, tmp_path) -> None:
    told = rf"runs/a: another command is at work there \(process {held.pid} on .*\); wait until"
    with pytest.raises(UserError, match=told), run_lock(tmp_path / "a.lock", "runs/a", print):
        pass
    assert (tmp_path / "a.lock").is_file()


def test_a_killed_holder_holds_nothing(held, tmp_path) -> None:
    held.kill()
    held.wait()
    assert (tmp_path / "a.lock").is_file()
    with run_lock(tmp_path / "a.lock", "runs/a", print):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_children_of_a_killed_holder_still_have_is_waited_for(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(module, "MOMENT_SECONDS", 0.1)
    forks = HOLD.replace(
        'print("held", flush=True)',
        'import os; os.fork(); os.write(1, b"held\\n")',  # one write, so that none cuts another
    )
    forks = forks.replace("time.sleep(60)", "time.sleep(2)")
    process = subprocess.Popen(
        [sys.executable, "-c", forks, str(tmp_path / "a.lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    with run_lock(tmp_path / "a.lock", "runs/a", print):
        pass


def test_a_patient_one_waits_for_its_turn(held, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOMENT_SECONDS", 0.1)
    subprocess.Popen(["sh", "-c", f"sleep 1; kill {held.pid}"])
    started = time.monotonic()
    with run_lock(tmp_path / "a.lock", "runs/a", print, patient=True):
        assert held.wait(5) and time.monotonic() - started > 0.5


def test_a_file_system_without_locks_is_told_and_does_not_stop_the_work(
    tmp_path, monkeypatch
) -> None:
    import errno
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lines: list[str] = []
    with run_lock(tmp_path / "a.lock", "runs/a", lines.append):
        pass
    assert "has no locks; take care that no other command works there" in lines[0]


def test_a_folder_that_cannot_be_written_is_told(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    told = pytest.raises(UserError, match="cannot be written")
    with told, run_lock(tmp_path / "file" / "a.lock", "runs/a", print):
        pass
    assert module.PATIENCE_SECONDS >= 10  # loaders of a killed command need some seconds
