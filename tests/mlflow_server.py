"""A tracking server of MLflow on the loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


class Server:
    """A real tracking server that can be stopped and started again.

    Args:
        folder: The folder of its database and its log.
        artifacts: Where it keeps artifacts, which clients send to it. None is a folder that clients
            write to themselves.
    """

    def __init__(self, folder: Path, artifacts: str | None = None) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._artifacts = (
            ["--artifacts-destination", artifacts]
            if artifacts
            else ["--default-artifact-root", str(folder / "artifacts")]
        )

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port",
                 str(self.port), "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
                 *self._artifacts],
                stdout=log, stderr=log, start_new_session=True,
                # Its three processes for jobs of its own would take longer to start than it.
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
