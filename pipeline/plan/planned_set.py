"""The shard set that is planned for: the real one, or one that a configuration alone describes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.preprocess.find_shards import with_shards
from pipeline.runs.console import Console
from pipeline.training.objectives import Objective, objective_class
from pipeline.training.objectives.input_views import InputViews
from pipeline.training.objectives.regression import Regression, names_of_values
from shards import ShardError, ShardSet

ASSUMED_CLASSES = 1000


@dataclass(frozen=True)
class PlannedManifest:
    """What an objective reads of a shard set's manifest.

    Attributes:
        classes: The names of the classes or labels.
        class_counts: The number of samples of each class by split.
        config: The settings that the set was made with; None if there is no set.
    """

    classes: tuple[str, ...]
    class_counts: Mapping[str, Mapping[str, int]]
    config: Mapping[str, Any] | None


@dataclass(frozen=True)
class PlannedSet:
    """A shard set as far as it is known.

    Attributes:
        location: Its address.
        manifest: Its classes and settings.
        samples: The number of training samples; None if it is not known.
        shards: The number of shards of the training split; None if there is no set.
        real: The set itself; None if there is none.
        problem: Why there is none or it cannot be used; None if it can.
        notes: What was assumed.
    """

    location: str
    manifest: PlannedManifest
    samples: int | None
    shards: int | None
    real: ShardSet | None = None
    problem: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        """The number of classes or labels."""
        return len(self.manifest.classes)


def find_set(
    config: Config, console: Console, *, classes: int | None, samples: int | None
) -> tuple[Config, PlannedSet]:
    """Return the configuration with its set's address, and the set or what is known of it.

    Args:
        config: The configuration.
        console: The console, which is told of a set under another name.
        classes: The number of classes, if there is no set.
        samples: The number of training samples, if there is no set.

    Raises:
        UserError: Two numbers are given, and the set has others.
    """
    try:
        config = with_shards(config, console)
        found = ShardSet.open(config.shards_folder)
    except (UserError, ShardError) as error:
        return config, _without(config, str(error), classes, samples)
    manifest = found.manifest
    for name, given, has in (
        ("--classes", classes, len(manifest.classes)),
        ("--samples", samples, manifest.counts.get("train", 0)),
    ):
        if given is not None and given != has:
            raise UserError(f"{name} is {given}, but {found.location} has {has}; leave it out")
    return config, known_set(found)


def known_set(shard_set: ShardSet) -> PlannedSet:
    """Return what a shard set says of itself."""
    manifest = shard_set.manifest
    return PlannedSet(
        location=str(shard_set.location),
        manifest=PlannedManifest(manifest.classes, manifest.class_counts, manifest.config),
        samples=manifest.counts.get("train", 0),
        shards=len(shard_set.shards("train")) if "train" in manifest.counts else 0,
        real=shard_set,
    )


def _without(config: Config, problem: str, classes: int | None, samples: int | None) -> PlannedSet:
    """Return what the configuration alone says of the set."""
    notes = ["there is no shard set yet: planned from the configuration alone"]
    names = _named_classes(config)
    if config.data.target.classes:
        wanted = len(config.data.target.classes)
    elif not _needs_classes(config):
        wanted = 0
    elif classes is not None:
        wanted = classes
    else:
        wanted = ASSUMED_CLASSES
        notes.append(f"{wanted:,} classes assumed; give their number with --classes")
    if samples is None:
        notes.append("steps, time and cost need the number of training samples: --samples")
    names += [f"class {number}" for number in range(len(names), wanted)]
    manifest = PlannedManifest(tuple(names), {"train": dict.fromkeys(names, 1)}, None)
    return PlannedSet(config.shards_folder, manifest, samples, None, None, problem, notes)


def _needs_classes(config: Config) -> bool:
    return config.data.target.kind in ("class", "multi_label", "mask")


def _named_classes(config: Config) -> list[str]:
    """Return the names of classes that the configuration mentions, each once."""
    options = config.trained_for
    named = list(config.data.target.classes)
    named += getattr(options, "class_weights", None) or {}
    named += getattr(options, "ignored_classes", ())
    return list(dict.fromkeys(named))


def planned_objective(config: Config, planned: PlannedSet) -> Objective:
    """Return the objective of a training. No sample is read and nothing is written.

    Raises:
        UserError: The model cannot read such data.
    """
    options = config.trained_for
    if options is None:
        raise UserError(
            f"objective.kind is missing: data.target.kind is {config.data.target.kind!r}"
        )
    kind = objective_class(options.kind)
    try:
        if kind is Regression:
            return _regression(config, planned)
        # Objectives read no more of a set than its manifest.
        return kind.of(config, cast(ShardSet, planned))
    except ValueError as error:
        raise UserError(f"{planned.location}: {error}") from None


def _regression(config: Config, planned: PlannedSet) -> Regression:
    """Return the objective with statistics of 0 and 1: the real ones take a pass over all targets.

    They change no size and no FLOPs.
    """
    options: Any = config.trained_for
    model = options.model(config, 0, planned.manifest.config)
    names = names_of_values(config.data.target)
    means, stds = (0.0,) * len(names), (1.0,) * len(names)
    return Regression(
        model, names, means, stds, options.loss, options.huber_delta, InputViews.of(options)
    )
