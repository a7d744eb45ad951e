"""The model card of a training: what the model is, what it was trained on, and how good it is."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from pipeline.config.tree import Config
from pipeline.registry.served.card import ModelCard
from shards import ShardSet
from shards.plain import printable
from shards.redaction import redacted_tree

_MOST_NAMES = 50
_FEW_SAMPLES = 1000


def model_card(
    config: Config,
    card: ModelCard,
    shard_set: ShardSet,
    result: Mapping[str, Any],
    details: Mapping[str, Any],
) -> str:
    """Return the card as Markdown. Everything in it is read from the training and its set.

    Args:
        config: The configuration of the training.
        card: The card that the registered model will have.
        shard_set: The set that the model was trained on.
        result: What `train` returns.
        details: The details of the best evaluation, from `best_details`.
    """
    objective, counts = card.objective, shard_set.manifest.counts
    of_splits = ("val_", "train_")
    metrics = {n: value for n, value in result["metrics"].items() if n.startswith(of_splits)}
    parts = [
        f"# {_plain(config.name)}",
        f"A Perceiver for the objective `{objective.name}`, trained by MLflow run "
        f"`{result['run_id']}`.",
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
                ("parameters", f"{result['parameters']:,}"),
                ("FLOPs of one forward pass of a sample", f"{result['forward_flops']:,}"),
                ("tokens of a sample that the latents read", f"{objective.num_tokens():,}"),
            ],
        ),
        "## Metrics of the best checkpoint",
        f"It was chosen by `{objective.selection}` among the checkpoints after each of "
        f"{result['epochs']} epochs.",
        _table(("metric", "value"), [(f"`{n}`", f"{v:.6g}") for n, v in metrics.items()]),
        *_by_class(details.get("classes")),
        "## How to load it",
        "```sh\n"
        f"perceiver evaluate {result['run_id']}   # every metric on any split of any set\n"
        f"perceiver promote {result['run_id']}    # registers the model if it is good enough\n"
        f"perceiver predict models:/{config.registry.model_name}@{config.registry.alias} FILES\n"
        "```",
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(config, card, shard_set, result, details)),
        "## Configuration",
        f"```yaml\n{_yaml(config)}```",
    ]
    return "\n\n".join(parts) + "\n"


def _limits(
    config: Config,
    card: ModelCard,
    shard_set: ShardSet,
    result: Mapping[str, Any],
    details: Mapping[str, Any],
) -> Iterable[str]:
    counts = shard_set.manifest.counts
    if "validation" in counts:
        yield (
            f"The metrics are from {counts['validation']:,} validation samples, which also chose "
            "the checkpoint, so they are a little too good. A split that no training has seen is "
            "the better judge."
        )
    else:
        yield "There is no validation split: the metrics are those of the training samples."
    if counts.get("train", 0) < _FEW_SAMPLES:
        yield f"It has seen only {counts.get('train', 0):,} training samples."
    if card.objective.class_names:
        yield (
            f"It answers with one of its {len(card.objective.class_names)} classes whatever it "
            "is given."
        )
    yield "It takes input of the formats above; other input is converted to them first."
    for each in (details.get("classes") or [])[:_MOST_NAMES]:
        if each.get("support") == 0:
            yield f"No validation sample has the class `{_plain(each['name'])}`."
    if result["bad_samples"]:
        yield f"{len(result['bad_samples'])} samples could not be read and were left out."
    if result["bad_steps"]:
        yield f"{result['bad_steps']} bad steps are not in the weights."
    if (stopped := result["stopped_early"]) is not None:
        yield f"The training stopped early, after epoch {stopped} of {config.training.epochs}."


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
