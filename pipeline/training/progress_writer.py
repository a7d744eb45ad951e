"""Rank 0 writes the progress; into object storage from a thread, so that no step waits for it."""

import contextlib
import json
import threading
from dataclasses import asdict
from pathlib import Path

from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.runs.records import write_json
from pipeline.training.progress import PROGRESS_FILE, Progress

REMOTE_SECONDS = 1.0
"""The shortest time between two writes of the progress into object storage."""


class ProgressWriter:
    """Writes the progress of a training into its folder.

    Args:
        folder: The folder of the training.
    """

    def __init__(self, folder: Folder) -> None:
        self._path = folder / PROGRESS_FILE
        self._latest: str | None = None
        self._changed, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, progress: Progress) -> None:
        """Write the progress, atomically. In object storage it appears a moment later.

        Raises:
            ShardError: The local folder cannot be written.
        """
        if isinstance(self._path, Path):
            write_json(self._path, asdict(progress))
            return
        self._latest = json.dumps(asdict(progress))  # the caller goes on to change it
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="progress")
            self._thread.start()

    def close(self) -> None:
        """Write what is left."""
        self._stop.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            is_last = self._stop.is_set()
            latest, self._latest = self._latest, None
            if latest is not None:
                # The progress is only shown, so a storage that is away for a while does no harm.
                with contextlib.suppress(UserError):
                    write_json(self._path, json.loads(latest))
            if is_last:
                return
            self._stop.wait(REMOTE_SECONDS)
