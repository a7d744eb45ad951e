"""Show the user what a study found."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.runs.console import Console
from pipeline.training.objectives import objective_class
from pipeline.training.result import LEFT
from pipeline.tuning.spending import told_of_budget


def report(result: dict[str, Any], console: Console) -> None:
    """Show the user what `tune` returned."""
    metric = objective_class(result.get("objective")).selection
    if any(setting["seeds"] > 1 for setting in result.get("settings", ())):
        _show_settings(result, metric, console)
    _show_trials(result, metric, console)
    if confirmed := result.get("confirmed"):
        console.say(f"best settings, trained again: {_words(confirmed, metric)}")
    if result[LEFT]:
        console.say(result[LEFT])
    for error in result["failed"]:
        console.say(f"a trial failed: {error}")
    for reason in result.get("refused", ()):
        console.say(f"settings were not trained: {reason}")
    for line in told_of_budget(result.get("budget")):
        console.say(line)
    if page := result.get("page"):
        console.say(f"page {page}")
    console.say(f"plot {result['plot']}; MLflow run {result['run_id']}")


def happened(notes: Sequence[str]) -> str:
    """Return what happened to a trial as one line, what happened repeatedly once."""
    counts = Counter(notes)
    return "; ".join(
        note if count == 1 else f"{note} ({count} times)" for note, count in counts.items()
    )


def _show_trials(result: dict[str, Any], metric: str, console: Console) -> None:
    fields = _fields(result["trials"])
    has_notes = any(trial.get("notes") for trial in result["trials"])
    rows = []
    for rank, trial in enumerate(result["trials"], start=1):
        values = [trial["params"].get(field, "") for field in fields]
        front = " *" * (trial["id"] in result.get("front", ()))
        rows.append(
            (
                f"{rank}{front}",
                *values,
                trial[metric],
                trial["forward_flops"] / 1e6,
                trial["parameters"],
                f"{trial['epochs']}{' (stopped)' if trial['stopped_early'] else ''}",
                *([happened(trial["notes"])] if has_notes else []),
            )
        )
    title = f"study, by {metric} on validation" + (" (done before: skipped)" * result["skipped"])
    title += "; * is on the front" * bool(result.get("front"))
    names = (field.rpartition(".")[2] for field in fields)
    columns = ("rank", *names, metric, "MFLOPs forward", "parameters", "epochs")
    console.table(title, (*columns, *(["what happened"] if has_notes else [])), rows)


def _show_settings(result: dict[str, Any], metric: str, console: Console) -> None:
    fields = _fields(result["settings"])
    rows = []
    for rank, setting in enumerate(result["settings"], start=1):
        values = [setting["params"].get(field, "") for field in fields]
        interval = setting["interval"]
        told = "one seed: no interval" if interval is None else f"{_span(interval)}"
        rows.append((rank, *values, setting[metric], told, setting["seeds"]))
    names = (field.rpartition(".")[2] for field in fields)
    columns = ("rank", *names, f"mean {metric}", "confidence interval", "seeds")
    console.table(f"settings, by the worse bound of {metric}", columns, rows)


def _fields(rows: list[dict[str, Any]]) -> list[str]:
    """Return the fields of all rows. Some have conditions."""
    return list(dict.fromkeys(field for row in rows for field in row["params"]))


def _span(interval: list[float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _words(confirmed: dict[str, Any], metric: str) -> str:
    interval = confirmed["interval"]
    span = f", interval {_span(interval)}" if interval else ""
    return f"{metric} {confirmed[metric]:.4f}{span}, from {confirmed['seeds']} other seeds"
