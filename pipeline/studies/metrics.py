"""What the work of a study measures: each metric's name in results, unit and format."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number that every seed of an arm returns, or a curve: such numbers by a further number.

    Attributes:
        name: Its name in results and in MLflow.
        title: What it is called in sentences and on axes.
        unit: The unit of what is shown, such as `%`; empty without one.
        factor: What a value is multiplied by before it is shown.
        spec: The format of a shown value.
        higher_is_better: The direction.
        is_ratio: Whether two arms are compared by the ratio of their values, not the difference.
            The values are positive, and so means and intervals are geometric.
        step: The unit of differences, such as `points`; empty takes `unit`.
        along: What a curve runs along, such as `tokens`; empty for a metric that is one number.
        log_along: Whether the axis of `along` is logarithmic.
        axis: The text of the figure's axis; empty takes the title.
        told: A paragraph of Markdown on what it is, for the page.
    """

    name: str
    title: str
    unit: str = ""
    factor: float = 1.0
    spec: str = ".2f"
    higher_is_better: bool = True
    is_ratio: bool = False
    step: str = ""
    along: str = ""
    log_along: bool = False
    axis: str = ""
    told: str = ""

    @property
    def heading(self) -> str:
        """The title with the unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def axis_text(self) -> str:
        """The text of an axis of its values."""
        return self.axis or self.heading

    @property
    def step_name(self) -> str:
        """What the column of its differences is called."""
        return "ratio" if self.is_ratio else self.step or self.unit or "difference"

    def shown(self, value: float) -> str:
        """Return a value as tables show it."""
        return format(self.factor * value, self.spec)

    def shown_difference(self, value: float, spec: str = "") -> str:
        """Return a difference as tables show it.

        Args:
            value: The difference, of logarithms for a metric that is compared by ratios.
            spec: The format of a difference that is no ratio; empty takes the metric's.
        """
        shown = self.difference(value)
        if self.is_ratio:
            return f"× {shown:.2f}" if shown < 1000 else f"× {shown:.2g}"
        return format(shown, f"+{spec or self.spec}")

    def difference(self, value: float) -> float:
        """Return a difference in the unit that is shown, or the ratio."""
        return math.exp(value) if self.is_ratio else self.factor * value

    def compared(self, value: float) -> float:
        """Return the value whose differences are taken: of a ratio, the logarithm."""
        return math.log(value) if self.is_ratio else value


ACCURACY = Metric("accuracy", "accuracy", "%", 100, step="points", axis="accuracy on test, %")
PARAMETERS = Metric("parameters", "parameters", spec=",.0f", higher_is_better=False)
FLOPS = Metric("forward_flops", "MFLOPs", factor=1e-6, spec=".1f", higher_is_better=False)
SECONDS = Metric("seconds", "seconds", spec=".0f", higher_is_better=False)
SPEED = Metric("samples_per_second", "{samples}s/s", spec=".0f")
"""Its title names what one sample is."""
COLUMNS = (PARAMETERS, FLOPS, SECONDS, SPEED)
