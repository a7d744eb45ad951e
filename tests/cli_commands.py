"""Commands that tests run in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def perceiver(*args: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, with temporary files below it."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *args],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**clean, "TMPDIR": str(temporary), **environment},
    )


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
