"""A killed build of a C++ extension stops no later one; a build that goes on is waited for."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.extension_builds import builds_held

NAME = "an_op"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    made = tmp_path / NAME
    made.mkdir()
    return made


def builder_of(lock: Path) -> subprocess.Popen[str]:
    """A process that holds torch's lock as a build does, until its input ends."""
    code = (
        "import sys; from torch.utils.file_baton import FileBaton;"
        f"assert FileBaton({str(lock)!r}).try_acquire();"
        "print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_of_a_killed_build_is_removed_and_that_of_a_living_one_is_kept(
    folder: Path,
) -> None:
    lock = folder / "lock"
    builder = builder_of(lock)
    try:
        with builds_held([NAME]):
            assert lock.exists()
    finally:
        builder.kill()
        builder.communicate()
    assert lock.exists()
    with builds_held([NAME]):
        assert not lock.exists()


def test_one_process_builds_at_a_time(folder: Path) -> None:
    begun, seen = threading.Event(), []

    def second() -> None:
        begun.set()
        with builds_held([NAME]):
            seen.append((folder / "built").exists())

    with builds_held([NAME]):
        other = threading.Thread(target=second)
        other.start()
        begun.wait()
        other.join(0.2)
        assert other.is_alive()
        (folder / "built").touch()
    other.join()
    assert seen == [True]


def test_a_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "new"))
    with builds_held([NAME]):
        assert [made.name for made in (tmp_path / "new").iterdir()] == [NAME]
