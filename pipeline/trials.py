"""The trials of a study: what each is started with, does, shows and leaves behind."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoints import best_checkpoint
from pipeline.config import Config
from pipeline.config_study import StudyConfig
from pipeline.console import Bar, Console
from pipeline.load_config import with_values
from pipeline.stages import write_json
from pipeline.tracking import RunRef, client, open_run
from pipeline.train import log_best, run_training, training_result
from shards import ShardSet

TRIAL_FILE = "trial.json"


def study_base(config: Config, study: StudyConfig) -> Config:
    """The configuration that every trial starts from: the study's workers and epochs."""
    values: dict[str, Any] = {"cluster.num_workers": study.num_workers}
    if study.epochs is not None:
        values["training.epochs"] = study.epochs
    return with_values(config, values)


def param_space(study: StudyConfig) -> dict[str, Any]:
    """Ray Tune's search space."""
    from ray import tune as ray_tune

    space: dict[str, Any] = {}
    for path, field in study.space.items():
        if field.choice is not None:
            values = list(field.choice)
            grid = study.search == "grid"
            space[path] = ray_tune.grid_search(values) if grid else ray_tune.choice(values)
        else:
            draw = ray_tune.uniform if field.uniform else ray_tune.loguniform
            space[path] = draw(*field.bounds)
    return space


@dataclass(frozen=True)
class Trial:
    """What Ray Tune calls for each trial; runs in a process of its own and launches the workers."""

    base: str
    folder: str
    parent: RunRef

    def __call__(self, params: dict[str, Any]) -> None:
        from ray import tune as ray_tune
        from ray.tune.integration.ray_train import TuneReportCallback

        config = with_values(Config.model_validate_json(self.base), params)
        folder = Path(self.folder) / "trials" / ray_tune.get_context().get_trial_id()
        folder.mkdir(parents=True, exist_ok=True)
        shard_set = ShardSet.open(config.shards_folder)
        noted = folder / TRIAL_FILE
        earlier = json.loads(noted.read_text("utf-8")) if noted.is_file() else {}
        with open_run(
            config,
            kind="trial",
            shard_set=shard_set,
            run_id=earlier.get("run_id"),
            parent_run_id=self.parent.run_id,
        ) as run:
            write_json(noted, {"params": params, "run_id": run.run_id})
            run_training(config, folder, run, callbacks=[TuneReportCallback()])


def collect_trials(base: Config, folder: Path, shard_set: ShardSet) -> list[dict[str, Any]]:
    """Every trial that evaluated at least once, best first."""
    trials = []
    for noted in sorted(folder.glob(f"trials/*/{TRIAL_FILE}")):
        best = best_checkpoint(noted.parent / "checkpoints")
        if best is None or best.state.score is None:
            continue
        trial = json.loads(noted.read_text("utf-8"))
        config = with_values(base, trial["params"])
        run = RunRef(config.tracking_uri, trial["run_id"])
        result = training_result(config, noted.parent, run, shard_set)
        log_best(run, result)
        trials.append(
            {
                "id": noted.parent.name,
                "params": trial["params"],
                "accuracy": result["score"],
                "forward_flops": result["forward_flops"],
                "parameters": result["parameters"],
                "epochs": result["epochs"],
                "stopped_early": result["epochs"] < config.training.epochs,
                "run_id": trial["run_id"],
                "checkpoint": result["checkpoint"],
            }
        )
    # Of equals, the cheaper.
    return sorted(trials, key=lambda trial: (-trial["accuracy"], trial["forward_flops"]))


def close_trials(folder: Path, parent: RunRef, ended: dict[str, str | None]) -> None:
    """End every trial's run as the trial ended.

    A trial that the scheduler stops is killed and cannot tell that this was meant; one that was
    cut off with the study is not among ``ended``.
    """
    mlflow_client = client(parent.tracking_uri)
    for noted in folder.glob(f"trials/*/{TRIAL_FILE}"):
        trial, run_id = noted.parent.name, json.loads(noted.read_text("utf-8"))["run_id"]
        status = "KILLED" if trial not in ended else "FAILED" if ended[trial] else "FINISHED"
        if mlflow_client.get_run(run_id).info.status != "FINISHED":
            mlflow_client.set_terminated(run_id, status)


def progress_callback(bar: Bar, num_trials: int, epochs: int, console: Console) -> Any:
    """Ray Tune's callback that moves the bar and tells of each epoch."""
    from ray.tune import Callback

    class Progress(Callback):
        def __init__(self) -> None:
            self.epochs: dict[str, int] = {}
            self.done: set[str] = set()

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if "score" not in result:
                return
            epoch = self.epochs[trial.trial_id] = result["epoch"]
            values = ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in trial.config.items())
            console.notice(f"{values}: epoch {epoch}/{epochs}, val_accuracy {result['score']:.4f}")
            self._show()

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.done.add(trial.trial_id)
            self._show()

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.on_trial_complete(iteration, trials, trial)

        def _show(self) -> None:
            running = sum(e for name, e in self.epochs.items() if name not in self.done)
            bar.update(len(self.done) * epochs + running, f"trial {len(self.done)}/{num_trials}")

        # Ray Tune pickles its callbacks with the study's state; a terminal cannot be.
        def __reduce__(self) -> Any:
            return Callback, ()

    return Progress()
