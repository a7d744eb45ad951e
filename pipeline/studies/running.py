"""Runs the work of a study as Ray Tune trials.

Each trial starts a Ray task, which works. A function that Ray Tune calls must not ask Ray Train
for its rank, and a training without workers does.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.interrupts import restore_signal_handlers
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.runs.mlflow_client import client
from pipeline.runs.outbox import RunRef
from pipeline.runs.records import write_json
from pipeline.runs.tracking import begin_run, end_run, log_to_run, run_ref
from pipeline.runs.user_errors import find_user_error, raise_user_errors
from pipeline.training.launch import ray_storage
from shards import ShardSet


@dataclass(frozen=True)
class Trial:
    """One piece of work of a study.

    Attributes:
        label: The label of its arm.
        seed: Its seed.
        config: Its configuration as JSON.
        peer: The name of the peer; None trains the Perceiver.
        costs: Whether to measure the costs of its model, too.
        work: The name of the work that is done instead of a training; None trains.
        options: What the work gets beside the configuration.
        digest: The digest of all that determines its result.
        result_file: The file that gets its result.
        parent: The MLflow run of the study.
        tags: The tags of its own MLflow run.
    """

    label: str
    seed: int
    config: str
    peer: str | None
    costs: bool
    work: str | None
    options: dict[str, Any]
    digest: str
    result_file: str
    parent: RunRef
    tags: dict[str, str]

    def __call__(self) -> None:
        """Do the work, log it, and write the result file last."""
        config = Config.model_validate_json(self.config)
        config.folder.mkdir(parents=True, exist_ok=True)
        started = time.time()
        with (config.folder / "console.txt").open("a") as file:
            found = self._found(config, Console(file, file))
        if self.costs:
            from pipeline.studies.costs import image_costs

            classes = ShardSet.open(config.shards_folder).manifest.classes
            found |= image_costs(config, self.peer, len(classes))
        identity = {"label": self.label, "seed": self.seed, "digest": self.digest}
        seconds = {"seconds": time.time() - started}
        write_json(Path(self.result_file), {**seconds, **identity, **found})

    def _found(self, config: Config, console: Console) -> dict[str, Any]:
        from pipeline.studies.fitting import fit_peer
        from pipeline.studies.peer_training import train_peer
        from pipeline.studies.peers.estimators import ESTIMATORS
        from pipeline.studies.trainings import train_perceiver
        from pipeline.studies.works.table import WORKS

        if self.work is not None:
            work = WORKS[self.work]
            return self._run(work.run, work.has_run, config, console)
        if self.peer is None:
            return self._run(
                lambda *given: train_perceiver(given[0], given[2]), True, config, console
            )
        fit, name = (fit_peer if self.peer in ESTIMATORS else train_peer), self.peer
        return self._run(lambda *given: fit(given[0], name), False, config, console)

    def _run(
        self, work: Callable[..., dict[str, Any]], has_run: bool, config: Config, console: Console
    ) -> dict[str, Any]:
        """Do work in an MLflow run nested in the study's: the work's own training, or a new one."""
        if has_run:
            found = work(config, self.options, console)
            tags = {**self.tags, "mlflow.parentRunId": self.parent.run_id}
            run = run_ref(config, "train", found["run_id"])
            log_to_run(run, metrics=logged_metrics(found), tags=tags)
            return found
        run = begin_run(
            config,
            kind="trial",
            shard_set=ShardSet.open(config.shards_folder),
            parent_run_id=self.parent.run_id,
            tags={**self.tags, **({"perceiver.peer": self.peer} if self.peer else {})},
        )
        try:
            found = work(config, self.options, console)
        except BaseException:
            end_run(run, "FAILED")
            raise
        log_to_run(run, metrics=logged_metrics(found))
        end_run(run, "FINISHED")
        return {**found, "run_id": run.run_id}


def logged_metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a result by their names in MLflow, those of curves too."""
    numbers: dict[str, float] = {}
    for name, value in found.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"study_{name}"] = value
        elif isinstance(value, Mapping) and name != "also":
            curve = {at: each for at, each in value.items() if each is not None}
            numbers |= {f"study_{name}_at_{at}": float(each) for at, each in curve.items()}
    return numbers


def read_result(trial: Trial) -> dict[str, Any] | None:
    """Return the result of a trial, or None if it has not ended or was of another definition."""
    try:
        found: dict[str, Any] = json.loads(Path(trial.result_file).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if found.get("digest") == trial.digest else None


def run_trials(
    trials: Sequence[Trial],
    folder: Path,
    console: Console,
    resources: dict[str, int],
    concurrent: int,
) -> None:
    """Run trials.

    Args:
        trials: The trials.
        folder: The folder of the study.
        console: The console, which gets a line for each trial that ends.
        resources: What each trial takes of Ray's resources.
        concurrent: The number of trials that run at the same time.

    Raises:
        UserError: A trial failed. Those that ended keep their results.
        KeyboardInterrupt: The study was interrupted.
    """
    import ray
    from ray import tune

    def work(text: str) -> None:
        values = json.loads(text)
        Trial(**{**values, "parent": RunRef(**values["parent"])})()

    # DEFAULT: outside of the trial's placement group, which has no room for it.
    task = ray.remote(max_retries=0, scheduling_strategy="DEFAULT", **resources)(work)

    def run(params: dict[str, Any]) -> None:
        ray.get(task.remote(params["trial"]))

    by_text = {json.dumps(asdict(trial)): trial for trial in trials}
    with ray_storage(folder) as storage:
        tuner = tune.Tuner(
            # The task reserves what it needs. Ray Tune does not accept a request for nothing.
            tune.with_resources(run, {"memory": 1}),
            param_space={"trial": tune.grid_search(list(by_text))},
            tune_config=tune.TuneConfig(
                trial_dirname_creator=lambda trial: trial.trial_id,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=time.strftime("%Y%m%d-%H%M%S"),
                storage_path=str(storage),
                callbacks=[_progress(by_text, console)],
                verbose=0,
            ),
        )
        with raise_user_errors(), restore_signal_handlers():
            results = tuner.fit()
    for result in results:
        if result.error is not None:
            trial = by_text[result.config["trial"]]
            cause = find_user_error(result.error)
            lines = str(cause or result.error).strip().splitlines()
            raise UserError(
                f"{trial.label}, seed {trial.seed}: {lines[-1] if lines else 'failed'}; the same "
                "command goes on with what is left"
            )
    if any(read_result(trial) is None for trial in trials):
        raise KeyboardInterrupt  # on SIGINT, Ray Tune ends as if every trial had ended


def _progress(by_text: dict[str, Trial], console: Console) -> Any:
    from ray.tune import Callback

    class Progress(Callback):
        def __init__(self) -> None:
            self.done = 0

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            ours = by_text[trial.config["trial"]]
            found = read_result(ours)
            self.done += 1
            if found is not None:
                console.notice(
                    f"{self.done} of {len(by_text)}: {ours.label}, seed {ours.seed}: "
                    f"{_first(found)}in {found['seconds']:.0f} s"
                )

        # Ray Tune pickles its callbacks, but a terminal cannot be pickled.
        def __reduce__(self) -> Any:
            return Callback, ()

    return Progress()


def _first(found: Mapping[str, Any]) -> str:
    return f"accuracy {found['accuracy']:.4f} " if "accuracy" in found else ""


def parent_run(config: Config, shard_set: ShardSet, earlier: str | None) -> RunRef:
    """Begin the MLflow run of a study, or go on with an earlier one."""
    client(config.tracking_uri)
    return begin_run(config, kind="study", shard_set=shard_set, run_id=earlier)
