"""The packages' names are everyday words; what a working directory holds must not replace them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.code_paths import hidden_by, install_root, refuse_hidden, root_to_add
from cluster.errors import ClusterError

PROBE = """
import ray
from cluster.ray_session import ray_session

@ray.remote
def found():
    import cluster, perceiver_model, pipeline, shards
    return [module.__file__ for module in (cluster, perceiver_model, pipeline, shards)]

with ray_session(None):
    print(*ray.get(found.remote()), sep="\\n")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with all that hides a package."""
    folder = tmp_path / "work"
    (folder / "shards").mkdir(parents=True)
    (folder / "cluster").mkdir()
    (folder / "cluster" / "__init__.py").write_text("raise RuntimeError('not mine')")
    (folder / "pipeline.py").write_text("raise RuntimeError('not mine')")
    (folder / "perceiver_model.py").write_text("raise RuntimeError('not mine')")
    return folder


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}


def test_rays_workers_import_this_installation(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "bin" / "probe.py"
    script.parent.mkdir()
    script.write_text(PROBE)
    done = subprocess.run(
        [sys.executable, script], cwd=folder, env=environment(), capture_output=True, text=True,
        timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    root = install_root()
    expected = [
        str(root / name / "__init__.py")
        for name in ("cluster", "perceiver_model", "pipeline", "shards")
    ]
    assert done.stdout.splitlines() == expected


def test_the_module_ignores_folders_beside_a_configuration(tmp_path: Path) -> None:
    for name in ("shards", "cluster"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not mine')")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "config", "digits"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_jobs_working_directory_that_hides_a_package_is_refused(folder: Path) -> None:
    assert hidden_by(folder) == ["cluster", "perceiver_model", "pipeline", "shards"]
    with pytest.raises(ClusterError, match=r"'cluster' and 'perceiver_model'.*rename it"):
        refuse_hidden(folder, "the job's working directory")


def test_a_checkout_hides_nothing_from_itself(tmp_path: Path) -> None:
    assert hidden_by(install_root()) == []
    assert hidden_by(tmp_path) == []
    refuse_hidden(install_root(), "here")


def test_only_a_checkout_is_named_to_the_workers() -> None:
    assert root_to_add() in (None, install_root())
