"""Run a study's trials under Ray Tune: start them, decide on them, and show progress."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.interrupts import restore_signal_handlers
from pipeline.config.conditions import Settings
from pipeline.config.scheduler import Takeover
from pipeline.runs.console import Console
from pipeline.runs.tracking import source_tags
from pipeline.runs.user_errors import raise_user_errors
from pipeline.training.launch import ray_storage
from pipeline.tuning.decisions import Decisions
from pipeline.tuning.hand_over import hand_over
from pipeline.tuning.journal import Failure, Note
from pipeline.tuning.spending import Spending
from pipeline.tuning.stopping import StudyStop
from pipeline.tuning.study import Study
from pipeline.tuning.study_bar import StudyBar
from pipeline.tuning.trial_queue import TrialQueue
from pipeline.tuning.trials import Task, Trial, end_trial, trial_folder

NUMBER, TASK = "trial", "task"
"""Ray Tune's only hyperparameters: the number of a trial, and its task as JSON."""
LOST = "its process was lost; started again"


def run_trials(
    study: Study,
    concurrent: int,
    console: Console,
    refuses: Callable[[Settings], str | None],
    most_samples_per_epoch: int,
) -> None:
    """Run the trials that have not ended, and those that are still to begin.

    Args:
        study: The study.
        concurrent: The number of trials that run at the same time.
        console: The console, which shows the progress.
        refuses: Returns why settings cannot be trained; None if they can.
        most_samples_per_epoch: The most samples of an epoch of any trial.

    Raises:
        KeyboardInterrupt: The study was interrupted.
        Terminated: The study was told to stop, or a trial was and may not go on by itself. Each
            running trial has saved a checkpoint.
    """
    scheduler = study.scheduler(most_samples_per_epoch)
    spending = Spending(study)
    decisions = Decisions(
        study.journal,
        scheduler,
        study.stops_early,
        study.samples,
        study.is_compared,
        spending.is_out_of_time,
    )
    stop = StudyStop(console.notice)
    queue = TrialQueue(
        study,
        study.scheduler(most_samples_per_epoch),
        concurrent,
        refuses,
        _hand_over(study),
        spending,
    )
    trial = Trial(
        study.base.model_dump_json(), str(study.folder), study.run, source_tags(), stop.token
    )
    with StudyBar(study, console) as bar:
        callback = _callback(study, bar, stop, queue)
        for number, error in _run(study, trial, decisions, queue, callback, stop).items():
            study.journal.append(Failure(number, error, final=False))
    stop.end(lambda number: not study.has_ended(number))
    if not queue.is_finished:
        # On SIGINT, Ray Tune ends as if every trial had ended.
        raise KeyboardInterrupt


def _hand_over(study: Study) -> Callable[[Takeover, int], str]:
    def copy(takeover: Takeover, epoch: int) -> str:
        donor, heir = (trial_folder(study.folder, n) for n in (takeover.donor, takeover.trial))
        return hand_over(donor, heir, epoch)

    return copy


def _run(
    study: Study, trial: Trial, decisions: Decisions, queue: TrialQueue, callback: Any,
    stop: StudyStop,
) -> dict[int, str]:  # fmt: skip
    """Run the trials and return the errors of those that ended with a traceback."""
    from ray import tune as ray_tune

    def run_trial(params: dict[str, Any]) -> None:
        trial(Task(**json.loads(params[TASK])))

    with ray_storage(study.folder) as storage:
        tuner = ray_tune.Tuner(
            # The workers reserve CPUs. The process that launches them needs none, but Ray Tune does
            # not accept a request for no resources.
            ray_tune.with_resources(run_trial, {"memory": 1}),
            tune_config=ray_tune.TuneConfig(
                num_samples=-1,  # until the queue is finished
                search_alg=_searcher(study, queue, stop),
                scheduler=_scheduler(decisions),
                # A trial that waits for others is launched several times.
                trial_dirname_creator=lambda trial: f"{trial.config[NUMBER]}-{trial.trial_id}",
            ),
            run_config=ray_tune.RunConfig(
                # Each launch has a new name, because the journal and our own checkpoints do the
                # resuming.
                name=time.strftime("%Y%m%d-%H%M%S"),
                storage_path=str(storage),
                callbacks=[callback],
                stop=stop.stopper(),
                # Only a lost process is tried again: a trial reports its other errors.
                failure_config=ray_tune.FailureConfig(max_failures=study.base.cluster.max_failures),
                verbose=0,
            ),
        )
        with raise_user_errors(), restore_signal_handlers(), stop.signals():
            results = tuner.fit()
        return {
            int(Path(result.path).name.partition("-")[0]): _reason(result.error)
            for result in results
            if result.error is not None
        }


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _searcher(study: Study, queue: TrialQueue, stop: StudyStop) -> Any:
    """Return a searcher for Ray Tune that asks the queue."""
    from ray.tune.search import Searcher

    class Queued(Searcher):
        def suggest(self, trial_id: str) -> Any:
            if stop.signal is not None:
                return Searcher.FINISHED
            launch = queue.next()
            if launch is None:
                return Searcher.FINISHED if queue.is_finished else None
            record = study.records[launch.trial]
            task = Task(
                record.number,
                record.draw,
                record.seed,
                record.settings,
                record.epochs,
                launch.until or 0,
            )
            return {NUMBER: record.number, TASK: task.as_json()}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            pass

        # Ray Tune saves its searcher for its own restoration, which is never used.
        def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
            pass

        def __reduce__(self) -> Any:
            return Searcher, ()

    return Queued()


def _scheduler(decisions: Decisions) -> Any:
    """Return a scheduler for Ray Tune that asks `Decisions`."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class Scheduler(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if "score" not in result:
                return TrialScheduler.CONTINUE
            stop = decisions.report(
                trial.config[NUMBER], result["epoch"], result["score"], result["time_this_iter_s"]
            )
            return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

        # Ray Tune pickles its scheduler for its own restoration, which is never used.
        def __reduce__(self) -> Any:
            return FIFOScheduler, ()

    return Scheduler()


def _callback(study: Study, bar: StudyBar, stop: StudyStop, queue: TrialQueue) -> Any:
    """Return a Ray Tune callback that notes what happens to trials, and shows it.

    Args:
        study: The study, whose journal takes notes and errors.
        bar: The progress bar.
        stop: What takes the trials that are running, and those that were stopped by a notice.
        queue: The queue, which learns which trials have ended.
    """
    from ray.tune import Callback

    class Progress(Callback):
        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            number = trial.config[NUMBER]
            if "score" in result:
                bar.epoch(number, result["epoch"], result["score"])
            if "stopped" in result:
                stop.stopped[number] = result["stopped"]
                if result["stopped"]:
                    bar.notice(f"trial {number}: {result['stopped']}")
            if "note" in result:
                self._note(number, result["note"])
            if "failed" in result:
                study.journal.append(Failure(number, result["failed"], final=False))

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            stop.running.add(trial.config[NUMBER])
            bar.begin(trial.config[NUMBER])

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._note(trial.config[NUMBER], LOST)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            number = trial.config[NUMBER]
            if number in stop.stopped:
                self._end(number, "KILLED")
            elif number in study.journal.errors:
                self._end(number, "FAILED")
            elif study.has_ended(number):
                self._end(number, "FINISHED")
            else:  # it waits for others
                self._left(number)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            # The error itself is reported at the end; Ray Tune has not stored it yet.
            number = trial.config[NUMBER]
            study.journal.append(Failure(number, "ended with an error", final=False))
            self._end(number, "FAILED")

        def _note(self, number: int, text: str) -> None:
            study.journal.append(Note(number, text))
            bar.notice(f"trial {number}: {text}")

        def _left(self, number: int) -> None:
            stop.running.discard(number)
            bar.leave(number)
            queue.ended(number)

        def _end(self, number: int, status: str) -> None:
            self._left(number)
            end_trial(study.folder, study.run, number, status, study.journal, study.epochs(number))
            if status != "KILLED":
                bar.end(number)

        # Ray Tune pickles its callbacks with the study's state, but a terminal cannot be pickled.
        def __reduce__(self) -> Any:
            return Callback, ()

    return Progress()
