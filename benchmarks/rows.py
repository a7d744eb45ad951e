"""The rows of a comparison.

Batch sizes are tried in ascending order, variants are measured in turn, and figures are medians
over rounds.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.jobs import Answer, Ask, Job
from benchmarks.variants import OURS, Variant
from perceiver_model.families.classifier_config import ClassifierConfig
from pipeline.runs.console import Console

WORTH_GOING_ON = 0.95
"""A larger batch is tried if the last rate was at least this fraction of the best rate."""
FIGURES = (
    *("images_per_second", "ms_per_step", "vs_ours", "peak_bytes", "bytes_above_model"),
    *("tflops", "mfu", "flops_per_image", "parameters", "rounds"),
)
"""The keys of a row that are None if no batch size worked."""


@dataclass
class Row:
    """One variant at one kind of work.

    Attributes:
        work: The kind of work.
        variant: The variant.
        sweep: The first round's answer at each batch size that was tried.
        best: The batch size with the most images per second. None if no batch size worked.
        rounds: The answer of each round at that batch size.
    """

    work: str
    variant: Variant
    sweep: dict[int, Answer] = field(default_factory=dict)
    best: int | None = None
    rounds: list[Answer] = field(default_factory=list)

    @property
    def status(self) -> str:
        """The status of the row.

        It is `ok`, the status of the smallest batch if no batch size worked, or `failed` if any
        round failed.
        """
        if self.best is None:
            return str(next(iter(self.sweep.values()))["status"])
        answers = [*self.sweep.values(), *self.rounds]
        return "failed" if any(answer["status"] == "failed" for answer in answers) else "ok"

    def rates(self) -> list[float | None]:
        """Return the images per second of each round."""
        return [_rate(answer, self.best or 0) for answer in self.rounds]

    def to_dict(self, rows: "Sequence[Row]", matmul_flops_per_second: float) -> dict[str, Any]:
        """Return the row as JSON: medians over rounds at the best batch size, and the whole sweep.

        `vs_ours` is the median over rounds of the ratio to our row with the same compilation. `mfu`
        is the fraction of the machine's rate of matrix products. The `FIGURES` are None if no batch
        size worked.

        Args:
            rows: All rows of the comparison.
            matmul_flops_per_second: The machine's rate of matrix products.
        """
        head = {"work": self.work, "label": self.variant.label, **dataclasses.asdict(self.variant)}
        sweep = [
            {"batch_size": size, "images_per_second": _rate(answer, size), **answer}
            for size, answer in self.sweep.items()
        ]
        row = {**head, "status": self.status, "batch_size": self.best, "sweep": sweep}
        good = [answer for answer in self.rounds if answer["status"] == "ok"]
        if self.best is None:
            return row | dict.fromkeys(FIGURES)
        seconds = statistics.median(answer["seconds"] for answer in good)
        flops_per_second = good[0]["flops"] / seconds
        figures = (
            self.best / seconds,
            1000 * seconds,
            self._ratio(rows),
            max(answer["peak_bytes"] for answer in good),
            max(answer["bytes_above_model"] for answer in good),
            flops_per_second / 1e12,
            flops_per_second / matmul_flops_per_second,
            good[0]["flops"] // self.best,
            good[0]["parameters"],
            self.rates(),
        )
        return row | dict(zip(FIGURES, figures, strict=True))

    def _ratio(self, rows: "Sequence[Row]") -> float | None:
        """Return the median over rounds of the images per second relative to ours."""
        reference = Variant(implementation=OURS, compiled=self.variant.compiled)
        ours = next(row for row in rows if (row.work, row.variant) == (self.work, reference))
        ratios = [
            mine / theirs
            for mine, theirs in zip(self.rates(), ours.rates(), strict=False)
            if mine is not None and theirs is not None
        ]
        return statistics.median(ratios) if ratios else None


def measure_rows(
    job: Job,
    variants: Sequence[Variant],
    batch_sizes: Sequence[int],
    rounds: int,
    console: Console,
    ask: Ask,
) -> list[Row]:
    """Measure each variant at its best batch size. Only the first round tries all batch sizes.

    Args:
        job: The job, which each measurement changes to its variant and batch size.
        variants: The variants.
        batch_sizes: The batch sizes to try, ascending.
        rounds: The number of rounds.
        console: The console for progress notices.
        ask: A function that does one job.
    """
    rows = [Row(job.task, variant) for variant in variants]
    for row in rows:
        for size in batch_sizes:
            row.sweep[size] = _measure(job, row, size, console, ask)
            if not _worth_going_on(row):
                break
        rates = {size: _rate(answer, size) or 0.0 for size, answer in row.sweep.items()}
        best = max(rates, key=lambda size: rates[size])
        if rates[best]:
            row.best = best
            row.rounds.append(row.sweep[best])
    for _ in range(1, rounds):
        for row in rows:
            if row.best is not None:
                row.rounds.append(_measure(job, row, row.best, console, ask))
    return rows


def memory_rows(
    job: Job,
    variants: Sequence[Variant],
    configs: Sequence[ClassifierConfig],
    console: Console,
    ask: Ask,
) -> list[dict[str, Any]]:
    """Measure the memory of a cross-attend's step on more and more tokens, until it does not fit.

    Args:
        job: The job, which each measurement changes to its variant and configuration.
        variants: The variants.
        configs: The configurations, with ascending numbers of tokens.
        console: The console for progress notices.
        ask: A function that does one job.

    Returns:
        For each variant, `sizes` with the `tokens` and `bytes` of each size. A straight line
        through them gives `bytes_per_token` and `r_squared`, the fraction of the variance that it
        explains.
    """
    rows = []
    for variant in variants:
        sizes: list[dict[str, int]] = []
        status, error = "ok", None
        for config in configs:
            tokens = math.prod(config.token_grid)
            answer = ask(dataclasses.replace(_of(job, variant), config=config.to_dict()))
            outcome = _gib(answer["bytes"]) if answer["status"] == "ok" else _outcome(answer)
            console.notice(f"memory · {variant.label} · {tokens:,} tokens: {outcome}")
            if answer["status"] != "ok":
                status, error = answer["status"], answer.get("error")
                break
            sizes.append({"tokens": tokens, "bytes": answer["bytes"]})
        head = {"label": variant.label, **dataclasses.asdict(variant)}
        rows.append({**head, "status": status, "error": error, "sizes": sizes, **_line(sizes)})
    return rows


def _line(sizes: Sequence[dict[str, int]]) -> dict[str, float | None]:
    if len(sizes) < 2:
        return {"bytes_per_token": None, "r_squared": None}
    tokens, used = ([size[key] for size in sizes] for key in ("tokens", "bytes"))
    slope, _ = statistics.linear_regression(tokens, used)
    explained = statistics.correlation(tokens, used) ** 2 if len(set(used)) > 1 else None
    return {"bytes_per_token": slope, "r_squared": explained}


def _of(job: Job, variant: Variant) -> Job:
    return dataclasses.replace(job, **dataclasses.asdict(variant))


def _measure(job: Job, row: Row, batch_size: int, console: Console, ask: Ask) -> Answer:
    answer = ask(dataclasses.replace(_of(job, row.variant), batch_size=batch_size))
    rate = _rate(answer, batch_size)
    outcome = _outcome(answer) if rate is None else f"{rate:.4g} images/s"
    compiled = " · compiled" if row.variant.compiled else ""
    console.notice(f"{row.work} · {row.variant.label}{compiled} · batch {batch_size}: {outcome}")
    return answer


def _rate(answer: Answer, batch_size: int) -> float | None:
    return batch_size / answer["seconds"] if answer["status"] == "ok" else None


def _worth_going_on(row: Row) -> bool:
    rates = [_rate(answer, size) for size, answer in row.sweep.items()]
    if rates[-1] is None:
        return False
    return rates[-1] >= WORTH_GOING_ON * max(rate for rate in rates if rate is not None)


def _outcome(answer: Answer) -> str:
    return str(answer.get("error") or answer["status"].replace("_", " "))


def _gib(size: int) -> str:
    return f"{size / 2**30:.3f} GiB"
