"""What a killed process leaves in a temporary folder is removed by the next one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from cluster.owned_folder import owned_folder
from pipeline.preprocess.sources import TableStore, stored_tables

SPILL = """
import os, signal, pyarrow as pa
from pipeline.preprocess.sources import TableStore, stored_tables
stored_tables.BYTES_IN_MEMORY = 0
store = TableStore()
kept = store.put(pa.table({"row": range(1000)}))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_tables_that_a_killed_listing_leaves_are_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", SPILL], env=environment)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob("perceiver-sources-*")
    assert list(left.glob("*.arrow"))
    monkeypatch.setattr(stored_tables, "BYTES_IN_MEMORY", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with TableStore() as store, TableStore() as other:
        table = pa.table({"row": range(1000)})
        kept, second = store.put(table), other.put(table)
        assert not left.exists()
        assert len(list(tmp_path.glob("perceiver-sources-*"))) == 2
        assert kept.load() == second.load() == table
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_being_made_and_one_that_lies_elsewhere_stay(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    parent = tmp_path / "parent"
    (parent / "mine-new").mkdir(parents=True)
    (parent / "mine-old").mkdir()
    os.utime(parent / "mine-old", (0, 0))
    (parent / "mine-link").symlink_to(elsewhere)
    with owned_folder("mine-", parent) as folder:
        assert {each.name for each in parent.iterdir()} == {"mine-new", "mine-link", folder.name}
    assert (elsewhere / "lock").exists()
