"""`perceiver promote --rollback`: move the alias back to the version before."""

from typing import Any

from pipeline.errors import UserError
from pipeline.registry.registration import (
    ALIAS_TAG,
    BEFORE_TAG,
    ROLLED_BACK_TAG,
    champion_of,
    check_names,
    move_alias,
    set_tags,
    time_now,
)
from pipeline.runs.console import Console
from pipeline.runs.mlflow_errors import is_missing, mlflow_answers


def rollback(mlflow_client: Any, console: Console, *, name: str, alias: str) -> dict[str, Any]:
    """Undo the last promotion to an alias.

    Every version records which version the alias named before. So another rollback goes further
    back. The alias moves with one call of the registry. After it, the version that was rolled back
    gets a tag with the time, for the history.

    Args:
        mlflow_client: The client of the tracking server, from `pipeline.runs.tracking.client`.
        console: The console, which shows notes.
        name: The name of the registered model.
        alias: The alias to move.

    Returns:
        `model_uri`, `version` (which the alias names now), `rolled_back` (the version that it named
        before), and `run_id` (the run of `version`).

    Raises:
        UserError: The alias names nothing, no earlier version is known, or that version is gone.
            The alias is not moved.
    """
    check_names(name, alias)
    where = f"{name}@{alias}"
    current = champion_of(mlflow_client, name, alias)
    if current is None:
        raise UserError(f"{where}: there is no such model or alias; check --name and --alias")
    state = f"{where} is version {current.version}"
    if current.tags.get(ALIAS_TAG, alias) != alias:
        raise UserError(
            f"{state}, which was promoted to {current.tags[ALIAS_TAG]!r}; what {alias!r} named "
            "before is not known, so move it in MLflow"
        )
    before = current.tags.get(BEFORE_TAG)
    if before is None:
        raise UserError(f"{state}; there is no version before it to go back to")
    version = _version(mlflow_client, name, before, state)
    again = champion_of(mlflow_client, name, alias)
    if again is None or again.version != current.version:
        raise UserError(f"{where} was moved by another command at the same time; run this again")
    move_alias(mlflow_client, name, alias, str(version.version))
    times = ",".join(filter(None, [current.tags.get(ROLLED_BACK_TAG), time_now()]))
    try:
        set_tags(mlflow_client, current, {ROLLED_BACK_TAG: times})
    except UserError as error:
        console.notice(f"{where} is moved, but the history does not have it ({error})")
    return {
        "model_uri": f"models:/{where}",
        "version": str(version.version),
        "rolled_back": str(current.version),
        "run_id": version.run_id,
    }


def report(result: dict[str, Any], console: Console) -> None:
    """Show the user what `rollback` returned."""
    console.say(
        f"{result['model_uri']} is version {result['version']} again; version "
        f"{result['rolled_back']} is rolled back"
    )


def _version(mlflow_client: Any, name: str, number: str, state: str) -> Any:
    from mlflow.exceptions import MlflowException

    with mlflow_answers(f"{name} version {number}"):
        try:
            return mlflow_client.get_model_version(name, number)
        except MlflowException as error:
            if not is_missing(error):
                raise
    raise UserError(
        f"{state}; version {number}, the version before it, was deleted; move the alias in MLflow"
    )
