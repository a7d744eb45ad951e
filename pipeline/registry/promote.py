"""`perceiver promote`: register a run's best model if it beats the champion."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from perceiver_model.adapters.backbone_config import backbone_of
from pipeline.config.tree import Config, RegistryConfig
from pipeline.errors import GateRefusedError, UserError
from pipeline.registry.backbone_code import check_backbone_is_own
from pipeline.registry.candidates import candidate_of
from pipeline.registry.champions import load_registered, record_of, weights_of
from pipeline.registry.judged_models import Candidate, Verdict
from pipeline.registry.judging import judge
from pipeline.registry.model_card import version_card
from pipeline.registry.onnx_file import ONNX_FOLDER, check_onnx, write_onnx
from pipeline.registry.package import model_requirements, package
from pipeline.registry.promotion_result import measured, report, result_of
from pipeline.registry.registration import (
    ALIAS_TAG,
    BEFORE_TAG,
    JUDGED_TAG,
    RUN_TAG,
    SET_TAG,
    WEIGHTS_TAG,
    check_names,
    describe,
    discard,
    mark_promoted,
    move_alias,
    new_version,
    renew_tags,
    unfinished_version,
    wait_for_earlier,
)
from pipeline.registry.registration import champion_of as _champion
from pipeline.registry.run_model import checkpoint_of
from pipeline.registry.served.card import WEIGHTS_FILE
from pipeline.registry.trained_on import RECORD_FILE, write_record
from pipeline.runs.console import Console
from pipeline.runs.mlflow_errors import mlflow_answers
from pipeline.runs.tracking import run_config
from pipeline.training.checkpoint_files import Checkpoint
from pipeline.training.initial_weights.report import INIT_TAGS
from pipeline.training.objectives import objective_class

CARD_TEXT = "model_card.md"
LICENCE_TAG = "perceiver.licence"

__all__ = ["promote", "report"]


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
    judged_on: str | None = None,
    set_digest: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Register a run's best checkpoint and move the alias to it, if it beats the alias's model.

    Both models are evaluated now, on the same samples of a shard set: those on which neither was
    trained. A paired test decides (`pipeline.registry.gate`).

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
        judged_on: The folder or URL of the set that judges; None takes the run's own.
        set_digest: The first digits of the digest of the only set that may judge. The default is in
            the run's configuration.
        dry_run: Whether to judge and to write nothing: no version, no tag, no alias.

    Returns:
        `model_uri`, `version` (None after a dry run), the selection metric (`accuracy` for
        classifiers) on `samples` of `split`, `left_out` (the number of samples not used), the
        champion's metric (`champion_accuracy`; None if there was no champion), `wins`, `losses` and
        `p_value` (None if nothing was tested), `set_digest` (of the set that judged),
        `worse_slices` (the parts on which it is worse, with the fields of
        `pipeline.registry.slices.Slice`), `run_id`, and `skipped` (whether this run already is the
        alias's model).

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
            min_gain=min_gain, alpha=alpha, shards=shards, judged_on=judged_on,
            set_digest=set_digest, dry_run=dry_run,
        )  # fmt: skip
    name, alias = name or config.registry.model_name, alias or config.registry.alias
    check_names(name, alias)
    rules = _rules(config.registry, min_gain, alpha, set_digest)
    checkpoint = checkpoint_of(run)
    weights_sha256 = checkpoint.model_sha256()
    champion = _champion(mlflow_client, name, alias)
    if champion is not None:
        if not dry_run:
            mark_promoted(mlflow_client, champion, alias, console)
        # A run that was continued has other weights than those registered.
        is_same = champion.run_id == run_id and (
            weights_of(mlflow_client, champion) == weights_sha256
        )
        if is_same:
            kind = objective_class(config.trained_for.kind if config.trained_for else None)
            return result_of(
                kind, name, alias, champion.version, run_id, champion.tags, skipped=True
            )
    check_backbone_is_own(config, run_id)
    model_requirements()  # refuse before the evaluation, which takes long
    candidate = candidate_of(
        run,
        config,
        checkpoint,
        split,
        shards=shards,
        judged_on=judged_on,
        set_digest=rules.set_digest,
    )
    if config.registry.onnx:
        check_onnx(candidate.predictor.card)
    console.notice(f"evaluating run {run_id} on {split} of {candidate.shard_set.location}")
    metric, kind = candidate.objective.sample_metric, type(candidate.objective)
    if dry_run:
        verdict = _judged(mlflow_client, candidate, champion, rules, console)
        found = {
            **measured(verdict, metric),
            SET_TAG: candidate.trained_set.digest,
            JUDGED_TAG: candidate.shard_set.digest,
            "perceiver.split": split,
        }
        return result_of(kind, name, alias, None, run_id, found, skipped=False, worse=verdict.worse)
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
            SET_TAG: candidate.trained_set.digest,
            JUDGED_TAG: candidate.shard_set.digest,
            "perceiver.split": split,
            **measured(verdict, metric),
            **{tag: run.data.tags[tag] for tag in INIT_TAGS if tag in run.data.tags},
            **({LICENCE_TAG: licence} if (licence := config.registry.licence) else {}),
        }
        if champion is not None:
            tags[BEFORE_TAG] = str(champion.version)
        if version is None:
            version = _register(run, config, candidate, verdict, checkpoint, name, tags)
        else:
            renew_tags(mlflow_client, version, tags)
        about = version_card(config, candidate, verdict, run_id, name, short=True)
        describe(mlflow_client, version, about)
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
    return result_of(
        kind, name, alias, version.version, run_id, tags, skipped=False, worse=verdict.worse
    )


def _rules(
    registry: RegistryConfig,
    min_gain: float | None,
    alpha: float | None,
    set_digest: str | None,
) -> RegistryConfig:
    given = {"min_gain": min_gain, "alpha": alpha, "set_digest": set_digest}
    changes = {key: value for key, value in given.items() if value is not None}
    try:
        return RegistryConfig.model_validate({**registry.model_dump(), **changes})
    except ValueError:
        text = ", ".join(f"{key}={value}" for key, value in changes.items())
        raise UserError(
            f"{text}: 0 <= min_gain < 1 and 0 < alpha <= 1 are needed, and of a set_digest 8 to 64 "
            "hexadecimal digits"
        ) from None


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


def _register(
    run: Any,
    config: Config,
    candidate: Candidate,
    verdict: Verdict,
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
        about = Path(folder) / CARD_TEXT
        about.write_text(
            version_card(config, candidate, verdict, run.info.run_id, name, short=False), "utf-8"
        )
        made["artifacts"] |= {"trained_on": record_path.as_uri(), "model_card": about.as_uri()}
        if config.registry.onnx:
            onnx = Path(folder) / ONNX_FOLDER
            onnx.mkdir()
            write_onnx(card, candidate.predictor.model.state_dict(), onnx)
            made["artifacts"]["onnx"] = onnx.as_uri()
        info = Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.pyfunc,
            run_id=run.info.run_id,
            **made,
        )
    return new_version(name, info.model_uri, tags)
