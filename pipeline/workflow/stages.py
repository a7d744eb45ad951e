"""Stages of work, one after the other. A stage that is proven done is skipped."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.ray_session import ray_session
from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.runs.records import RunRecord, read_run_record, write_run_record

Results = dict[str, dict[str, Any]]
"""What the stages so far returned, by their names."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: Its name, which is also that of its record in the run folder.
        work: Does the work, or finds it done. It gets the results of the stages before it, and its
            own has `seconds` and `skipped`.
        outcome: Says in a few words what a result holds.
        report: Shows a person a result; None shows nothing.
        uses_ray: Whether the work needs a Ray session, unless it is done.
    """

    name: str
    work: Callable[[Results], dict[str, Any]]
    outcome: Callable[[dict[str, Any]], str]
    report: Callable[[dict[str, Any], Console], None] | None = None
    uses_ray: bool = False


def run_stages(
    config: Config, stages: Sequence[Stage], console: Console
) -> tuple[Results, list[dict[str, Any]]]:
    """Do the stages in order. All that use Ray share one session.

    If a stage fails, the table of those before it is shown, and the next call goes on there.

    Args:
        config: The configuration, whose folder has the records.
        stages: The stages.
        console: The console, which shows the progress and each result.

    Returns:
        The results by stage, and of each stage `name`, `seconds` (of its last run), `skipped` and
        `outcome`.
    """
    results: Results = {}
    done: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        try:
            for stage in stages:
                console.notice(f"── {stage.name} ──")
                if stage.uses_ray and not _is_recorded(config, stage.name):
                    stack.enter_context(ray_session(config.cluster.address))
                result = stage.work(results)
                results[stage.name] = result
                done.append(
                    {
                        "name": stage.name,
                        "seconds": result["seconds"],
                        "skipped": result["skipped"],
                        "outcome": stage.outcome(result),
                    }
                )
                if result["skipped"]:
                    console.notice(f"{stage.name}: its output is there and verifies; skipped")
                if stage.report is not None:
                    stage.report(result, console)
        except Exception:
            if done:
                show_stages(done, console)
            raise
    return results, done


def recorded(
    config: Config,
    name: str,
    fingerprint: dict[str, Any],
    work: Callable[[], dict[str, Any]],
    verifies: Callable[[dict[str, Any]], bool],
    *,
    fresh: bool = False,
) -> dict[str, Any]:
    """Do work that keeps no record of its own, unless it is done.

    Args:
        config: The configuration, whose folder has the record.
        name: The name of the stage.
        fingerprint: Everything that determines the result.
        work: Does the work.
        verifies: Whether an earlier result with this fingerprint still holds.
        fresh: Whether to do it in any case.

    Returns:
        The result, with `seconds` and `skipped`, which the work itself may set.
    """
    record = None if fresh else read_run_record(config.folder, name)
    if record and record.done and record.fingerprint == fingerprint and verifies(record.result):
        return {**record.result, "seconds": record.seconds, "skipped": True}
    started = time.time()
    result = work()
    seconds = time.time() - started
    write_run_record(config.folder, RunRecord(name, fingerprint, result, seconds, done=True))
    return {"skipped": False, **result, "seconds": seconds}


def show_stages(done: Sequence[dict[str, Any]], console: Console, *, outcomes: bool = True) -> None:
    """Show the table of the stages, with what they have made unless that was shown before."""
    rows: list[tuple[str, ...]] = [
        (stage["name"], f"{stage['seconds']:.1f}", "skipped" if stage["skipped"] else "")
        for stage in done
    ]
    columns: tuple[str, ...] = ("stage", "seconds", "")
    if outcomes:
        columns = (*columns, "result")
        rows = [(*row, stage["outcome"]) for row, stage in zip(rows, done, strict=True)]
    console.table("stages", columns, rows)


def _is_recorded(config: Config, name: str) -> bool:
    record = read_run_record(config.folder, name)
    return record is not None and record.done
