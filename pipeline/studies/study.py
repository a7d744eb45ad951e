"""What a study is: a question, the arms that are trained for it, and how they are compared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from perceiver_model.config_checks import flatten
from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.studies.statistics import Difference, Mean


@dataclass(frozen=True)
class Arm:
    """One way to train, which every seed runs once.

    Attributes:
        label: Its name in tables and figures, which no other arm of the study has.
        values: The dotted fields of the configuration that differ from the study's base.
        factors: The dotted fields that the arm multiplies, each number of a list; the products are
            whole numbers.
        data: The name of the shard set that it is trained on (`pipeline.studies.data`).
        peer: The name of the peer that is trained instead of the Perceiver: one of
            `pipeline.studies.peers.table`, which gets as many parameters as the Perceiver of the
            arm's configuration has, or one of `pipeline.studies.peers.estimators`. None trains the
            Perceiver.
        costs: Whether each trial also measures `pipeline.studies.costs` of its model.
    """

    label: str
    values: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    data: str = "plain"
    peer: str | None = None
    costs: bool = False

    def config(self, base: Config, values: Mapping[str, Any] = MappingProxyType({})) -> Config:
        """Return the configuration of the arm.

        Args:
            base: The study's base.
            values: Further dotted fields to change.

        Raises:
            UserError: The base leaves no room for the change.
        """
        tree = flatten(base.tree())
        scaled = {path: _times(tree[path], factor) for path, factor in self.factors.items()}
        return with_values(base, {**self.values, **scaled, **values})


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, list):
        return [_times(each, factor) for each in value]
    return round(value * factor)


@dataclass(frozen=True)
class Pair:
    """Two arms or pools whose values are subtracted, seed by seed.

    Attributes:
        arm: The label of the arm or pool.
        base: The label of the one whose values are subtracted.
    """

    arm: str
    base: str


@dataclass(frozen=True)
class Pool:
    """Several arms that are compared as one: seed by seed, their mean.

    Attributes:
        label: Its name in tables and figures, as an arm has one.
        arms: The labels of the arms.
    """

    label: str
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Scale:
    """How large the trainings of a study are.

    Attributes:
        config: The shipped configuration that every arm starts from.
        values: The dotted fields that the scale changes, for all arms.
        seeds: The number of seeds.
        needs_data: Whether the person gives the images (`--data`); otherwise the data are those
            that Python packages carry, such as the demo's handwritten digits.
        by_data: The dotted fields that the scale changes for the arms of one set, by its name.
    """

    config: str
    values: Mapping[str, Any]
    seeds: int
    needs_data: bool = False
    by_data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What the trainings of a study have found.

    Attributes:
        means: The mean of the metric and its interval, by the arm's label.
        differences: The paired differences, in the order of `Study.pairs`.
        numbers: The mean over seeds of each number that the arm's trials returned, by the arm's
            label and the name of the number.
    """

    means: Mapping[str, Mean]
    differences: tuple[Difference, ...]
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def difference(self, arm: str, base: str) -> Difference:
        """Return the difference of two arms, which the study must have among its pairs."""
        return next(d for d in self.differences if (d.arm, d.base) == (arm, base))


@dataclass(frozen=True)
class Study:
    """A question and the trainings that answer it.

    Attributes:
        name: Its name on the command line.
        question: The question, as people ask it.
        arms: The arms, in the order of the table. The arms of the scale `tiny` are the same.
        pairs: The arms that are compared.
        scales: The scales by name: `small`, `full`, and `tiny` for tests.
        answer: Returns the answer in one line.
        notes: Paragraphs of Markdown on what the arms are.
        paper: A paragraph of Markdown on what the papers report, with its source.
        uncontrolled: What was not controlled, and what would change the answer, one line each.
        pools: The arms that are compared as one. The table shows them first.
        samples: What one sample is called, such as `image`.
        section: Returns a further section of the page, in Markdown; None for no such section.
    """

    name: str
    question: str
    arms: tuple[Arm, ...]
    pairs: tuple[Pair, ...]
    scales: Mapping[str, Scale]
    answer: Callable[[Found], str]
    notes: tuple[str, ...]
    paper: str
    uncontrolled: tuple[str, ...]
    pools: tuple[Pool, ...] = ()
    samples: str = "image"
    section: Callable[[Found], str] | None = None
