"""Show a person an evaluation as a few small tables."""

import json
from typing import Any

from pipeline.runs.console import Console

MAX_ROWS, MAX_WORST = 20, 10


def report(result: dict[str, Any], console: Console) -> None:
    """Show the user what `evaluate` returned."""
    console.say(
        f"{result['model']} on {result['samples']} samples of the split {result['split']} of "
        f"{result['set']}"
    )
    console.table(
        "metrics",
        ("metric", "value"),
        [(name, "none" if value is None else value) for name, value in result["metrics"].items()],
    )
    if classes := result["classes"]:
        _show_classes(classes, console)
    calibration = result["calibration"]
    if calibration and calibration["error"] is not None:
        console.say(
            f"expected calibration error {calibration['error']:.4f} over 15 bins (Guo et al. 2017)"
        )
    if worst := result["worst"]:
        rows = [
            (each["source"], _cell(each["target"]), _cell(each["answer"]), _number(each["loss"]))
            for each in worst[:MAX_WORST]
        ]
        console.table(
            f"{len(rows)} of the {len(worst)} samples with the largest loss",
            ("source", "target", "answer", "loss"),
            rows,
        )
    if bad := result["bad_samples"]:
        console.say(f"{bad} samples could not be read")
    console.say(
        f"logged to MLflow run {result['run_id']} as {result['logged']}_…, with its report in "
        f"evaluations/{result['logged']}"
    )


def _show_classes(classes: list[dict[str, Any]], console: Console) -> None:
    columns = list(dict.fromkeys(key for each in classes for key in each))
    # The classes with the lowest F1, or the numbers with the largest error, come first.
    order = {"f1": 1, "mae": -1}
    key = next((name for name in order if name in columns), None)
    rows = classes
    if key is not None and len(classes) > MAX_ROWS:
        rows = sorted(classes, key=lambda each: order[key] * (each.get(key) or 0))[:MAX_ROWS]
    more = "" if len(rows) == len(classes) else f" ({len(rows)} worst of {len(classes)})"
    console.table(
        f"by {'class' if 'f1' in columns else 'number'}{more}",
        columns,
        [[_number(each.get(column)) for column in columns] for each in rows],
    )


def _number(value: Any) -> Any:
    return "none" if value is None else value


def _cell(value: Any) -> str:
    """Return a target or an answer in a few words."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(inner)}" for name, inner in _short(value).items())[:120]
    if isinstance(value, float):
        return f"{value:.4g}"
    return value[:120] if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[:120]


def _short(value: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are not files and have no more than a few values."""
    return {
        name: inner
        for name, inner in value.items()
        if not (isinstance(inner, dict) and ("base64" in inner or len(inner) > 5))
    }
