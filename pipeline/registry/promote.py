"""`perceiver promote`: register a run's best model if it beats the champion."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from perceiver_model.adapters.backbone_config import backbone_of
from pipeline.config.tree import Config, RegistryConfig
from pipeline.errors import GateRefusedError, UserError
from pipeline.registry.backbone_code import check_backbone_is_own
from pipeline.registry.champions import load_registered, record_of, weights_of
from pipeline.registry.judging import Candidate, Verdict, judge
from pipeline.registry.package import model_requirements, package
from pipeline.registry.registration import (
    ALIAS_TAG,
    BEFORE_TAG,
    RUN_TAG,
    WEIGHTS_TAG,
    check_names,
    discard,
    mark_promoted,
    move_alias,
    new_version,
    renew_tags,
    unfinished_version,
    wait_for_earlier,
)
from pipeline.registry.registration import champion_of as _champion
from pipeline.registry.run_model import card_of, checkpoint_of, own_set
from pipeline.registry.served.card import WEIGHTS_FILE
from pipeline.registry.served.inference import Predictor
from pipeline.registry.trained_on import RECORD_FILE, trained_on, write_record
from pipeline.runs.console import Console
from pipeline.runs.mlflow_errors import mlflow_answers
from pipeline.runs.tracking import run_config
from pipeline.training.checkpoint_files import Checkpoint
from pipeline.training.initial_weights.report import INIT_TAGS
from pipeline.training.objectives import Objective, name_field, objective_class


def promote(
    mlflow_client: Any,
    run_id: str,
    console: Console,
    *,
    name: str | None = None,
    alias: str | None = None,
    split: str = "validation",
    min_gain: float | None = None,
    alpha: float | None = None,
    shards: str | None = None,
) -> dict[str, Any]:
    """Register a run's best checkpoint and move the alias to it, if it beats the alias's model.

    Both models are evaluated now, on the same samples of the run's shard set: those on which
    neither was trained. A paired test decides (`pipeline.registry.gate`).

    Args:
        mlflow_client: The client of the tracking server, from `pipeline.runs.tracking.client`.
        run_id: An MLflow run of `perceiver train`, or a trial or study of `perceiver tune`. A study
            means its best trial.
        console: The console, which shows notes.
        name: The name of the registered model. The default is in the run's configuration.
        alias: The alias. The default is in the run's configuration.
        split: The split that decides. The shard set must have it.
        min_gain: The smallest gain that passes. The default is in the run's configuration.
        alpha: The largest p-value that passes. The default is in the run's configuration.
        shards: The whole address of the run's shard set, if it has a password or a signature. Runs
            do not store these.

    Returns:
        `model_uri`, `version`, the selection metric (`accuracy` for classifiers) on `samples` of
        `split`, `left_out` (the number of samples not used), the champion's metric
        (`champion_accuracy`; None if there was no champion), `wins`, `losses` and `p_value` (None
        if nothing was tested), `run_id`, and `skipped` (whether this run already is the alias's
        model).

    Raises:
        UserError: There is no such run, it has no checkpoint, the two models cannot be compared, a
            package that the model needs is not installed, or MLflow fails.
        GateRefusedError: The model does not beat the champion.
    """
    config = run_config(mlflow_client, run_id)
    with mlflow_answers(f"run {run_id}"):
        run = mlflow_client.get_run(run_id)
    if (best := run.data.tags.get("perceiver.best_trial")) not in (None, run_id):
        return promote(
            mlflow_client, best, console, name=name, alias=alias, split=split,
            min_gain=min_gain, alpha=alpha, shards=shards,
        )  # fmt: skip
    name, alias = name or config.registry.model_name, alias or config.registry.alias
    check_names(name, alias)
    rules = _rules(config.registry, min_gain, alpha)
    checkpoint = checkpoint_of(run)
    weights_sha256 = checkpoint.model_sha256()
    champion = _champion(mlflow_client, name, alias)
    if champion is not None:
        mark_promoted(mlflow_client, champion, alias, console)
        # A run that was continued has other weights than those registered.
        is_same = champion.run_id == run_id and (
            weights_of(mlflow_client, champion) == weights_sha256
        )
        if is_same:
            kind = objective_class(config.trained_for.kind if config.trained_for else None)
            return _result(kind, name, alias, champion.version, run_id, champion.tags, skipped=True)
    check_backbone_is_own(config, run_id)
    model_requirements()  # refuse before the evaluation, which takes long
    candidate = _candidate(run, config, checkpoint, split, shards)
    console.notice(f"evaluating run {run_id} on {split} of {candidate.shard_set.location}")
    version = unfinished_version(mlflow_client, name, alias, run_id, weights_sha256)
    begun = False
    while True:
        try:
            verdict = _judged(mlflow_client, candidate, champion, rules, console)
        except GateRefusedError:
            if version is not None:
                discard(mlflow_client, version)
            raise
        tags = {
            RUN_TAG: run_id,
            WEIGHTS_TAG: weights_sha256,
            ALIAS_TAG: alias,
            "perceiver.shards_digest": candidate.shard_set.digest,
            "perceiver.split": split,
            **_measured(verdict, candidate.objective.sample_metric),
            **{tag: run.data.tags[tag] for tag in INIT_TAGS if tag in run.data.tags},
        }
        if champion is not None:
            tags[BEFORE_TAG] = str(champion.version)
        if version is None:
            version = _register(run, config, candidate, checkpoint, name, tags)
        else:
            renew_tags(mlflow_client, version, tags)
        if not begun:
            wait_for_earlier(mlflow_client, version, alias, console)
            begun = True
        now = _champion(mlflow_client, name, alias)
        if _number(now) == _number(champion):
            break
        console.notice(f"{name}@{alias} was moved by another promotion; judging again")
        champion = now
    move_alias(mlflow_client, name, alias, str(version.version))
    mark_promoted(mlflow_client, version, alias, console)
    kind = type(candidate.objective)
    return _result(kind, name, alias, version.version, run_id, tags, skipped=False)


def report(result: dict[str, Any], console: Console) -> None:
    """Show the user what `promote` returned."""
    if result["skipped"]:
        console.say(
            f"{result['model_uri']} is this run's model already (version {result['version']})"
        )
        return
    metric = objective_class(result.get("objective")).sample_metric
    before = result[f"champion_{metric}"]
    against = "there was no champion" if before is None else f"the champion before had {before:.4f}"
    if result["p_value"] is not None:
        against += (
            f" ({result['wins']} samples won, {result['losses']} lost, p = {result['p_value']:.3g})"
        )
    console.say(
        f"{result['model_uri']} is now version {result['version']}: {metric} "
        f"{result[metric]:.4f} on {result['samples']} samples of the {result['split']} split; "
        f"{against}"
    )


def _rules(registry: RegistryConfig, min_gain: float | None, alpha: float | None) -> RegistryConfig:
    given = {"min_gain": min_gain, "alpha": alpha}
    changes = {key: value for key, value in given.items() if value is not None}
    try:
        return RegistryConfig.model_validate({**registry.model_dump(), **changes})
    except ValueError:
        text = ", ".join(f"{key}={value}" for key, value in changes.items())
        raise UserError(f"{text}: 0 <= min_gain < 1 and 0 < alpha <= 1 are needed") from None


def _candidate(
    run: Any, config: Config, checkpoint: Checkpoint, split: str, shards: str | None
) -> Candidate:
    """Return a run's model and the set that it was trained on."""
    shard_set = own_set(run, config, shards)
    card = card_of(config, shard_set)
    weights = checkpoint.load_model()
    return Candidate(
        name=f"run {run.info.run_id}",
        predictor=Predictor(card, weights),
        record=trained_on(shard_set, card.media),
        shard_set=shard_set,
        split=split,
        max_bad_fraction=config.data.max_bad_fraction,
        verify_samples=config.data.verify_samples,
        skip_corrupt=config.data.corrupt_samples == "skip",
    )


def _judged(
    mlflow_client: Any,
    candidate: Candidate,
    champion: Any | None,
    rules: RegistryConfig,
    console: Console,
) -> Verdict:
    if champion is None:
        return judge(candidate, None, rules, console)
    own = backbone_of(candidate.objective.model_config)  # of the user's own training
    loaded = load_registered(mlflow_client, champion, [own.module] if own else ())
    if loaded.record is None:
        loaded = replace(loaded, record=record_of(mlflow_client, champion, candidate, loaded))
    console.notice(f"evaluating {loaded.name} on the same samples")
    return judge(candidate, loaded, rules, console)


def _number(version: Any | None) -> str | None:
    return None if version is None else str(version.version)


def _measured(verdict: Verdict, metric: str) -> dict[str, str]:
    """Return a verdict as tags of a version."""
    values: dict[str, Any] = {
        metric: verdict.value,
        "samples": verdict.samples,
        "left_out": verdict.left_out,
    }
    if verdict.champion_value is not None:
        values[f"champion_{metric}"] = verdict.champion_value
    if (comparison := verdict.comparison) is not None:
        values |= {"wins": comparison.wins, "losses": comparison.losses}
        values["p_value"] = comparison.p_value
    return {f"perceiver.{key}": repr(value) for key, value in values.items()}


def _register(
    run: Any,
    config: Config,
    candidate: Candidate,
    checkpoint: Checkpoint,
    name: str,
    tags: dict[str, str],
) -> Any:
    """Log the model to its run, register it as a version, and return the version."""
    import mlflow
    from mlflow.models import Model

    with (
        mlflow_answers(f"logging the model of run {run.info.run_id}"),
        tempfile.TemporaryDirectory(prefix="perceiver-model-") as folder,
    ):
        mlflow.set_experiment(experiment_id=run.info.experiment_id)
        record_path = Path(folder) / RECORD_FILE
        card = candidate.predictor.card
        weights_file = Path(folder) / WEIGHTS_FILE
        checkpoint.export_model(weights_file)
        made = package(card, Path(folder), weights_file, config.data)
        write_record(candidate.record.digests, record_path)
        made["artifacts"] |= {"trained_on": record_path.as_uri()}
        info = Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.pyfunc,
            run_id=run.info.run_id,
            **made,
        )
    return new_version(name, info.model_uri, tags)


def _result(
    objective: type[Objective],
    name: str,
    alias: str,
    version: Any,
    run_id: str,
    tags: dict[str, str],
    *,
    skipped: bool,
) -> dict[str, Any]:
    def number(key: str, kind: type[int] | type[float] = float) -> float | None:
        try:
            value = kind(tags[f"perceiver.{key}"])
        except (KeyError, ValueError):  # a version that another program has made
            return None
        return value if math.isfinite(value) else None

    return {
        "model_uri": f"models:/{name}@{alias}",
        "version": str(version),
        objective.sample_metric: number(objective.sample_metric),
        f"champion_{objective.sample_metric}": number(f"champion_{objective.sample_metric}"),
        "samples": number("samples", int),
        "left_out": number("left_out", int),
        "wins": number("wins", int),
        "losses": number("losses", int),
        "p_value": number("p_value"),
        "split": tags.get("perceiver.split"),
        "run_id": run_id,
        "skipped": skipped,
        **name_field(objective),
    }
