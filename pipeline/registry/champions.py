"""Load model versions from the registry: weights, card, and what they were trained on."""

import contextlib
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.registry.judged_models import Candidate, Champion
from pipeline.registry.registration import WEIGHTS_TAG
from pipeline.registry.run_shards import whole_address
from pipeline.registry.served.card import CARD_FILE, WEIGHTS_FILE
from pipeline.registry.served.inference import Predictor
from pipeline.registry.trained_on import RECORD_FILE, read_record, trained_on
from pipeline.runs.mlflow_errors import mlflow_answers, reason_of
from shards import ShardError, ShardSet
from shards.digests import stream_sha256


def load_registered(mlflow_client: Any, version: Any, backbones: Collection[str] = ()) -> Champion:
    """Load a model version's weights, card and training record, without running its code.

    Args:
        mlflow_client: The client of the tracking server.
        version: The version.
        backbones: The modules that may be imported as the model's backbone.

    Raises:
        UserError: The version cannot be fetched, or this pipeline did not register it.
    """
    label = f"{version.name} version {version.version}"
    with _artifacts(mlflow_client, version) as path:
        try:
            predictor = Predictor.load(path / CARD_FILE, path / WEIGHTS_FILE, backbones=backbones)
        except Exception as error:  # damaged cards and weights fail in many ways
            raise UserError(
                f"{label}: cannot be read ({reason_of(error)}); restore it, or register this one "
                "under another --name"
            ) from error
        record = read_record(path / RECORD_FILE) if (path / RECORD_FILE).is_file() else None
        return Champion(label, predictor, record)


def record_of(
    mlflow_client: Any, version: Any, candidate: Candidate, champion: Champion
) -> np.ndarray | None:
    """Return what a version without a record was trained on; None if its shard set is gone.

    Args:
        mlflow_client: The client of the tracking server.
        version: The version.
        candidate: The run's model that is compared with it. Its shard set may be the same.
        champion: The version's model.

    Returns:
        The digests of the training samples, `S32 [digests]`, or None.
    """
    digest = version.tags.get("perceiver.shards_digest")
    if digest == candidate.trained_set.digest:
        return candidate.record.digests
    with mlflow_answers(f"run {version.run_id} of {champion.name}"):
        stored = mlflow_client.get_run(version.run_id).data.tags.get("perceiver.shards")
    try:
        address = whole_address(stored, str(candidate.trained_set.location)) if stored else None
        shard_set = ShardSet.open(address, candidate.trained_set.remote) if address else None
        if shard_set is None or shard_set.digest != digest:
            return None
        return trained_on(shard_set, champion.predictor.card.media).digests
    except (ShardError, OSError):
        return None


def weights_of(mlflow_client: Any, version: Any) -> str:
    """Return the sha256 of a version's weights, from its tags or, for old versions, its file."""
    if known := version.tags.get(WEIGHTS_TAG):
        return known
    with _artifacts(mlflow_client, version) as path, (path / WEIGHTS_FILE).open("rb") as file:
        return stream_sha256(file)


@contextlib.contextmanager
def _artifacts(mlflow_client: Any, version: Any) -> Iterator[Path]:
    """Download a version's artifacts into a temporary folder."""
    import mlflow

    label = f"{version.name} version {version.version}"
    with tempfile.TemporaryDirectory(prefix="perceiver-model-") as folder:
        with mlflow_answers(f"fetching {label}"):
            uri = mlflow_client.get_model_version_download_uri(version.name, version.version)
            path = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder)) / "artifacts"
        if not all((path / name).is_file() for name in (CARD_FILE, WEIGHTS_FILE)):
            raise UserError(
                f"{label}: was not registered by 'perceiver promote'; register this run's model "
                "under another --name"
            )
        yield path
