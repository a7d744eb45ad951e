"""What would stop a training, found before it starts. Nothing that is found here is kept."""

import os
import shutil
import socket
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.config.sqlite_uri import sqlite_path
from pipeline.config.tree import Config
from pipeline.deploy.offers import reserved_cpus
from pipeline.errors import UserError
from pipeline.plan.planned_set import PlannedSet
from pipeline.runs import storage
from pipeline.training.open_shards import check_format
from shards import ShardError
from shards.redaction import redacted

SECONDS = 4.0
"""The patience with each server."""
CHECKPOINTS = 4
"""The last two, the best one, and the one that is being written."""


def workers_of(config: Config) -> int:
    """Return the number of workers that is planned for: the smallest of a range."""
    return max(1, config.cluster.min_workers)


def problems_of_set(config: Config, planned: PlannedSet) -> Iterator[str]:
    """Yield what is wrong with the shard set.

    Args:
        config: The configuration.
        planned: The set, or what is known of it.
    """
    if planned.real is None:
        if planned.problem and "there is no shard set" not in planned.problem:
            yield planned.problem
        return
    try:
        check_format(config, planned.real)
    except (UserError, ShardError) as error:
        yield str(error)
    if (samples := planned.samples or 0) < config.training.batch_size:
        yield (
            f"training.batch_size is {config.training.batch_size}, but the set has only {samples} "
            "training samples; lower training.batch_size"
        )


def problems_of_storage(config: Config, checkpoint_bytes: int) -> Iterator[str]:
    """Yield why a run cannot write to `output`. A tiny file is written there and removed.

    Args:
        config: The configuration.
        checkpoint_bytes: The size of one checkpoint.
    """
    folder = config.folder
    if not isinstance(folder, Path):
        probe = folder / f".plan-{uuid.uuid4().hex}"
        try:
            storage.write_bytes(probe, b"")
            storage.remove(probe)
        except Exception as error:  # fsspec's storages raise many kinds
            yield f"output={redacted(config.output)}: cannot be written ({_line(error)})"
        return
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free
    except OSError as error:
        yield f"output={config.output}: {there}: {error.strerror}; choose another output"
        return
    if (needed := CHECKPOINTS * checkpoint_bytes) > free:
        yield (
            f"output={config.output}: {free / 1e9:.1f} GB are free, and {CHECKPOINTS} checkpoints "
            f"take {needed / 1e9:.1f} GB; free some, or choose another output"
        )


def problems_of_tracking(config: Config) -> Iterator[str]:
    """Yield why MLflow cannot be reached at `tracking.uri`."""
    try:
        uri = config.tracking_uri
    except UserError as error:
        yield str(error)
        return
    database = sqlite_path(uri)
    if database is not None:
        there = next(path for path in (database, *database.parents) if path.exists())
        if not os.access(there, os.W_OK):
            yield f"tracking.uri={uri}: {there} cannot be written; choose another database"
    elif uri.startswith(("http://", "https://")):
        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SECONDS):
                pass
        except urllib.error.HTTPError as error:
            if error.code not in (401, 403):  # it answers, to those who have its password
                yield f"tracking.uri={redacted(uri)}: answers {error.code}; is this MLflow?"
        except OSError as error:
            yield (
                f"tracking.uri={redacted(uri)}: no MLflow answers there ({_line(error)}); start "
                "it, or mend tracking.uri"
            )


def problems_of_cluster(config: Config) -> Iterator[str]:
    """Yield why Ray cannot start the workers, as far as that shows without Ray."""
    cluster = config.cluster
    if cluster.deploy is not None:
        try:
            reserved_cpus(cluster, cluster.deploy)
        except UserError as error:
            yield str(error)
    if cluster.address is None:
        workers = workers_of(config)
        needed, have = workers * cluster.cpus_per_worker, os.cpu_count() or 1
        if cluster.min_workers and needed > have:
            yield (
                f"the training needs {needed} CPUs ({workers} workers x {cluster.cpus_per_worker}),"
                f" and this machine has {have}; lower cluster.num_workers or "
                "cluster.cpus_per_worker, or name a larger cluster in cluster.address"
            )
    elif (place := _host_and_port(cluster.address)) is not None:
        try:
            socket.create_connection(place, SECONDS).close()
        except OSError as error:
            yield (
                f"cluster.address={cluster.address}: nothing answers there ({_line(error)}); "
                "start Ray, or mend cluster.address"
            )


def not_checked(config: Config) -> list[str]:
    """Return what this command cannot know without Ray, a GPU, or a password."""
    found = []
    if config.cluster.address is not None:
        found.append("whether the cluster has these CPUs and GPUs free (this starts no Ray)")
    try:
        uri = config.tracking_uri
        if sqlite_path(uri) is None and not uri.startswith(("http://", "https://")):
            found.append(f"whether MLflow answers at {redacted(uri)}")
    except UserError:
        pass
    found.append("how fast samples are read; 'perceiver bench shards' measures it")
    return found


def _host_and_port(address: str) -> tuple[str, int] | None:
    """Return where an address of Ray points; None if it names no host."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        return (parts.hostname, parts.port or 10001) if parts.hostname and parts.port else None
    except ValueError:
        return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
