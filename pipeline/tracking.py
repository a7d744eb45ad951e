"""MLflow runs: opened by the driver, written to by the workers, closed with the status they had."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.section import flatten
from pipeline.sqlite_uri import sqlite_path
from pipeline.tracking_uri import VARIABLE
from pipeline.tracking_uri import tracking_uri as chosen_uri
from shards import ShardSet
from shards.redaction import redacted, redacted_tree

MAX_PARAM_LENGTH = 6000
STATUS_TAG = "perceiver.status"


@dataclass(frozen=True)
class RunRef:
    """What a worker needs to write to a run."""

    tracking_uri: str
    run_id: str


def client(tracking_uri: str) -> Any:
    """An MlflowClient, after one call that shows whether the store answers.

    Raises:
        UserError: it does not.
    """
    # The first answer tells; without this MLflow retries a dead server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import mlflow
    from mlflow.tracking import MlflowClient

    if (database := sqlite_path(tracking_uri)) is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    named = os.environ.get(VARIABLE)
    mlflow.set_tracking_uri(tracking_uri)
    # MLflow sets the variable for its subprocesses; here it would name a server to the next verb.
    if named is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = named
    mlflow_client = MlflowClient(tracking_uri)
    try:
        mlflow_client.search_experiments(max_results=1)
    except Exception as error:  # stores raise many kinds
        reason = redacted(" ".join(str(error).split()))[:200]
        raise UserError(
            f"tracking.uri={tracking_uri}: MLflow does not answer there ({reason})"
        ) from error
    return mlflow_client


def registry(tracking_uri: str | None, output: str) -> Any:
    """A client for verbs that take no configuration.

    Its URI is that of :func:`pipeline.tracking_uri.tracking_uri`.

    Raises:
        UserError: there is no database, or it does not answer.
    """
    uri = chosen_uri(tracking_uri, output)
    database = sqlite_path(uri)
    if database is not None and not database.is_file():
        raise UserError(
            f"{uri}: no such database; name MLflow's with --tracking-uri or MLFLOW_TRACKING_URI, "
            "or the folder that holds mlflow.db with --output"
        )
    return client(uri)


def _experiment(mlflow_client: Any, config: Config) -> str:
    name = config.tracking.experiment or config.name
    found = mlflow_client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            mlflow_client.restore_experiment(found.experiment_id)
        return found.experiment_id
    # A database says nothing of where artifacts go; MLflow would take the working directory.
    location = None
    if (database := sqlite_path(config.tracking_uri)) is not None:
        location = (database.parent / "mlartifacts" / name).as_uri()
    return mlflow_client.create_experiment(name, artifact_location=location)


@contextlib.contextmanager
def open_run(
    config: Config,
    *,
    kind: str,
    shard_set: ShardSet,
    run_id: str | None = None,
    params: dict[str, Any] | None = None,
) -> Iterator[RunRef]:
    """One MLflow run around a piece of work, FINISHED, FAILED or KILLED as the work ended.

    Args:
        kind: "train" or "study"; a tag, and part of the run's name.
        shard_set: logged as the run's dataset.
        run_id: an earlier run of the same work, to go on with.
        params: logged instead of the whole configuration.
    """
    run = begin_run(config, kind=kind, shard_set=shard_set, run_id=run_id, params=params)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        client(run.tracking_uri).set_terminated(run.run_id, status)


def begin_run(
    config: Config,
    *,
    kind: str,
    shard_set: ShardSet,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    tags: dict[str, str] | None = None,
    params: dict[str, Any] | None = None,
) -> RunRef:
    """Begin an MLflow run, or go on with an earlier one; it is RUNNING until it is terminated.

    Args:
        kind: "train", "study" or "trial"; a tag, and part of the run's name.
        shard_set: logged as the run's dataset.
        run_id: an earlier run of the same work, to go on with.
        parent_run_id: makes it a nested child.
        tags: for a new run; None names the source and the user of this process.
        params: logged instead of the whole configuration.
    """
    mlflow_client = client(config.tracking_uri)
    if run_id is None or not _exists(mlflow_client, run_id):
        tags = source_tags() if tags is None else tags
        run_id = _create(mlflow_client, config, kind, shard_set, parent_run_id, params, tags)
    else:
        mlflow_client.update_run(run_id, status="RUNNING")
        # What may have changed, such as more epochs; parameters of MLflow cannot.
        _log_config(mlflow_client, run_id, config)
    return RunRef(config.tracking_uri, run_id)


def source_tags() -> dict[str, str]:
    """The tags by which MLflow's fluent API names what started a run, and who."""
    from mlflow.tracking.context.registry import resolve_tags

    return dict(resolve_tags())


def child_run(parent: RunRef, tags: dict[str, str]) -> str | None:
    """The newest nested run of a parent that has these tags, or None."""
    mlflow_client = client(parent.tracking_uri)
    wanted = {"mlflow.parentRunId": parent.run_id, **tags}
    found = mlflow_client.search_runs(
        [mlflow_client.get_run(parent.run_id).info.experiment_id],
        filter_string=" and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items()),
        max_results=1,
    )
    return str(found[0].info.run_id) if found else None


def _exists(mlflow_client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return mlflow_client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


def _create(
    mlflow_client: Any,
    config: Config,
    kind: str,
    shard_set: ShardSet,
    parent_run_id: str | None,
    params: dict[str, Any] | None,
    source: dict[str, str],
) -> str:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    tags = {
        **source,
        "perceiver.kind": kind,
        "perceiver.shards": redacted(config.shards_folder),
        "perceiver.shards_digest": shard_set.digest,
    }
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    run = mlflow_client.create_run(
        _experiment(mlflow_client, config),
        run_name=f"{config.name}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}",
        tags=redacted_tree(tags),  # MLflow's own may name the address of a repository
    )
    run_id = run.info.run_id
    # No secret of an address is stored: who needs one again gives it again.
    tree = redacted_tree(config.tree())
    values = flatten(tree) if params is None else redacted_tree(params)
    entries = [Param(key, str(value)[:MAX_PARAM_LENGTH]) for key, value in values.items()]
    for start in range(0, len(entries), 100):
        mlflow_client.log_batch(run_id, params=entries[start : start + 100])
    dataset = Dataset(
        name=f"{config.name}-shards",
        digest=shard_set.digest[:36],  # MLflow's limit; the whole digest is in the source
        source_type="perceiver-shards",
        source=json.dumps({"uri": redacted(config.shards_folder), "digest": shard_set.digest}),
        profile=str(shard_set.manifest.counts),
    )
    context = InputTag("mlflow.data.context", "training")
    mlflow_client.log_inputs(run_id, datasets=[DatasetInput(dataset, [context])])
    _log_config(mlflow_client, run_id, config)
    return run_id


def _log_config(mlflow_client: Any, run_id: str, config: Config) -> None:
    text = yaml.safe_dump(redacted_tree(config.tree()), sort_keys=False, allow_unicode=True)
    mlflow_client.log_text(run_id, text, "config.yaml")


def run_config(mlflow_client: Any, run_id: str) -> Config:
    """The configuration that a run was made with.

    Raises:
        UserError: the run does not exist or is none of ours.
    """
    from mlflow.exceptions import MlflowException

    from pipeline.load_config import validate

    try:
        mlflow_client.get_run(run_id)
    except MlflowException:
        raise UserError(f"{run_id}: MLflow has no such run") from None
    import mlflow

    try:
        text = mlflow.artifacts.load_text(f"runs:/{run_id}/config.yaml")
    except (MlflowException, OSError):
        raise UserError(f"{run_id}: no run of this pipeline; it has no config.yaml") from None
    return validate(yaml.safe_load(text), f"run {run_id}")


class RunLogger:
    """Writes metrics to a run; for one process of a training.

    Args:
        run: the run, or None to write nothing.
        system_metrics_seconds: log this machine's CPU, memory and GPU use so often; None: not.
        node: names the machine in those.
        writes_metrics: whether this process writes training metrics.
    """

    def __init__(
        self,
        run: RunRef | None,
        *,
        system_metrics_seconds: float | None,
        node: int,
        writes_metrics: bool,
    ) -> None:
        self._run = run
        self._client: Any = None
        self._monitor: Any = None
        if run is None:
            return
        if writes_metrics:
            self._client = client(run.tracking_uri)
        if system_metrics_seconds is not None:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(
                run.run_id,
                sampling_interval=system_metrics_seconds,
                node_id=f"node-{node}",
                tracking_uri=run.tracking_uri,
            )
            self._monitor.start()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics of one step."""
        if self._client is None or self._run is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run.run_id, metrics=entries)

    def tag(self, tags: dict[str, str]) -> None:
        """Set tags of the run."""
        if self._client is None or self._run is None:
            return
        for name, value in tags.items():
            self._client.set_tag(self._run.run_id, name, value)

    def close(self) -> None:
        """Stop watching the machine."""
        if self._monitor is not None:
            self._monitor.finish()
            # The monitor drops what it has not logged yet: all there is of a run that was shorter
            # than one interval.
            self._monitor.collect_metrics()
            self._monitor.publish_metrics(self._monitor.aggregate_metrics())
            self._monitor.mlflow_logger.flush()
