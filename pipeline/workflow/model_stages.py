"""The stages from raw media to a registered model, each a verb with its own proof of being done."""

from collections.abc import Callable
from typing import Any

from pipeline.config.folders import folder_at
from pipeline.config.load import with_values
from pipeline.config.study import EPOCHS
from pipeline.config.tree import Config
from pipeline.evaluation.best import report_best
from pipeline.evaluation.console_report import report as report_evaluation
from pipeline.evaluation.evaluate import evaluate
from pipeline.preprocess.preprocess import preprocess
from pipeline.preprocess.preprocess import report as report_preprocess
from pipeline.registry.promote import promote
from pipeline.registry.promote import report as report_promote
from pipeline.registry.registration import champion_of
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.runs.mlflow_errors import is_missing, mlflow_answers
from pipeline.runs.strict_json import to_json
from pipeline.training.checkpoints import read_checkpoint
from pipeline.training.objectives import objective_class
from pipeline.training.result import report as report_train
from pipeline.training.train import train
from pipeline.tuning.report import report as report_tune
from pipeline.tuning.tune import tune
from pipeline.workflow.stages import Results, Stage, recorded

Chosen = Callable[[Results], dict[str, Any]]
"""Returns the model to go on with: its `run_id` and its `checkpoint`."""
SHORT = ("model", "run_id", "digest", "split", "samples", "bad_samples", "metrics", "logged")
"""What the record of an evaluation keeps; MLflow has the whole report."""


def preprocess_stage(config: Config, console: Console, *, fresh: bool = False) -> Stage:
    """Return the stage that makes the shard set."""

    def outcome(result: dict[str, Any]) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in result["counts"].items())
        bad = f"; {result['num_quarantined']} bad files" if result["num_quarantined"] else ""
        return f"{counts}{bad}; digest {result['digest'][:12]}"

    return Stage(
        "preprocess",
        lambda _: preprocess(config, console, fresh=fresh),
        outcome,
        report_preprocess,
        uses_ray=True,
    )


def tune_stage(config: Config, console: Console, *, fresh: bool = False) -> Stage:
    """Return the stage that runs the study."""

    def outcome(result: dict[str, Any]) -> str:
        best, metric = result["best"], objective_class(result.get("objective")).selection
        failed = f", {len(result['failed'])} failed" if result["failed"] else ""
        trials = f"{len(result['trials'])} trials{failed}"
        return f"{trials}; trial {best['id']} has the best {metric}: {best[metric]:.4f}"

    return Stage(
        "tune",
        lambda _: tune(config, console, fresh=fresh),
        outcome,
        report_tune,
        uses_ray=True,
    )


def train_stage(config: Config, console: Console, *, fresh: bool = False) -> Stage:
    """Return the stage that trains the configuration's own model."""
    return Stage(
        "train",
        lambda _: train(config, console, fresh=fresh, report_best=report_best),
        _trained(config),
        report_train,
        uses_ray=config.cluster.min_workers > 0,
    )


def best_stage(config: Config, console: Console, *, fresh: bool = False) -> Stage:
    """Return the stage that trains the settings of the study's best trial for all epochs."""

    def work(results: Results) -> dict[str, Any]:
        long = best_config(config, results["tune"]["best"])
        console.notice(
            f"training the best trial's settings for {long.training.epochs} epochs in {long.folder}"
        )
        return train(long, console, fresh=fresh, report_best=report_best)

    uses_ray = config.cluster.min_workers > 0
    return Stage("train", work, _trained(config), report_train, uses_ray=uses_ray)


def best_config(config: Config, best: dict[str, Any]) -> Config:
    """Return the configuration of the long training of a study's best trial.

    It has a folder of its own, named for the trial, because a later study may have another best
    one.
    """
    return with_values(
        config,
        {
            "seed": best.get("seed", config.seed),  # of studies with several seeds
            **best["params"],
            "name": f"{config.name}-trial-{int(best['id'])}",
            "shards": config.shards_folder,
            "tracking.experiment": config.tracking.experiment or config.name,
            "study": None,
        },
    )


def trains_the_best(config: Config) -> bool:
    """Return whether the trials of the study are shorter than a training.

    A trial of a population has had several settings, so none of them can be trained for longer.
    """
    study = config.study
    return (
        study is not None
        and study.epochs is not None
        and study.epochs < config.training.epochs
        and EPOCHS not in study.space
        and study.scheduler != "pbt"
    )


def chosen_model(results: Results) -> dict[str, Any]:
    """Return the model to go on with: the better one of the best trial and its long training."""
    study, training = results.get("tune"), results.get("train")
    if study is None or training is None:
        found = training if study is None else study["best"]
        assert found is not None  # one of the two stages has run
        return found
    objective = objective_class(study.get("objective"))
    before, after = study["best"][objective.selection], training["score"]
    is_better = after >= before if objective.higher_is_better else after <= before
    return training if is_better else study["best"]


def evaluate_stage(
    config: Config, console: Console, chosen: Chosen, *, fresh: bool = False
) -> Stage:
    """Return the stage that evaluates the model, on the test split if the set has one."""

    def work(results: Results) -> dict[str, Any]:
        model, shards = chosen(results), results["preprocess"]
        split = "test" if shards["counts"].get("test") else "validation"
        fingerprint = {**_weights(model), "digest": shards["digest"], "split": split}

        def evaluated() -> dict[str, Any]:
            result = evaluate(
                client(config.tracking_uri),
                model["run_id"],
                console,
                split=split,
                overrides=_cluster_of(config),
                output=config.output,
            )
            report_evaluation(result, console)
            kept = {key: result[key] for key in SHORT}
            return {**kept, **{k: result[k] for k in ("objective",) if k in result}}

        return recorded(config, "evaluate", fingerprint, evaluated, lambda _: True, fresh=fresh)

    def outcome(result: dict[str, Any]) -> str:
        metric = objective_class(result.get("objective")).selection
        value = result["metrics"].get(metric)
        text = "" if value is None else f"{metric} {value:.4f} on "
        return f"{text}{result['samples']} samples of {result['split']}"

    uses_ray = config.cluster.min_workers > 0
    return Stage("evaluate", work, outcome, uses_ray=uses_ray)


def promote_stage(config: Config, console: Console, chosen: Chosen) -> Stage:
    """Return the stage that registers the model and moves the alias.

    A promotion is done once. If the alias has moved on since, it stays where it is.
    """
    rules = config.registry

    def work(results: Results) -> dict[str, Any]:
        mlflow_client = client(config.tracking_uri)
        model = chosen(results)
        fingerprint = {**_weights(model), **rules.model_dump(mode="json")}

        def promoted() -> dict[str, Any]:
            return promote(
                mlflow_client,
                model["run_id"],
                console,
                name=rules.model_name,
                alias=rules.alias,
                min_gain=rules.min_gain,
                alpha=rules.alpha,
            )

        def is_registered(made: dict[str, Any]) -> bool:
            version = champion_of(mlflow_client, rules.model_name, rules.alias)
            if version is None:
                return False
            if str(version.version) != made["version"]:
                if not _exists(mlflow_client, rules.model_name, made["version"]):
                    return False
                console.notice(
                    f"{made['model_uri']} was version {made['version']} and is version "
                    f"{version.version} now; 'perceiver promote {model['run_id']}' judges again"
                )
            return True

        return recorded(config, "promote", fingerprint, promoted, is_registered)

    def outcome(result: dict[str, Any]) -> str:
        metric = objective_class(result.get("objective")).sample_metric
        value = result[metric]
        text = "" if value is None else f": {metric} {value:.4f}"
        return f"{result['model_uri']}, version {result['version']}{text}"

    return Stage("promote", work, outcome, report_promote)


def _trained(config: Config) -> Callable[[dict[str, Any]], str]:
    def outcome(result: dict[str, Any]) -> str:
        assert config.trained_for is not None  # it was trained for it
        metric = objective_class(config.trained_for.kind).selection
        return f"{metric} {result['score']:.4f}, {result['epochs']} epochs"

    return outcome


def _weights(model: dict[str, Any]) -> dict[str, Any]:
    checkpoint = read_checkpoint(folder_at(model["checkpoint"]))
    return {"run_id": model["run_id"], "weights": checkpoint.model_sha256()}


def _exists(mlflow_client: Any, name: str, version: str) -> bool:
    from mlflow.exceptions import MlflowException

    with mlflow_answers(f"{name} version {version}"):
        try:
            mlflow_client.get_model_version(name, version)
        except MlflowException as error:
            if not is_missing(error):
                raise
            return False
    return True


def _cluster_of(config: Config) -> list[str]:
    """Return the overrides that evaluate on the machines of this configuration.

    A run knows those that it was trained on, which for a trial are a part of them.
    """
    cluster = config.tree()["cluster"]
    return [f"cluster.{name}={to_json(value)}" for name, value in cluster.items()]
