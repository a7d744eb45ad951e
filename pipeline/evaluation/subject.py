"""What `perceiver evaluate` evaluates: the best checkpoint of a run, or a registered version."""

import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from perceiver_model.adapters.backbone_config import backbone_of
from pipeline.config.folders import folder_at
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.registry.backbone_code import check_backbone_is_own
from pipeline.registry.champions import load_registered
from pipeline.registry.registration import WEIGHTS_TAG, champion_of, check_names
from pipeline.registry.run_model import (
    card_of,
    checkpoint_of,
    is_run_folder,
    own_set,
    recorded_run,
)
from pipeline.registry.served.card import ModelCard
from pipeline.runs.console import Console
from pipeline.runs.mlflow_errors import is_missing, mlflow_answers
from pipeline.runs.tracking import run_config
from shards import ShardError, ShardSet

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_MODEL = re.compile(r"(?:models:/)?(?P<name>[^/@:]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))?")


@dataclass(frozen=True)
class Subject:
    """A model with its weights.

    Attributes:
        name: What people call it.
        card: Its card. The objective has the options of its loss, if they are known.
        weights: The weights by name, float32 on the CPU.
        run_id: The MLflow run that made it.
        config: The configuration of that run; None if the run is gone.
        own_set: The set that it was trained on; None if it cannot be opened.
        missing: Why `own_set` is None.
        is_run: Whether a run was named, and not a registered version. A run is evaluated as its
            training evaluates it, and a version in float32, as it answers.
        versions: The registered versions with these weights.
    """

    name: str
    card: ModelCard
    weights: dict[str, torch.Tensor]
    run_id: str
    config: Config | None
    own_set: ShardSet | None
    missing: str
    is_run: bool
    versions: tuple[Any, ...]


def find_subject(
    mlflow_client: Any, named: str, console: Console, *, shards: str | None = None
) -> Subject:
    """Find a model by what a user calls it.

    Args:
        mlflow_client: The client of the tracking server.
        named: The folder or URL of a run, an MLflow run, `models:/NAME@ALIAS`,
            `models:/NAME/VERSION`, `NAME@ALIAS`, or `NAME` for its alias `champion`.
        console: The console, which shows notes.
        shards: The whole address of the model's own set, if it has a password or a signature.

    Raises:
        UserError: There is no such run or model, or it has no weights.
    """
    if is_run_folder(named):
        return _of_run(mlflow_client, recorded_run(folder_at(named)), shards)
    if _RUN_ID.fullmatch(named):
        return _of_run(mlflow_client, named, shards)
    match = _MODEL.fullmatch(named)
    if match is None:
        raise UserError(
            f"{named}: is no folder of a run, no MLflow run (32 hexadecimal digits) and no "
            "registered model (models:/NAME@ALIAS, models:/NAME/VERSION or NAME)"
        )
    return _of_version(mlflow_client, _version(mlflow_client, named, **match.groupdict()), console)


def _of_run(mlflow_client: Any, run_id: str, shards: str | None) -> Subject:
    config = run_config(mlflow_client, run_id)
    with mlflow_answers(f"run {run_id}"):
        run = mlflow_client.get_run(run_id)
    if (best := run.data.tags.get("perceiver.best_trial")) not in (None, run_id):
        return _of_run(mlflow_client, best, shards)
    check_backbone_is_own(config, run_id)
    checkpoint = checkpoint_of(run)
    shard_set = own_set(run, config, shards)
    weights = checkpoint.load_model()
    sha256 = checkpoint.model_sha256()
    with mlflow_answers(f"versions of run {run_id}"):
        found = mlflow_client.search_model_versions(f"run_id='{run_id}'")
    return Subject(
        name=f"run {run_id}",
        card=card_of(config, shard_set),
        weights=weights,
        run_id=run_id,
        config=config,
        own_set=shard_set,
        missing="",
        is_run=True,
        versions=tuple(each for each in found if each.tags.get(WEIGHTS_TAG) == sha256),
    )


def _version(
    mlflow_client: Any, named: str, name: str, alias: str | None, version: str | None
) -> Any:
    from mlflow.exceptions import MlflowException

    if version is None:
        alias = alias or "champion"
        check_names(name, alias)
        found = champion_of(mlflow_client, name, alias)
        if found is None:
            raise UserError(f"{named}: there is no model {name!r} with the alias {alias!r}")
        return found
    with mlflow_answers(named):
        try:
            return mlflow_client.get_model_version(name, version)
        except MlflowException as error:
            if not is_missing(error):
                raise
    raise UserError(f"{named}: there is no version {version} of a model {name!r}")


def _of_version(mlflow_client: Any, version: Any, console: Console) -> Subject:
    config, shard_set, missing, backbones = None, None, "", list[str]()
    try:
        config = run_config(mlflow_client, version.run_id)
        with mlflow_answers(f"run {version.run_id}"):
            run = mlflow_client.get_run(version.run_id)
        if (backbone := backbone_of(config.model)) is not None:
            check_backbone_is_own(config, version.run_id)
            backbones.append(backbone.module)
        shard_set = own_set(run, config, None)
    except (UserError, ShardError) as error:
        missing = str(error)
    loaded = load_registered(mlflow_client, version, backbones)
    card = loaded.predictor.card
    if config is not None and shard_set is not None:
        trained = card_of(config, shard_set)
        if trained.to_json() == card.to_json():
            card = replace(card, objective=trained.objective)  # it has the options of the loss
    if missing:
        console.notice(
            f"{loaded.name}: its training or its set cannot be read ({missing}), so the loss is "
            "that of the objective's default options"
        )
    weights = loaded.predictor.model.state_dict()
    return Subject(
        name=loaded.name,
        card=card,
        weights={name: tensor.cpu() for name, tensor in weights.items()},
        run_id=version.run_id,
        config=config,
        own_set=shard_set,
        missing=missing,
        is_run=False,
        versions=(version,),
    )
