"""`perceiver registry history` and `list`: which version an alias named when, and all models.

Everything is read from the tags that promotions and rollbacks set on the versions.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pipeline.errors import UserError
from pipeline.registry.registration import (
    ALIAS_TAG,
    BEFORE_TAG,
    JUDGED_TAG,
    PROMOTED_TAG,
    ROLLED_BACK_TAG,
    RUN_TAG,
    SET_TAG,
    champion_of,
    check_names,
)
from pipeline.runs.console import Console
from pipeline.runs.mlflow_errors import is_missing, mlflow_answers
from pipeline.training.objectives import OBJECTIVES

_METRICS = sorted({kind.sample_metric for kind in OBJECTIVES.values()})


def history(mlflow_client: Any, name: str, alias: str = "champion") -> dict[str, Any]:
    """Return who was the champion when.

    Args:
        mlflow_client: The client of the tracking server.
        name: The name of the registered model.
        alias: The alias.

    Returns:
        `model_uri`, `version` (which the alias names now; None if it names nothing), and
        `champions`: for each reign, in order, `version`, `since`, `until` (None for the last), `by`
        (`promote` or `rollback`), `metric`, `value`, `champion_value` (of the champion before, on
        the same samples), `samples`, `split`, `p_value`, `set_digest`, `worse_slices`, `run_id`.

    Raises:
        UserError: There is no such model, or the registry fails.
    """
    check_names(name, alias)
    versions = {str(one.version): one for one in _versions(mlflow_client, name)}
    now = champion_of(mlflow_client, name, alias)
    events = sorted(event for one in versions.values() for event in _events(one, alias))
    champions: list[dict[str, Any]] = []
    for since, _, by, number in events:
        if champions:
            champions[-1]["until"] = since
        champions.append(
            {
                "version": number,
                "since": since,
                "until": None,
                "by": by,
                **_measured(versions.get(number)),
            }
        )
    return {
        "model_uri": f"models:/{name}@{alias}",
        "version": None if now is None else str(now.version),
        "champions": champions,
    }


def list_models(mlflow_client: Any) -> dict[str, Any]:
    """Return all registered models.

    Returns:
        `models`: for each `name`, `aliases` (the version of each), `versions` (their number) and
        `latest` (the largest number of a version).

    Raises:
        UserError: The registry fails.
    """
    models = []
    with mlflow_answers("registered models"):
        for model in _pages(mlflow_client.search_registered_models):
            numbers = [
                int(one.version)
                for one in _pages(
                    mlflow_client.search_model_versions, filter_string=f"name='{model.name}'"
                )
            ]
            models.append(
                {
                    "name": model.name,
                    "aliases": {alias: str(number) for alias, number in model.aliases.items()},
                    "versions": len(numbers),
                    "latest": str(max(numbers)) if numbers else None,
                }
            )
    return {"models": sorted(models, key=lambda model: str(model["name"]))}


def report_history(result: dict[str, Any], console: Console) -> None:
    """Show the user what `history` returned."""
    columns = (
        "version", "since (UTC)", "by", "metric", "value", "before", "samples", "p", "set", "run",
    )  # fmt: skip
    rows = [
        (
            each["version"],
            each["since"].removesuffix("Z").replace("T", " "),
            each["by"],
            each["metric"] or "",
            _number(each["value"]),
            _number(each["champion_value"]),
            "" if each["samples"] is None else f"{each['samples']} of {each['split']}",
            _number(each["p_value"], ".3g"),
            (each["set_digest"] or "")[:8],
            each["run_id"] or "",
        )
        for each in result["champions"]
    ]
    console.table(result["model_uri"], columns, rows)
    last = result["champions"][-1]["version"] if rows else None
    if result["version"] is None:
        console.say(f"{result['model_uri']} names no version now")
    elif result["version"] != last:
        console.say(
            f"{result['model_uri']} names version {result['version']} now: it was moved in MLflow"
        )


def report_models(result: dict[str, Any], console: Console) -> None:
    """Show the user what `list_models` returned."""
    rows = [
        (
            each["name"],
            ", ".join(f"{alias}: {number}" for alias, number in sorted(each["aliases"].items())),
            str(each["versions"]),
            each["latest"] or "",
        )
        for each in result["models"]
    ]
    console.table("registered models", ("name", "aliases", "versions", "latest"), rows)


def _versions(mlflow_client: Any, name: str) -> list[Any]:
    from mlflow.exceptions import MlflowException

    with mlflow_answers(name):
        try:
            mlflow_client.get_registered_model(name)
        except MlflowException as error:
            if not is_missing(error):
                raise
            known = [each.name for each in _pages(mlflow_client.search_registered_models)]
            hint = f"there are {', '.join(sorted(known))}" if known else "none is registered there"
            raise UserError(f"{name}: there is no such registered model; {hint}") from None
        return _pages(mlflow_client.search_model_versions, filter_string=f"name='{name}'")


def _pages(search: Any, **options: Any) -> list[Any]:
    """Return the results of all pages of a search."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **options)
        found += page
        token = page.token
        if not token:
            return found


def _events(version: Any, alias: str) -> Iterator[tuple[str, int, str, str]]:
    """Yield when a version became the champion, and when it was rolled back to the one before.

    Yields:
        The time, the number of the version (which orders equal times), `promote` or `rollback`, and
        the number of the version that is the champion from then on.
    """
    tags, number = version.tags, int(version.version)
    if tags.get(ALIAS_TAG) != alias:
        return
    if (time := _time(tags.get(PROMOTED_TAG))) is not None:
        yield time, number, "promote", str(number)
    if (before := tags.get(BEFORE_TAG)) is not None:
        for text in tags.get(ROLLED_BACK_TAG, "").split(","):
            if (time := _time(text)) is not None:
                yield time, number, "rollback", before


def _time(text: str | None) -> str | None:
    """Return a time with milliseconds; None if the text is no time."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def _measured(version: Any | None) -> dict[str, Any]:
    tags = {} if version is None else version.tags
    metric = next((name for name in _METRICS if f"perceiver.{name}" in tags), None)

    def number(key: str, kind: type[int] | type[float] = float) -> float | None:
        try:
            return kind(tags[f"perceiver.{key}"])
        except (KeyError, ValueError):
            return None

    return {
        "metric": metric,
        "value": number(metric) if metric else None,
        "champion_value": number(f"champion_{metric}") if metric else None,
        "samples": number("samples", int),
        "split": tags.get("perceiver.split"),
        "p_value": number("p_value"),
        "set_digest": tags.get(JUDGED_TAG, tags.get(SET_TAG)),
        "worse_slices": tags.get("perceiver.worse_slices"),
        "run_id": tags.get(RUN_TAG),
    }


def _number(value: float | None, form: str = ".4f") -> str:
    return "" if value is None else f"{value:{form}}"
