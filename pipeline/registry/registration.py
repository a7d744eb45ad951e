"""The registry: find the version that an alias names, make versions, and move the alias.

A promotion makes a version with all its tags in one call, then moves the alias, then marks the
version as promoted. Wherever it is cut off, the alias names a complete version, and the same
command continues. MLflow cannot move an alias on the condition that nobody else has moved it. So
unfinished versions wait for those with lower numbers: see `wait_for_earlier`.
"""

import re
import time
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.runs.mlflow_errors import is_missing, mlflow_answers

ALIAS_TAG = "perceiver.alias"
BEFORE_TAG = "perceiver.champion_version"
PROMOTED_TAG = "perceiver.promoted"
RUN_TAG = "perceiver.run_id"
WEIGHTS_TAG = "perceiver.weights_sha256"
SET_TAG = "perceiver.shards_digest"
JUDGED_TAG = "perceiver.judged_digest"
ROLLED_BACK_TAG = "perceiver.rolled_back"

_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")
_RESERVED_ALIAS = re.compile(r"latest|v\d+", re.IGNORECASE)
_WAIT_SECONDS = 10.0
_POLL_SECONDS = 0.5
_IN_THE_MAKING_MS = 60_000


def check_names(name: str, alias: str) -> None:
    """Refuse names that MLflow would refuse only after a version was made.

    Raises:
        UserError: The message says which name is wrong.
    """
    if not name.strip() or any(mark in name for mark in "/:'\"`\n"):
        raise UserError(
            f"registry.model_name={name!r}: give a name without slashes, colons and quotes"
        )
    if not _ALIAS.fullmatch(alias) or _RESERVED_ALIAS.fullmatch(alias):
        raise UserError(
            f"registry.alias={alias!r}: give letters, digits, '_' and '-'; 'latest' and 'v1' are "
            "MLflow's own"
        )


def champion_of(mlflow_client: Any, name: str, alias: str) -> Any | None:
    """Return the version that an alias names; None if the registry confirms there is none.

    Raises:
        UserError: The registry does not answer, or returns another version.
    """
    from mlflow.exceptions import MlflowException

    where = f"{name}@{alias}"
    with mlflow_answers(where):
        try:
            version = mlflow_client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            # For a missing alias, a database store reports only an invalid value.
            if not is_missing(error) and error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if _has_alias(mlflow_client, name, alias):
                raise
            return None
    if version.name != name or not str(version.version).isdigit():
        raise UserError(
            f"{where}: the registry answers with version {version.version!r} of {version.name!r}; "
            "is a proxy in between?"
        )
    return version


def _has_alias(mlflow_client: Any, name: str, alias: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        model = mlflow_client.get_registered_model(name)
    except MlflowException as error:
        if is_missing(error):
            return False
        raise
    if model.name != name:
        raise ValueError(f"the registry answers with the model {model.name!r}")
    return alias in model.aliases


def unfinished_version(
    mlflow_client: Any, name: str, alias: str, run_id: str, weights_sha256: str
) -> Any | None:
    """Return the version that an interrupted promotion of the same weights left, or None.

    Args:
        mlflow_client: The client of the tracking server.
        name: The name of the registered model.
        alias: The alias that the promotion was to move.
        run_id: The MLflow run of the model.
        weights_sha256: The sha256 of the weights.
    """
    with mlflow_answers(name):
        found = [
            version
            for version in mlflow_client.search_model_versions(f"run_id='{run_id}'")
            if version.name == name
            and _is_unfinished(version, alias)
            and version.tags.get(WEIGHTS_TAG) == weights_sha256
        ]
    return max(found, key=lambda version: int(version.version), default=None)


def _is_unfinished(version: Any, alias: str) -> bool:
    return version.tags.get(ALIAS_TAG) == alias and PROMOTED_TAG not in version.tags


def new_version(name: str, model_uri: str, tags: dict[str, str]) -> Any:
    """Register a logged model with its tags. A missing registered model is created.

    Args:
        name: The name of the registered model.
        model_uri: The URI of the logged model.
        tags: The tags of the version.

    Returns:
        MLflow's model version.

    Raises:
        UserError: The registry fails.
    """
    import mlflow

    with mlflow_answers(f"registering a version of {name}"):
        return mlflow.register_model(model_uri, name, tags=tags)


def describe(mlflow_client: Any, version: Any, text: str) -> None:
    """Set the description of a version.

    Raises:
        UserError: The registry fails.
    """
    with mlflow_answers(f"{version.name} version {version.version}"):
        mlflow_client.update_model_version(version.name, version.version, description=text)


def set_tags(mlflow_client: Any, version: Any, tags: dict[str, str]) -> None:
    """Set tags of a version.

    Raises:
        UserError: The registry fails. Some tags may already be set.
    """
    with mlflow_answers(f"{version.name} version {version.version}"):
        for key, value in tags.items():
            mlflow_client.set_model_version_tag(version.name, version.version, key, value)


def renew_tags(mlflow_client: Any, version: Any, tags: dict[str, str]) -> None:
    """Replace the tags of an unfinished version with those of this promotion."""
    stale = [key for key in version.tags if key.startswith("perceiver.") and key not in tags]
    with mlflow_answers(f"{version.name} version {version.version}"):
        for key in stale:
            mlflow_client.delete_model_version_tag(version.name, version.version, key)
    set_tags(mlflow_client, version, tags)


def discard(mlflow_client: Any, version: Any) -> None:
    """Delete a version that will not be promoted."""
    with mlflow_answers(f"deleting {version.name} version {version.version}"):
        mlflow_client.delete_model_version(version.name, version.version)


def wait_for_earlier(mlflow_client: Any, version: Any, alias: str, console: Console) -> None:
    """Wait for promotions whose version has a lower number than ours.

    The registry numbers versions one by one. So if two promotions run at the same time, the later
    one finds the version of the earlier one here, waits for it, and is then judged against it.
    Versions that were left unfinished long ago are ignored.

    Args:
        mlflow_client: The client of the tracking server.
        version: Our own version.
        alias: The alias that is to be moved.
        console: The console, which shows what is waited for.
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    waiting: list[str] = []
    while True:
        with mlflow_answers(version.name):
            versions = mlflow_client.search_model_versions(f"name='{version.name}'")
        earlier = [
            str(other.version)
            for other in versions
            if int(other.version) < int(version.version)
            and _is_unfinished(other, alias)
            and version.creation_timestamp - other.creation_timestamp < _IN_THE_MAKING_MS
        ]
        if not earlier:
            return
        if not waiting:
            console.notice(f"waiting for the promotion of version {', '.join(earlier)}")
        waiting = earlier
        if time.monotonic() > deadline:
            console.notice(f"version {', '.join(earlier)} was not finished; going on without it")
            return
        time.sleep(_POLL_SECONDS)


def move_alias(mlflow_client: Any, name: str, alias: str, version: str) -> None:
    """Move an alias to a version.

    Raises:
        UserError: The registry fails.
    """
    with mlflow_answers(f"moving {name}@{alias} to version {version}"):
        mlflow_client.set_registered_model_alias(name, alias, version)


def time_now() -> str:
    """Return the time as a tag holds it, such as `2026-11-27T22:29:43.512Z`."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return now.replace("+00:00", "Z")


def mark_promoted(mlflow_client: Any, version: Any, alias: str, console: Console) -> None:
    """Record that the alias was moved to a version.

    Only the alias counts. If the record cannot be made, the next promotion makes it.
    """
    if version.tags.get(ALIAS_TAG) != alias or PROMOTED_TAG in version.tags:
        return
    try:
        set_tags(mlflow_client, version, {PROMOTED_TAG: time_now()})
    except UserError as error:
        console.notice(f"the alias is moved, but its version has no tag {PROMOTED_TAG} ({error})")
