"""Model cards in Markdown: what a model is, what it was trained on, and how good it is.

`training_card` is that of a finished training, and `version_card` that of a registered version,
which also says by what it was judged. Both read everything from the training and its set.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from pipeline.config.tree import Config
from pipeline.registry.intervals import share_interval
from pipeline.registry.judged_models import Candidate, Verdict
from pipeline.registry.served.card import ModelCard
from shards import ShardSet
from shards.plain import printable
from shards.redaction import redacted_tree

MOST_OF_A_DESCRIPTION = 5000
"""The most characters that MLflow keeps of a version's description."""

_MOST_NAMES = 50
_FEW_SAMPLES = 1000
_SHARES = ("accuracy", "top5_accuracy")
"""The metrics that are a share of the samples."""


def training_card(
    config: Config,
    card: ModelCard,
    shard_set: ShardSet,
    result: Mapping[str, Any],
    details: Mapping[str, Any],
) -> str:
    """Return the card of a training.

    Args:
        config: The configuration of the training.
        card: The card that the registered model will have.
        shard_set: The set that the model was trained on.
        result: What `train` returns.
        details: The details of the best evaluation, from `best_details`.
    """
    run_id, classes = result["run_id"], details.get("classes")
    parts = [
        *_what_it_is(config, card, shard_set, run_id),
        "## Metrics of the best checkpoint",
        f"It was chosen by `{card.objective.selection}` among the checkpoints after each of "
        f"{result['epochs']} epochs.",
        _table(("metric", "value", "95% interval"), _of_training(shard_set, result)),
        *_by_class(classes),
        "## How to load it",
        "```sh\n"
        f"perceiver evaluate {run_id}   # every metric on any split of any set\n"
        f"perceiver promote {run_id}    # registers the model if it is good enough\n"
        f"perceiver predict models:/{config.registry.model_name}@{config.registry.alias} FILES\n"
        "```",
        "## Limits",
        _list(
            [
                *_of_its_training(shard_set),
                *_limits(card, shard_set, classes),
                *_faults(config, result),
            ]
        ),
        "## Configuration",
        f"```yaml\n{_yaml(config)}```",
    ]
    return "\n\n".join(parts) + "\n"


def version_card(
    config: Config, candidate: Candidate, verdict: Verdict, run_id: str, name: str, *, short: bool
) -> str:
    """Return the card of a registered version.

    Args:
        config: The configuration of the training.
        candidate: The model, and the set that judged it.
        verdict: What the judging found.
        run_id: The MLflow run of the training.
        name: The name of the registered model.
        short: Whether to leave out the configuration and keep to MLflow's size of a description.
    """
    card, judged = candidate.predictor.card, candidate.shard_set
    of_split = f"`{_plain(candidate.split)}` of the set `{judged.digest}`"
    parts = [
        *_what_it_is(config, card, candidate.trained_set, run_id),
        "## How it was judged",
        f"On {verdict.samples:,} samples of {of_split} that it was not trained on; "
        f"{verdict.left_out:,} were left out.",
        _table(("", "value", "95% interval"), _judged(candidate, verdict)),
        *_worse(verdict),
        "## How to load it",
        f'```python\nmodel = mlflow.pyfunc.load_model("models:/{_plain(name)}/VERSION")\n```',
        "## Limits",
        _list([*_of_its_judges(candidate, verdict), *_limits(card, candidate.trained_set, None)]),
    ]
    if short:
        text = "\n\n".join(parts) + "\n"
        cut = "\n\n… The whole card is `artifacts/model_card.md`.\n"
        whole = len(text) <= MOST_OF_A_DESCRIPTION
        return text if whole else text[: MOST_OF_A_DESCRIPTION - len(cut)] + cut
    return "\n\n".join([*parts, "## Configuration", f"```yaml\n{_yaml(config)}```"]) + "\n"


def _what_it_is(config: Config, card: ModelCard, shard_set: ShardSet, run_id: str) -> list[str]:
    """Return the title, and the sections on the data and the model."""
    objective, counts = card.objective, shard_set.manifest.counts
    licence = config.registry.licence
    return [
        f"# {_plain(config.name)}",
        f"A Perceiver for the objective `{objective.name}`, trained by MLflow run `{run_id}`.",
        f"Licence: {_plain(licence)}"
        if licence
        else "Licence: none is given (`registry.licence`).",
        "## Data",
        _table(
            ("", ""),
            [
                ("shard set", f"`{_plain(redacted_tree(config.shards_folder))}`"),
                ("digest", f"`{shard_set.digest}`"),
                *((f"samples of {split}", f"{count:,}") for split, count in counts.items()),
                *((f"input `{name}`", f"`{_plain(fmt)}`") for name, fmt in card.formats.items()),
                ("target", f"`{objective.target}`"),
                *_names(objective.class_names),
            ],
        ),
        "## Model",
        _table(
            ("", ""),
            [
                ("parameters", f"{objective.num_parameters():,}"),
                ("FLOPs of one forward pass of a sample", f"{objective.forward_flops():,}"),
                ("tokens of a sample that the latents read", f"{objective.num_tokens():,}"),
            ],
        ),
    ]


def _of_training(shard_set: ShardSet, result: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Yield name, value and interval of each metric of the best checkpoint."""
    samples = shard_set.manifest.counts.get("validation", 0)
    for name, value in result["metrics"].items():
        if not name.startswith(("val_", "train_")):
            continue
        interval = ""
        if name.removeprefix("val_") in _SHARES and samples:
            interval = _range(share_interval(round(value * samples), samples))
        yield f"`{name}`", f"{value:.6g}", interval


def _judged(candidate: Candidate, verdict: Verdict) -> Iterable[tuple[str, str, str]]:
    metric = candidate.objective.sample_metric
    interval = "" if verdict.interval is None else _range(verdict.interval)
    yield f"`{metric}`", f"{verdict.value:.6g}", interval
    if verdict.champion_value is not None:
        yield "of the champion before", f"{verdict.champion_value:.6g}", ""
    if (found := verdict.comparison) is not None:
        yield "won and lost", f"{found.wins:,} and {found.losses:,}", ""
        yield "p of the paired test", f"{found.p_value:.3g}", ""


def _worse(verdict: Verdict) -> list[str]:
    if not verdict.worse:
        return []
    rows = [
        (f"{one.kind} `{_plain(one.name)}`", f"{one.value:.4g}", f"{one.champion_value:.4g}",
         f"{one.samples:,}", f"{one.p_value:.3g}")
        for one in verdict.worse[:_MOST_NAMES]
    ]  # fmt: skip
    columns = ("worse than the champion on", "value", "champion", "samples", "p")
    return [_table(columns, rows)]


def _of_its_training(shard_set: ShardSet) -> Iterable[str]:
    counts = shard_set.manifest.counts
    if "validation" in counts:
        yield (
            f"The metrics are from {counts['validation']:,} validation samples, which also chose "
            "the checkpoint, so they are a little too good. A split that no training has seen is "
            "the better judge."
        )
    else:
        yield "There is no validation split: the metrics are those of the training samples."


def _of_its_judges(candidate: Candidate, verdict: Verdict) -> Iterable[str]:
    is_own = candidate.own_set is None
    if is_own and candidate.split == "validation":
        yield (
            "The samples that judged it also chose its checkpoint, so the value is a little too "
            "good. A split that no training has seen is the better judge."
        )
    if verdict.comparison is not None and verdict.comparison.units is not None:
        yield f"The samples are of {verdict.comparison.units:,} recordings or groups."


def _limits(
    card: ModelCard, shard_set: ShardSet, classes: Sequence[Mapping[str, Any]] | None
) -> Iterable[str]:
    trained_on = shard_set.manifest.counts.get("train", 0)
    if trained_on < _FEW_SAMPLES:
        yield f"It has seen only {trained_on:,} training samples."
    if card.objective.class_names:
        yield (
            f"It answers with one of its {len(card.objective.class_names)} classes whatever it "
            "is given."
        )
    yield "It takes input of the formats above; other input is converted to them first."
    for each in (classes or [])[:_MOST_NAMES]:
        if each.get("support") == 0:
            yield f"No validation sample has the class `{_plain(each['name'])}`."


def _faults(config: Config, result: Mapping[str, Any]) -> Iterable[str]:
    if result["bad_samples"]:
        yield f"{len(result['bad_samples'])} samples could not be read and were left out."
    if result["bad_steps"]:
        yield f"{result['bad_steps']} bad steps are not in the weights."
    if (stopped := result["stopped_early"]) is not None:
        yield f"The training stopped early, after epoch {stopped} of {config.training.epochs}."


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4g} to {interval[1]:.4g}"


def _names(names: Sequence[str]) -> list[tuple[str, str]]:
    if not names:
        return []
    shown = ", ".join(f"`{_plain(name)}`" for name in names[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return [(f"{len(names)} classes", f"{shown}{more}")]


def _by_class(classes: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if not classes:
        return []
    columns = list(dict.fromkeys(name for each in classes for name in each))
    rows = [[_cell(each.get(name)) for name in columns] for each in classes[:_MOST_NAMES]]
    return [_table(columns, rows)]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else _plain(value)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: Any) -> str:
    """Return a text that cannot end a cell, a code span or a line."""
    text = printable(" ".join(str(value).split()))
    return text.replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _yaml(config: Config) -> str:
    text = yaml.safe_dump(redacted_tree(config.tree()), sort_keys=False, allow_unicode=True)
    return text.replace("```", "'''")
