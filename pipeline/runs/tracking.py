"""MLflow runs. The driver opens and closes them, and the workers write to them.

Only opening a run waits for MLflow. Everything else goes through `pipeline.runs.outbox`.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import yaml

from perceiver_model.config_checks import flatten
from pipeline.config.folders import Folder
from pipeline.config.sqlite_uri import sqlite_path
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.mlflow_client import answering, client
from pipeline.runs.mlflow_errors import is_missing, mlflow_answers, reason_of
from pipeline.runs.outbox import DRIVER, Outbox, RunRef, deliver_folder, deliver_run
from pipeline.runs.outbox_objects import fetch_all
from shards import ShardSet
from shards.redaction import redacted_tree

Kind = Literal["train", "study", "trial"]
MAX_PARAM_LENGTH = 6000
STATUS_TAG = "perceiver.status"


def _experiment(mlflow_client: Any, config: Config) -> str:
    name = config.tracking.experiment or config.name
    found = mlflow_client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            mlflow_client.restore_experiment(found.experiment_id)
        return found.experiment_id
    # Without a location MLflow would put a database's artifacts into the working directory.
    location = None
    if (database := sqlite_path(config.tracking_uri)) is not None:
        location = (database.parent / "mlartifacts" / name).as_uri()
    return mlflow_client.create_experiment(name, artifact_location=location)


@contextlib.contextmanager
def open_run(
    config: Config,
    *,
    kind: Kind,
    shard_set: ShardSet,
    run_id: str | None = None,
    params: dict[str, Any] | None = None,
) -> Iterator[RunRef]:
    """Open an MLflow run for some work, and close it FINISHED, FAILED or KILLED, as the work ended.

    Args:
        config: The configuration of the run.
        kind: "train" or "study". It becomes a tag and part of the run's name.
        shard_set: The shard set, logged as the run's dataset.
        run_id: The ID of an earlier run of the same work, to continue it.
        params: The parameters to log instead of the whole configuration.

    Yields:
        The run.

    Raises:
        UserError: MLflow does not answer.
    """
    run = begin_run(config, kind=kind, shard_set=shard_set, run_id=run_id, params=params)
    try:
        yield run
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        with contextlib.suppress(UserError):  # the work's own error says more than a full disk
            end_run(run, status)
        raise
    end_run(run, "FINISHED")


def begin_run(
    config: Config,
    *,
    kind: Kind,
    shard_set: ShardSet,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    tags: dict[str, str] | None = None,
    params: dict[str, Any] | None = None,
) -> RunRef:
    """Begin an MLflow run, or continue an earlier one. It is RUNNING until `end_run`.

    Args:
        config: The configuration of the run.
        kind: "train", "study" or "trial". It becomes a tag and part of the run's name.
        shard_set: The shard set, logged as the run's dataset.
        run_id: The ID of an earlier run of the same work, to continue it.
        parent_run_id: The ID of a parent run, to make this one its nested child.
        tags: The tags of a new run; None names the source and the user of this process.
        params: The parameters to log instead of the whole configuration.

    Raises:
        UserError: MLflow does not answer.
    """
    mlflow_client = client(config.tracking_uri)
    with answering(config.tracking_uri):
        if run_id is None or not _exists(mlflow_client, run_id):
            tags = source_tags() if tags is None else tags
            run_id = _create(mlflow_client, config, kind, shard_set, parent_run_id, params, tags)
        else:
            # The outbox may hold the end of an earlier launch, so it is delivered first.
            run = run_ref(config, kind, run_id)
            fetch_all(run.outbox, run_id)
            deliver_run(run)
            mlflow_client.update_run(run_id, status="RUNNING")
            # Fields such as the epochs may have changed. MLflow's parameters cannot, but files can.
            _log_config(mlflow_client, run_id, config)
    return run_ref(config, kind, run_id)


def log_to_run(
    run: RunRef,
    *,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    artifacts: Iterable[Folder] = (),
    to: str | None = None,
) -> None:
    """Log from the driver. What MLflow does not accept now is kept for `undelivered`.

    Args:
        run: The run.
        metrics: Metrics of step 0, by name.
        tags: Tags of the run.
        artifacts: Files to store with the run.
        to: The folder of the run's artifacts that gets them; None for the uppermost.

    Raises:
        UserError: The outbox cannot be written.
    """
    with contextlib.closing(Outbox(run, DRIVER)) as outbox:
        if metrics:
            outbox.metrics(metrics, step=0)
        if tags:
            outbox.tags(tags)
        for path in artifacts:
            outbox.artifact(path, to)
        outbox.save()
    deliver_run(run)


def end_run(run: RunRef, status: str) -> None:
    """End a run FINISHED, FAILED or KILLED, now or when `undelivered` can deliver this."""
    with contextlib.closing(Outbox(run, DRIVER)) as outbox:
        outbox.end(status)
        outbox.save()
    deliver_run(run)


def undelivered(config: Config, kind: Kind) -> str | None:
    """Deliver the remaining entries of all runs of a verb.

    Returns:
        None if everything was delivered; otherwise a line for the person that says how many entries
        are left, why, and where they are kept.
    """
    return deliver_folder(config.tracking_uri, _outbox(config, kind))


def run_ref(config: Config, kind: Kind, run_id: str) -> RunRef:
    """Return what a process needs to write to a run.

    Args:
        config: The configuration of the run.
        kind: "train", "study" or "trial".
        run_id: The ID of the run.
    """
    return RunRef(config.tracking_uri, run_id, _outbox(config, kind))


def _outbox(config: Config, kind: Kind) -> str:
    return str(config.folder / "mlflow" / ("train" if kind == "train" else "tune"))


def source_tags() -> dict[str, str]:
    """Return the tags that say what started a run and who, as MLflow's fluent API sets them."""
    from mlflow.tracking.context.registry import resolve_tags

    return dict(resolve_tags())


def child_run(parent: RunRef, tags: dict[str, str]) -> str | None:
    """Return the ID of the newest nested run of a parent with these tags, or None."""
    mlflow_client = client(parent.tracking_uri)
    wanted = {"mlflow.parentRunId": parent.run_id, **tags}
    wish = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())
    with answering(parent.tracking_uri):
        experiment = mlflow_client.get_run(parent.run_id).info.experiment_id
        found = mlflow_client.search_runs([experiment], filter_string=wish, max_results=1)
    return str(found[0].info.run_id) if found else None


def _exists(mlflow_client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return mlflow_client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if is_missing(error):
            return False
        raise


def _create(
    mlflow_client: Any,
    config: Config,
    kind: Kind,
    shard_set: ShardSet,
    parent_run_id: str | None,
    params: dict[str, Any] | None,
    source: dict[str, str],
) -> str:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    tags = {
        **source,
        "perceiver.kind": kind,
        "perceiver.shards": redacted_tree(config.shards_folder),
        "perceiver.shards_digest": shard_set.digest,
    }
    if parent_run_id:
        tags["mlflow.parentRunId"] = parent_run_id
    run = mlflow_client.create_run(
        _experiment(mlflow_client, config),
        run_name=f"{config.name}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}",
        tags=tags,
    )
    run_id = run.info.run_id
    # No secret of an address is stored. Whoever needs one again must provide it again.
    tree = redacted_tree(config.tree())
    values = _flat(tree) if params is None else redacted_tree(params)
    entries = [Param(key, str(value)[:MAX_PARAM_LENGTH]) for key, value in values.items()]
    for start in range(0, len(entries), 100):
        mlflow_client.log_batch(run_id, params=entries[start : start + 100])
    dataset = Dataset(
        name=f"{config.name}-shards",
        digest=shard_set.digest[:36],  # MLflow's limit; the source holds the whole digest
        source_type="perceiver-shards",
        source=json.dumps({"uri": redacted_tree(config.shards_folder), "digest": shard_set.digest}),
        profile=str(shard_set.manifest.counts),
    )
    context = InputTag("mlflow.data.context", "training")
    mlflow_client.log_inputs(run_id, datasets=[DatasetInput(dataset, [context])])
    _log_config(mlflow_client, run_id, config)
    return run_id


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration's fields by dotted names, which MLflow takes for parameters.

    The keys of `model.init.learning_rate_scale` are patterns, so the field stays one value.
    """
    init = tree["model"].get("init")
    if init is not None:
        scales = str(init["learning_rate_scale"])
        tree = {**tree, "model": {**tree["model"], "init": {**init, "learning_rate_scale": scales}}}
    return flatten(tree)


def _log_config(mlflow_client: Any, run_id: str, config: Config) -> None:
    text = yaml.safe_dump(redacted_tree(config.tree()), sort_keys=False, allow_unicode=True)
    mlflow_client.log_text(run_id, text, "config.yaml")


def run_config(mlflow_client: Any, run_id: str) -> Config:
    """Return the configuration that a run was made with.

    Raises:
        UserError: The run does not exist, or this pipeline did not make it.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from pipeline.config.load import validate

    with mlflow_answers(f"run {run_id}"):
        try:
            run = mlflow_client.get_run(run_id)
        except MlflowException as error:
            # INVALID_PARAMETER_VALUE means that the text cannot be a run's ID.
            if not is_missing(error) and error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise UserError(f"{run_id}: MLflow has no such run") from None
    if "perceiver.kind" not in run.data.tags:
        raise UserError(f"{run_id}: this pipeline did not make the run")
    with mlflow_answers(f"config.yaml of run {run_id}"):
        text = mlflow.artifacts.load_text(f"runs:/{run_id}/config.yaml")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"config.yaml of run {run_id}: {reason_of(error)}") from None
    return validate(tree, f"run {run_id}")
