"""What a study is: a question, the arms that answer it, what they measure, and their comparison."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from perceiver_model.config_checks import flatten
from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.studies.metrics import ACCURACY, COLUMNS, Metric
from pipeline.studies.statistics import Difference, Mean


@dataclass(frozen=True)
class Arm:
    """One piece of work, such as a training, which every seed runs once.

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
        work: The name of the work (`pipeline.studies.works.table`) that is done instead of a
            training and a test; None trains and tests.
        options: What the work gets beside the configuration, as JSON can hold it.
        also: Further labels of which the same work returns results.
        line: The label of a curve and the number, such as the tokens, at which this arm is a point
            of it. Arms whose work returns whole curves have None.
    """

    label: str
    values: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    data: str = "plain"
    peer: str | None = None
    costs: bool = False
    work: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    line: tuple[str, int] | None = None

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
    """Two arms, pools or curves whose values are subtracted, seed by seed.

    Attributes:
        arm: The label of the arm, pool or curve.
        base: The label of the one whose values are subtracted.
        metric: The name of the metric; None takes the study's main one.
        at: The number at which two curves are compared; None compares numbers.
    """

    arm: str
    base: str
    metric: str | None = None
    at: int | None = None


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
        arms: The arms at this scale; empty for those of the study.
        pairs: The arms that are compared at this scale; empty for those of the study.
    """

    config: str
    values: Mapping[str, Any]
    seeds: int
    needs_data: bool = False
    by_data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    arms: tuple[Arm, ...] = ()
    pairs: tuple[Pair, ...] = ()


class Point(NamedTuple):
    """What has one mean: a metric of an arm, or of a curve at a number.

    Attributes:
        metric: The name of the metric.
        label: The label of the arm, pool or curve.
        at: The number, such as the tokens; None for a metric that is one number.
    """

    metric: str
    label: str
    at: int | None


@dataclass(frozen=True)
class Found:
    """What a study has found.

    Attributes:
        main: The name of the study's main metric.
        points: The means and their intervals, in the order of metrics and arms.
        values: The values of the seeds, point by point.
        differences: The paired differences, in the order of `Study.pairs`. Those of a metric that
            is compared by ratios are differences of logarithms.
        numbers: The mean over seeds of each number that the arm's trials returned, by the arm's
            label and the name of the number.
    """

    main: str
    points: Mapping[Point, Mean]
    values: Mapping[Point, Sequence[float]]
    differences: tuple[Difference, ...]
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, Mean]:
        """The means of the main metric by label, curves left out."""
        return self.means_of(self.main)

    def means_of(self, metric: str) -> dict[str, Mean]:
        """Return the means of a metric by label, curves left out."""
        return {p.label: m for p, m in self.points.items() if p.metric == metric and p.at is None}

    def curves(self, metric: str) -> dict[str, dict[int, Mean]]:
        """Return the means of a metric by label of the curve and number."""
        found: dict[str, dict[int, Mean]] = {}
        for point, mean in self.points.items():
            if point.metric == metric and point.at is not None:
                found.setdefault(point.label, {})[point.at] = mean
        return {label: dict(sorted(curve.items())) for label, curve in found.items()}

    def difference(
        self, arm: str, base: str, metric: str | None = None, at: int | None = None
    ) -> Difference:
        """Return the difference of two arms, which the study must have among its pairs."""
        wanted = (arm, base, metric or self.main, at)
        return next(d for d in self.differences if (d.arm, d.base, d.metric, d.at) == wanted)


@dataclass(frozen=True)
class Study:
    """A question and the work that answers it.

    Attributes:
        name: Its name on the command line.
        question: The question, as people ask it.
        arms: The arms, in the order of the table.
        pairs: The arms that are compared.
        scales: The scales by name: `small`, `full`, and `tiny` for tests.
        answer: Returns the answer in one line.
        notes: Paragraphs of Markdown on what the arms are.
        paper: A paragraph of Markdown on what the papers report, with its source.
        uncontrolled: What was not controlled, and what would change the answer, one line each.
        pools: The arms that are compared as one. The table shows them first.
        samples: What one sample is called, such as `image`.
        section: Returns a further section of the page, in Markdown; None for no such section.
        metrics: What is measured, the main metric first. Each has its means, intervals and figures.
        columns: What the table of the arms has beside, as means.
        measured: A sentence of Markdown on how the metrics are measured; empty says it of an
            accuracy.
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
    metrics: tuple[Metric, ...] = (ACCURACY,)
    columns: tuple[Metric, ...] = COLUMNS
    measured: str = ""

    def at_scale(self, name: str) -> "Study":
        """Return the study with the arms and pairs of one of its scales."""
        scale = self.scales[name]
        arms, pairs = scale.arms or self.arms, scale.pairs or self.pairs
        return replace(self, arms=arms, pairs=pairs)
