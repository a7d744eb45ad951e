"""Files that appear whole, folders that go, and locks against other processes."""

import subprocess
import sys
from pathlib import Path

import pytest

from shards import ShardError
from shards.files import exclusive_lock, remove_tree

HOLD = """
import sys
from pathlib import Path
from shards.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(lock: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lock until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_one_processes_and_gone_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "deep" / "er" / "set.lock"
    other = holder(lock)
    with (
        pytest.raises(ShardError, match=r"set\.lock: another process is at work"),
        exclusive_lock(lock),
    ):
        pytest.fail("two hold one lock")
    other.communicate()
    assert list(tmp_path.iterdir()) == [], "folders that were made for it and are empty go, too"
    with exclusive_lock(lock):
        (lock.parent / "set").mkdir()
    assert [path.name for path in lock.parent.iterdir()] == ["set"]


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "set.lock"
    other = holder(lock)
    other.kill()
    other.communicate()
    assert lock.exists()
    with exclusive_lock(lock):
        assert lock.exists()
    assert not lock.exists()


def test_a_place_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lock = tmp_path / "file" / "set.lock"
    with pytest.raises(ShardError, match=r"cannot be locked \(.*\); choose"), exclusive_lock(lock):
        pytest.fail("there is no such folder")


def test_a_tree_is_removed_and_none_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("x")
    remove_tree(tmp_path / "a")
    remove_tree(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(ShardError, match=r"file: cannot be removed \(Not a directory\)"):
        remove_tree(tmp_path / "file")
