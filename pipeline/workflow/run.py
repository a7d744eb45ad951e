"""`perceiver run`: from raw media to an alias, with one command that goes on where it stopped."""

from typing import Any

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.registry.package import model_requirements
from pipeline.registry.registration import check_names
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.workflow.model_stages import (
    best_stage,
    chosen_model,
    evaluate_stage,
    preprocess_stage,
    promote_stage,
    train_stage,
    trains_the_best,
    tune_stage,
)
from pipeline.workflow.stages import Stage, run_stages, show_stages


def run(
    config: Config, console: Console, *, until: str | None = None, fresh: bool = False
) -> dict[str, Any]:
    """Do every stage of a configuration that is not yet done.

    Args:
        config: The configuration.
        console: The console, which shows the progress.
        until: The last stage to do; None does all.
        fresh: Whether to replace the earlier results of the stages. The registered model stays, and
            the new one must beat it.

    Returns:
        `stages` (`name`, `seconds` of its last run, `skipped` and `outcome`), and of the stages
        that were asked for: `shards`, `digest`, `counts`, `run_id`, `checkpoint`, `split`,
        `samples`, `metrics`, `model_uri` and `version`.

    Raises:
        UserError: The configuration lacks what a stage needs, or has no such stage, or a stage
            refuses its input.
        GateRefusedError: The model does not beat the champion. Everything before it is done.
    """
    stages = _stages(config, console, fresh=fresh)
    names = [stage.name for stage in stages]
    if until is not None and until not in names:
        raise UserError(
            f"--until {until}: {config.name} has no such stage; its stages are {', '.join(names)}"
        )
    wanted = stages[: names.index(until) + 1] if until else stages
    _refuse_early(config, [stage.name for stage in wanted])
    results, done = run_stages(config, wanted, console)
    found: dict[str, Any] = {}
    for stage, keys in _KEPT.items():
        found |= {key: results[stage][key] for key in keys if key in results.get(stage, {})}
    if "tune" in results or "train" in results:
        model = chosen_model(results)
        found |= {"run_id": model["run_id"], "checkpoint": model["checkpoint"]}
    return {**found, "stages": done}


def report(result: dict[str, Any], console: Console) -> None:
    """Show a person what `run` returned."""
    show_stages(result["stages"], console)
    if "model_uri" in result:
        console.say(f"{result['model_uri']} answers: perceiver predict {result['model_uri']} FILE")


_KEPT = {
    "preprocess": ("shards", "digest", "counts", "num_quarantined"),
    "evaluate": ("split", "samples", "metrics"),
    "promote": ("model_uri", "version"),
}


def _stages(config: Config, console: Console, *, fresh: bool) -> list[Stage]:
    stages = [preprocess_stage(config, console, fresh=fresh)]
    if config.study is None:
        stages.append(train_stage(config, console, fresh=fresh))
    else:
        stages.append(tune_stage(config, console, fresh=fresh))
        if trains_the_best(config):
            stages.append(best_stage(config, console, fresh=fresh))
    stages.append(evaluate_stage(config, console, chosen_model, fresh=fresh))
    stages.append(promote_stage(config, console, chosen_model))
    return stages


def _refuse_early(config: Config, names: list[str]) -> None:
    """Refuse before the first stage what a later one would refuse after hours.

    Raises:
        UserError: The text says what is missing.
    """
    if len(names) > 1:
        client(config.tracking_uri)
    if not {"tune", "evaluate", "promote"} & {*names}:
        return
    if not config.data.validation and not config.data.columns.split:
        raise UserError(
            "data.validation: models are compared on a validation split, and there is none; set "
            "it to a share such as 0.1, or to a folder, or stop before with --until train"
        )
    if "promote" in names:
        check_names(config.registry.model_name, config.registry.alias)
        model_requirements()
