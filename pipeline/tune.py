"""``perceiver tune``: a Ray Tune study, each trial a training with Ray Train and DeepSpeed."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError
from cluster.ray_session import ray_session, require_resources
from pipeline.causes import expected_errors
from pipeline.checkpoints import read_checkpoint
from pipeline.config import Config
from pipeline.config_study import StudyConfig
from pipeline.console import Console
from pipeline.errors import UserError
from pipeline.plots import plot_study
from pipeline.stages import StageRecord, read_stage, write_json, write_stage
from pipeline.tracking import RunRef, client, open_run
from pipeline.train import open_shards, training_fingerprint
from pipeline.trials import (
    Trial,
    close_trials,
    collect_trials,
    param_space,
    progress_callback,
    study_base,
)
from shards.files import remove_tree

STAGE = "tune"
RESULTS_FILE = "study.json"
PLOT_FILE = "accuracy_vs_flops.png"


def tune(config: Config, console: Console, *, fresh: bool = False) -> dict[str, Any]:
    """Run a study, go on with an interrupted one, or find that it is done.

    Trials are ranked by their best accuracy on the validation split, and by nothing else.

    Returns:
        ``run_id`` (the parent run), ``best`` (the best trial), ``trials`` (by rank; each with
        ``params``, ``accuracy``, ``forward_flops``, ``parameters``, ``epochs``, ``stopped_early``,
        ``run_id``, ``checkpoint``), ``failed`` (trials that ended with an error), ``plot``,
        ``seconds``, ``skipped``.

    Raises:
        UserError: no study section, no validation split, or no trial succeeded.
        ClusterError: the machines cannot hold one trial.
    """
    study = config.study
    if study is None:
        raise UserError(f"{config.name}: has no section 'study'; say there what to search")
    shard_set = open_shards(config)
    if config.data.validation is None or "validation" not in shard_set.manifest.counts:
        raise UserError(
            "data.validation: a study ranks its trials on a validation split and there is none; "
            "set data.validation to a share such as 0.1, or to a folder, and preprocess again"
        )
    base = study_base(config, study)
    fingerprint = {
        **training_fingerprint(base, shard_set),
        **{f"study.{key}": value for key, value in study.model_dump(mode="json").items()},
    }
    folder = config.folder / STAGE
    record = None if fresh else read_stage(config.folder, STAGE)
    if record:
        record.refuse_changes(fingerprint, str(folder))
        if record.done:
            read_checkpoint(Path(record.result["best"]["checkpoint"])).check()
            return {**record.result, "seconds": record.seconds, "skipped": True}
    if fresh:
        remove_tree(folder)
    spent, started = record.seconds if record else 0.0, time.time()
    run_id = record.result.get("run_id") if record else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(ray_session(config.cluster.address))
        concurrent = _concurrent_trials(base, study)
        folder.mkdir(parents=True, exist_ok=True)
        run = stack.enter_context(
            open_run(config, kind="study", shard_set=shard_set, run_id=run_id)
        )
        begun = StageRecord(STAGE, fingerprint, {"run_id": run.run_id}, spent)
        write_stage(config.folder, begun)
        ended: dict[str, str | None] = {}
        try:
            ended = _run_study(base, study, folder, run, concurrent, console)
        finally:
            close_trials(folder, run, ended)
            begun = replace(begun, seconds=spent + time.time() - started)
            write_stage(config.folder, begun)
        errors = [error for error in ended.values() if error is not None]
        succeeded = {trial for trial, error in ended.items() if error is None}
        trials = [t for t in collect_trials(base, folder, shard_set) if t["id"] in succeeded]
        if not trials:
            first = f": {errors[0]}" if errors else ""
            raise UserError(f"none of the study's trials succeeded{first}")
        plot = folder / PLOT_FILE
        plot_study(trials, plot, config.name)
        result = {
            "run_id": run.run_id,
            "best": trials[0],
            "trials": trials,
            "failed": errors,
            "plot": str(plot),
        }
        write_json(folder / RESULTS_FILE, result)
        _log_study(run, folder, result)
    seconds = spent + time.time() - started
    write_stage(config.folder, StageRecord(STAGE, fingerprint, result, seconds, done=True))
    return {**result, "seconds": seconds, "skipped": False}


def report(result: dict[str, Any], console: Console) -> None:
    """Show a person what :func:`tune` returned."""
    fields = list(result["trials"][0]["params"])
    rows = []
    for rank, trial in enumerate(result["trials"], start=1):
        values = [trial["params"][field] for field in fields]
        epochs = f"{trial['epochs']}{' (stopped)' if trial['stopped_early'] else ''}"
        mflops = trial["forward_flops"] / 1e6
        rows.append((rank, *values, trial["accuracy"], mflops, trial["parameters"], epochs))
    columns = ("rank", *(f.rpartition(".")[2] for f in fields))
    console.table(
        "study, by accuracy on validation" + (" (done before: skipped)" * result["skipped"]),
        (*columns, "accuracy", "MFLOPs forward", "parameters", "epochs"),
        rows,
    )
    for error in result["failed"]:
        console.say(f"a trial failed: {error}")
    console.say(f"plot {result['plot']}; MLflow run {result['run_id']}")


def _concurrent_trials(base: Config, study: StudyConfig) -> int:
    """How many trials the cluster holds at once; more would wait for each other's workers."""
    import ray

    cluster = base.cluster
    require_resources(
        num_workers=study.num_workers,
        cpus_per_worker=cluster.cpus_per_worker,
        use_gpu=cluster.use_gpu,
        what="a trial",
        mend="lower study.num_workers or cluster.cpus_per_worker",
    )
    have = ray.cluster_resources()
    fit = int(have["CPU"] // (study.num_workers * cluster.cpus_per_worker))
    if cluster.use_gpu:
        fit = min(fit, int(have["GPU"] // study.num_workers))
    wanted = study.max_concurrent_trials
    if wanted is not None and wanted > fit:
        raise ClusterError(
            f"study.max_concurrent_trials={wanted}: the cluster holds {fit} trials of "
            f"{study.num_workers} workers at once; lower it or leave it out"
        )
    return wanted or fit


def _run_study(
    base: Config,
    study: StudyConfig,
    folder: Path,
    parent: RunRef,
    concurrent: int,
    console: Console,
) -> dict[str, str | None]:
    """Run or resume the trials; returns by trial what went wrong, None where nothing did."""
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler

    trial = Trial(base.model_dump_json(), str(folder), parent)

    def run_trial(params: dict[str, Any]) -> None:
        trial(params)

    # The workers reserve CPUs; the process that launches them needs none of its own, but Ray Tune
    # does not take a request for nothing at all.
    trainable = ray_tune.with_resources(run_trial, {"memory": 1})
    epochs = base.training.epochs
    path = folder / "ray" / "study"
    choices = [len(space.choice or ()) for space in study.space.values()]
    num_trials = study.num_trials
    if study.search == "grid":
        num_trials = 1
        for count in choices:
            num_trials *= count
    with console.bar("tune", num_trials * epochs, "epochs") as bar:
        callback = progress_callback(bar, num_trials, epochs, console)
        if ray_tune.Tuner.can_restore(str(path)):
            console.notice(f"resuming the study in {folder}")
            tuner = ray_tune.Tuner.restore(
                str(path), trainable=trainable, resume_unfinished=True, restart_errored=True
            )
        else:
            tuner = ray_tune.Tuner(
                trainable,
                param_space=param_space(study),
                tune_config=ray_tune.TuneConfig(
                    metric="score",
                    mode="max",
                    num_samples=1 if study.search == "grid" else study.num_trials,
                    max_concurrent_trials=concurrent,
                    scheduler=ASHAScheduler(
                        time_attr="epoch",
                        # One more than there are: a trial that reaches its end ends by itself.
                        max_t=epochs + 1,
                        grace_period=min(study.grace_epochs, epochs),
                        reduction_factor=study.reduction_factor,
                    ),
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=ray_tune.RunConfig(
                    name=path.name, storage_path=str(path.parent), callbacks=[callback], verbose=0
                ),
            )
        with expected_errors():
            results = tuner.fit()
    return {Path(result.path).name: _reason(result.error) for result in results}


def _reason(error: Any) -> str | None:
    if error is None:
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _log_study(run: RunRef, folder: Path, result: dict[str, Any]) -> None:
    mlflow_client = client(run.tracking_uri)
    mlflow_client.log_artifact(run.run_id, str(folder / RESULTS_FILE))
    mlflow_client.log_artifact(run.run_id, result["plot"])
    mlflow_client.log_metric(run.run_id, "best_score", result["best"]["accuracy"])
    mlflow_client.set_tag(run.run_id, "perceiver.best_trial", result["best"]["run_id"])
