"""Logs from the processes of a training to MLflow, without waiting for it."""

import threading
from typing import Any

from pipeline.config.folders import Folder, folder_at
from pipeline.runs.images import write_image
from pipeline.runs.mlflow_errors import reason_of
from pipeline.runs.outbox import IMAGES, Outbox, RunRef, deliver
from shards.redaction import redacted

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
# A request takes at most three attempts of 20 s each (pipeline.runs.mlflow_client.new_client).
CLOSE_SECONDS = 75.0


class RunLogger:
    """Writes the metrics of one process of a training to a run.

    Metrics go to an outbox on disk, and a thread delivers them. If MLflow does not answer, the
    thread tries again. The driver delivers what is left at the end.

    Args:
        run: The run, or None to write nothing.
        system_metrics_seconds: The interval at which the CPU, memory and GPU use of this machine is
            logged; None turns this off.
        node: The number of the machine, in the names of those metrics.
        writes_metrics: Whether this process writes training metrics.
    """

    def __init__(
        self,
        run: RunRef | None,
        *,
        system_metrics_seconds: float | None,
        node: int,
        writes_metrics: bool,
    ) -> None:
        self._outbox: Outbox | None = None
        self._machine: _MachineMetrics | None = None
        self._couriers: list[_Courier] = []
        self._last_steps: dict[str, int] = {}
        self._has_images = False
        if run is None:
            return
        if writes_metrics:
            self._outbox = Outbox(run, "metrics")
            self._last_steps = self._outbox.last_steps()
            self._couriers.append(_Courier(run, self._outbox))
        if system_metrics_seconds is not None:
            outbox = Outbox(run, f"machine-{node}")
            self._couriers.append(_Courier(run, outbox))
            self._machine = _MachineMetrics(
                run, outbox, self._couriers[-1], node=node, seconds=system_metrics_seconds
            )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log the metrics of one step. Steps that were logged before a restart are skipped."""
        if self._outbox is None:
            return
        new = {name: v for name, v in metrics.items() if step > self._last_steps.get(name, -1)}
        if new:
            self._outbox.metrics(new, step)
            self._couriers[0].wake()

    def image(self, name: str, png: bytes, step: int) -> None:
        """Log a picture of one step, once. MLflow shows the pictures of a name by their steps.

        Args:
            name: The name of the picture.
            png: The picture as PNG.
            step: The step.
        """
        key = f"{IMAGES}/{name}"
        if self._outbox is None or step <= self._last_steps.get(key, -1):
            return
        self._last_steps[key] = step
        folder = folder_at(self._outbox.run.outbox) / IMAGES
        paths = write_image(folder, name, png, step)
        self._outbox.image(name, step, paths)
        if not self._has_images:
            self._has_images = True
            self._outbox.tags({"mlflow.loggedImages": "true"})
        self._couriers[0].wake()

    def artifact(self, path: Folder, to: str) -> None:
        """Log a file to a folder of the run's artifacts. The file must stay."""
        if self._outbox is not None:
            self._outbox.artifact(path, to)
            self._couriers[0].wake()

    def tag(self, tags: dict[str, str]) -> None:
        """Set tags of the run."""
        if self._outbox is not None:
            self._outbox.tags(tags)
            self._couriers[0].wake()

    def news(self) -> list[str]:
        """Return new notices about MLflow for the person."""
        return self._couriers[0].news() if self._couriers else []

    def save(self) -> None:
        """Keep with a checkpoint what MLflow has not received, if the run is in object storage."""
        for courier in self._couriers:
            courier.save()

    def close(self) -> None:
        """Stop measuring the machine, and deliver what can be delivered at once."""
        if self._machine is not None:
            self._machine.close()
        for courier in self._couriers:
            courier.close()


class _Courier:
    """A thread that delivers an outbox."""

    def __init__(self, run: RunRef, outbox: Outbox) -> None:
        self._run, self._outbox = run, outbox
        self._news: list[str] = []
        self._refused = False
        # Imported here: the thread would import it while this process forks its loader's workers.
        import mlflow.tracking  # noqa: F401 (imported for its effect alone)

        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="MLflow")
        self._thread.start()

    def wake(self) -> None:
        """Report that there is something to deliver."""
        self._wake.set()

    def news(self) -> list[str]:
        """Return what has happened since the last call."""
        news, self._news = self._news, []
        return news

    def save(self) -> None:
        """Upload what is not delivered, if the run lies in object storage."""
        self._outbox.save()

    def close(self) -> None:
        """End the thread. It delivers what is left, unless MLflow did not answer before."""
        self._stop.set()
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)
        self._outbox.save()
        self._outbox.close()

    def _work(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        mlflow_client: Any = None
        while True:
            self._wake.wait()
            self._wake.clear()
            stopping = self._stop.is_set()
            if stopping and self._refused:
                return
            try:
                if mlflow_client is None:
                    from pipeline.runs.mlflow_client import new_client

                    mlflow_client = new_client(self._run.tracking_uri)
                deliver(self._outbox.path, mlflow_client)
            except Exception as error:  # stores raise many kinds
                self._say_refused(error)
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                self._wake.set()
            else:
                self._say_delivered()
                pause = FIRST_PAUSE_SECONDS
                if stopping:
                    return

    def _say_refused(self, error: Exception) -> None:
        if not self._refused:
            self._news.append(
                f"MLflow at {redacted(self._run.tracking_uri)} does not take what is logged "
                f"({reason_of(error)}); the training goes on, and it is kept in {self._run.outbox}"
            )
        self._refused = True

    def _say_delivered(self) -> None:
        if self._refused:
            self._news.append("MLflow takes what is logged again; nothing was lost")
        self._refused = False


class _MachineMetrics:
    """Adds MLflow's own measurements of this machine to an outbox at intervals.

    MLflow's own monitor would end at the first request that its server does not answer.
    """

    def __init__(
        self, run: RunRef, outbox: Outbox, courier: _Courier, *, node: int, seconds: float
    ) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            run.run_id,
            sampling_interval=seconds,
            node_id=f"node-{node}",
            tracking_uri=run.tracking_uri,
        )
        self._outbox, self._courier = outbox, courier
        self._step = max(outbox.last_steps().values(), default=-1) + 1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="system metrics")
        self._thread.start()

    def close(self) -> None:
        """End, and add what was measured since the last interval."""
        self._stop.set()
        self._thread.join()
        self._monitor.collect_metrics()
        self._publish()

    def _work(self) -> None:
        while not self._stop.is_set():
            for _ in range(self._monitor.samples_before_logging):
                self._monitor.collect_metrics()
                if self._stop.wait(self._monitor.sampling_interval):
                    return
            self._publish()

    def _publish(self) -> None:
        found = self._monitor.aggregate_metrics()
        prefix = f"system/{self._monitor.node_id}/"
        self._outbox.metrics({prefix + name: value for name, value in found.items()}, self._step)
        self._step += 1
        self._courier.wake()
        for monitor in self._monitor.monitors:
            monitor.clear_metrics()
