"""The output of `perceiver bench model` for people: tables, and notes on how to read them."""

from typing import Any

from benchmarks.variants import OURS
from pipeline.runs.console import Console

TITLES = {
    "train": "training step: forward, cross-entropy, backward, fused AdamW",
    "inference": "inference",
    "cross-attend": "first cross-attend alone: forward and backward, inputs without gradients",
}
COLUMNS = (
    *("", "torch.compile", "batch", "images/s", "ms/step", "× ours", "peak GiB", "above model GiB"),
    *("TFLOP/s", "MFU %", "M parameters"),
)


def report(result: dict[str, Any], console: Console) -> None:
    """Show the result of `benchmarks.model.bench_model` on the console."""
    for line in _machine_lines(result):
        console.say(line)
    for work, title in TITLES.items():
        rows = [row for row in result["rows"] if row["work"] == work]
        if rows:
            console.table(title, COLUMNS, [_row(row) for row in rows])
    if result["memory"]:
        _memory_table(result["memory"], console)
    for row in [*result["rows"], *result["memory"]]:
        if row["status"] == "failed":
            console.say(f"failed: {row.get('work', 'memory')} · {row['label']}: {_error(row)}")
    for note in _notes(result):
        console.say(f"- {note}")


def _machine_lines(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    size = machine["matmul_size"]
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    lines = [
        f"{result['preset']} on {machine['device_name']} ({machine['device']}, "
        f"{machine['cpus']} CPUs, {machine['threads']} threads), {machine['precision']}; "
        + versions,
        f"matrix products of {size}² by {size}²: "
        f"{machine['matmul_flops_per_second'] / 1e12:.4g} TFLOP/s, which is 100 % MFU",
    ]
    for peer, errors in result["agreement"].items():
        lines.append(
            f"ours and {peer} agree with the same weights: logits differ by at most "
            f"{max(errors.values()):.1e} of the largest"
        )
    return lines


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    head = (row["label"], "yes" if row["compiled"] else "no")
    if row["batch_size"] is None:
        return (*head, "", row["status"].replace("_", " "), *[""] * (len(COLUMNS) - 4))
    ratio = row["vs_ours"]
    return (
        *head,
        row["batch_size"],
        row["images_per_second"],
        row["ms_per_step"],
        "" if ratio is None else ratio,
        f"{row['peak_bytes'] / 2**30:.2f}",
        f"{row['bytes_above_model'] / 2**30:.2f}",
        row["tflops"],
        f"{100 * row['mfu']:.1f}",
        f"{row['parameters'] / 1e6:.2f}",
    )


def _memory_table(rows: list[dict[str, Any]], console: Console) -> None:
    tokens = sorted({size["tokens"] for row in rows for size in row["sizes"]})
    table = []
    for row in rows:
        used = {size["tokens"]: f"{size['bytes'] / 2**20:.0f}" for size in row["sizes"]}
        slope, explained = row["bytes_per_token"], row["r_squared"]
        table.append(
            (
                row["label"],
                *(used.get(count, row["status"].replace("_", " ")) for count in tokens),
                "" if slope is None else f"{slope:,.0f}",
                "" if explained is None else f"{explained:.4f}",
            )
        )
    console.table(
        "a training step of the first cross-attend, batch 1: MiB above the model",
        ("", *(f"{count:,} tokens" for count in tokens), "bytes per token", "R²"),
        table,
    )


def _error(row: dict[str, Any]) -> str:
    errors = [answer.get("error") for answer in [row, *row.get("sweep", [])]]
    return next((str(error) for error in errors if error), "a later round broke; see --json")


def _notes(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    implementations = {row["implementation"] for row in [*result["rows"], *result["memory"]]}
    notes = [
        "× ours: images/s relative to ours with the same torch.compile setting. Each row has the "
        "fastest of the batch sizes tried.",
        "FLOPs are the plain algorithm's matrix products, whatever an implementation saves or "
        "computes twice; training and cross-attend count three forward passes.",
        "above model: the peak of the timed steps minus the memory before the first step, with the "
        "model built. It holds activations, gradients and the optimizer's state.",
    ]
    if machine["device"] == "cpu":
        notes.append(
            "CPU memory is the process's resident size; the peak counts libraries, too, and "
            "above model what torch.compile's compiler keeps."
        )
    if machine["precision"] != "float32":
        stream = "; ours with its residual stream in bfloat16" * (machine["precision"] == "bf16")
        notes.append(
            f"{machine['precision']}: torch.autocast, with float32 weights and optimizer, for "
            f"all{stream}."
        )
    elif machine["device"] == "cuda":
        precision = machine["float32_matmul_precision"]
        notes.append(
            f"float32 with torch's defaults: matmul precision {precision!r}, TF32 in convolutions."
        )
    if implementations - {OURS}:
        notes.append(
            "ours standardises uint8 images in every step; peers get them standardised, as float32 "
            "in their layout, before the clock starts."
        )
    if "transformers" in implementations:
        notes.append(
            "ours computes what transformers does (exact GELU, its padding and residual); "
            "transformers runs without its dropout."
        )
    if "lucidrains" in implementations:
        notes.append(
            "lucidrains is another and heavier model: gated MLPs 4 times as wide, cross-attend "
            "heads 64 wide, self-attends shared only between its layers after the first. Its FLOPs "
            "are its own, and its outputs can't be compared; its cross-attend is without the MLP."
        )
    return notes
