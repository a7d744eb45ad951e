"""`perceiver evaluate`: evaluate a run or a registered model on a split of a shard set."""

import contextlib
import json
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from cluster.errors import ClusterError
from cluster.ray_failures import read_failure
from cluster.ray_session import ray_session
from pipeline.config.folders import Folder, folder_at
from pipeline.config.load import with_values
from pipeline.config.overrides import read_override
from pipeline.config.tree import ClusterConfig
from pipeline.errors import UserError
from pipeline.evaluation.html_report import html_report
from pipeline.evaluation.logged import log_evaluation
from pipeline.evaluation.set_reading import reading_of
from pipeline.evaluation.subject import Subject, find_subject
from pipeline.evaluation.worker import (
    RESULT_FILE,
    WEIGHTS_FILE,
    EvaluationTask,
    evaluate_worker,
)
from pipeline.registry.reading import BATCH_SIZE
from pipeline.runs.console import Console
from pipeline.runs.storage import exists, read_bytes, remove_folder, writable
from pipeline.runs.strict_json import to_json
from pipeline.runs.user_errors import find_user_error
from pipeline.training.agreement import folder_token
from pipeline.training.launch import fit_workers
from pipeline.training.objectives import name_field
from pipeline.training.placing import worker_placement
from shards import RemoteReading, ShardSet
from shards.files import AtomicFile
from shards.redaction import redacted_tree

WORST = 25
SETTINGS = (
    "cluster.",
    "data.max_bad_fraction",
    "data.verify_samples",
    "data.corrupt_samples",
    "data.cache_folder",
    "data.cache_gigabytes",
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "training.precision",
    "training.attention_path",
    "training.loader_workers",
)
"""The fields that an evaluation reads. They may be given beside the model."""
_MAX_RESULT_BYTES = 4 << 30
_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)+=")


@dataclass(frozen=True)
class _Settings:
    """How an evaluation is computed. The defaults are for a model whose run is gone."""

    cluster: ClusterConfig = field(default_factory=lambda: ClusterConfig(num_workers=0))
    batch_size: int = BATCH_SIZE
    loader_workers: int = 0
    precision: str = "float32"
    attention_path: str = "auto"
    max_bad_fraction: float = 0.5
    verify_samples: bool = True
    skip_corrupt: bool = True
    remote: RemoteReading = field(default_factory=RemoteReading)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the sets and the overrides among arguments."""
    overrides = [text for text in arguments if _OVERRIDE.match(text)]
    return [text for text in arguments if text not in overrides], overrides


def evaluate(
    mlflow_client: Any,
    named: str,
    console: Console,
    *,
    given_set: str | None = None,
    split: str = "validation",
    overrides: Sequence[str] = (),
    shards: str | None = None,
    output: str = "runs",
    json_file: Path | None = None,
    html_file: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a model, write the reports, and log them to the run and to the version.

    Args:
        mlflow_client: The client of the tracking server.
        named: The run or the registered model, as for `find_subject`.
        console: The console, which shows notes.
        given_set: The folder or URL of a set; None takes the one that the model was trained on.
        split: A split of the set.
        overrides: Changes to the settings of the run, of the fields in `SETTINGS`.
        shards: The whole address of the model's own set, if it has a password or a signature.
        output: The folder for temporary files, if the run's own folder is gone.
        json_file: A file for the result as JSON.
        html_file: A file for the report as HTML.

    Returns:
        `model`, `run_id`, `versions`, `set`, `digest`, `split`, `samples`, `bad_samples`,
        `metrics`, `classes`, `confusion_matrix`, `calibration`, `worst` and `logged` (the prefix of
        the metrics in MLflow). docs/evaluation.md describes them.

    Raises:
        UserError: There is no such model, the set does not fit it, too many samples cannot be read,
            or a file cannot be written.
        ShardError: There is no such set or split.
        ClusterError: The machines cannot run it.
    """
    subject = find_subject(mlflow_client, named, console, shards=shards)
    settings = _settings(subject, overrides)
    shard_set = _set_of(subject, given_set)
    num_samples = shard_set.num_samples(split)
    if not num_samples:
        raise UserError(f"{shard_set.location}: the split {split!r} has no samples")
    is_own = subject.own_set is not None and shard_set.digest == subject.own_set.digest
    reading, renumbering = reading_of(
        subject.card,
        shard_set,
        is_own=is_own,
        verify_samples=settings.verify_samples,
        skip_corrupt=settings.skip_corrupt,
    )
    console.notice(
        f"evaluating {subject.name} on {num_samples} samples of {split} of {shard_set.location}"
    )
    with (
        _file(json_file) as json_out,
        _file(html_file) as html_out,
        _working_folder(subject, settings.cluster, output) as folder,
        folder_token(folder) as token,
    ):
        # Shared weights have several names, and a file of safetensors holds each one apart.
        apart = {name: tensor.clone() for name, tensor in subject.weights.items()}
        with writable(folder / WEIGHTS_FILE) as weights_file:
            save_file(apart, weights_file)
        task = EvaluationTask(
            objective=subject.card.objective,
            reading=reading,
            is_stream=subject.card.is_stream,
            renumbering=renumbering,
            location=shard_set.location,
            remote=settings.remote,
            split=split,
            folder=str(folder),
            token=token,
            batch_size=settings.batch_size,
            loader_workers=settings.loader_workers,
            precision=settings.precision,
            attention_path=settings.attention_path,
            max_bad_fraction=settings.max_bad_fraction,
            worst=WORST,
        )
        found = _run(settings.cluster, task, folder)
        result = redacted_tree({
            "model": subject.name,
            "run_id": subject.run_id,
            "versions": [f"{each.name}/{each.version}" for each in subject.versions],
            "set": str(shard_set.location),
            "digest": shard_set.digest,
            "split": split,
            "precision": settings.precision,
            **name_field(type(subject.card.objective)),
            **found,
        })  # fmt: skip
        prefix = "evaluate" if is_own else f"evaluate_{shard_set.digest[:8]}"
        result["logged"] = f"{prefix}_{split}"
        text, html = to_json(result), html_report(result)
        if json_out is not None:
            json_out.write(text.encode())
        if html_out is not None:
            html_out.write(html.encode())
    log_evaluation(mlflow_client, subject, result, text, html)
    return result


def _set_of(subject: Subject, given_set: str | None) -> ShardSet:
    if given_set is not None:
        return ShardSet.open(given_set)
    if subject.own_set is None:
        raise UserError(
            f"{subject.name}: the set that it was trained on cannot be read ({subject.missing}); "
            "name a set after the model"
        )
    return subject.own_set


def _settings(subject: Subject, overrides: Sequence[str]) -> _Settings:
    values = dict(map(read_override, overrides))
    for path in values:
        if not path.startswith(SETTINGS):
            raise UserError(
                f"{path}: has no effect on an evaluation; give {', '.join(SETTINGS[1:])} or a "
                "field of cluster"
            )
    config = subject.config
    if config is None:
        if values:
            raise UserError(
                f"{', '.join(values)}: the run of {subject.name} is gone, and with it the settings "
                "that these change"
            )
        return _Settings()
    # An evaluation reads in the order of the shards, so another batch size needs no nodes.
    config = with_values(config, values | {"training.canonical_nodes": 1}) if values else config
    training, data = config.training, config.data
    is_chosen = "training.precision" in values
    return _Settings(
        cluster=config.cluster.fixed(),
        batch_size=config.micro_batch_size(max(1, config.cluster.min_workers)),
        loader_workers=training.loader_workers,
        precision=training.precision if is_chosen or subject.is_run else "float32",
        attention_path=training.attention_path,
        max_bad_fraction=data.max_bad_fraction,
        verify_samples=data.verify_samples,
        skip_corrupt=data.corrupt_samples == "skip",
        remote=data.remote_reading,
    )


@contextlib.contextmanager
def _file(path: Path | None) -> Iterator[AtomicFile | None]:
    """Open a file before the work, so that a path that cannot be written fails at once."""
    if path is None:
        yield None
        return
    with AtomicFile(path) as file:
        yield file


@contextlib.contextmanager
def _working_folder(subject: Subject, cluster: ClusterConfig, output: str) -> Iterator[Folder]:
    """Make a folder on the storage of the run, which all workers see, and remove it afterwards."""
    parent = folder_at(output)
    if subject.config is not None and exists(subject.config.folder):
        parent = subject.config.folder
    if not isinstance(parent, Path) and cluster.min_workers:
        folder = parent / f".evaluate-{secrets.token_hex(8)}"
        try:
            yield folder
        finally:
            remove_folder(folder)
        return
    if not isinstance(parent, Path):  # nobody else has to see it
        parent = Path(tempfile.gettempdir())
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".evaluate-", dir=parent)
    except OSError as error:
        raise UserError(f"{parent}: cannot be written ({error.strerror})") from None
    with temporary as path:
        yield Path(path)


def _run(cluster: ClusterConfig, task: EvaluationTask, folder: Folder) -> dict[str, Any]:
    """Run the workers, and return what they found."""
    with contextlib.ExitStack() as stack:
        if cluster.min_workers:
            stack.enter_context(ray_session(cluster.address))
            worker_placement(cluster).require(
                "the evaluation", "lower cluster.num_workers or what each worker needs"
            )
        try:
            fit_workers(cluster, evaluate_worker, task, folder)
        except SystemExit:  # Ray Train ends this way on Ctrl-C
            raise KeyboardInterrupt from None
        except Exception as error:
            if cause := find_user_error(error):
                raise cause from error
            if failure := read_failure(error):
                raise ClusterError(f"{failure.text}; run the same command again") from error
            raise
    found: dict[str, Any] = json.loads(read_bytes(folder / RESULT_FILE, _MAX_RESULT_BYTES))
    return found
