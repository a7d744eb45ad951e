"""What a request may ask of an answer: MLflow's `params`, with their types and defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.training.objectives import Objective, Prediction

TOP_K, THRESHOLD, ATTENTION = "top_k", "threshold", "attention_map"
PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class Asked:
    """What a request asks of its answers.

    Attributes:
        objective: The objective that answers, with the threshold asked for.
        top_k: The number of the most probable classes that `probabilities` holds; 0 for all.
        attention_map: Whether answers have a column `attention`.
    """

    objective: Objective
    top_k: int = 0
    attention_map: bool = False

    def shortened(self, prediction: Prediction) -> Prediction:
        """Return a prediction with the `top_k` largest probabilities, the largest first."""
        shares = getattr(prediction, PROBABILITIES, None)
        if not self.top_k or shares is None:
            return prediction
        largest = sorted(shares.items(), key=lambda pair: pair[1], reverse=True)[: self.top_k]
        return replace(prediction, **{PROBABILITIES: dict(largest)})  # type: ignore[type-var]  # its subclasses are dataclasses


def defaults_of(objective: Objective) -> dict[str, int | float | bool]:
    """Return the parameters that a model for an objective takes, with their defaults.

    `top_k` is for answers with `probabilities`, and `threshold` for objectives that have one.
    """
    found: dict[str, int | float | bool] = {}
    if any(name == PROBABILITIES for name, _ in objective.prediction.columns()):
        found[TOP_K] = 0
    if hasattr(objective, THRESHOLD):
        found[THRESHOLD] = float(getattr(objective, THRESHOLD))
    return {**found, ATTENTION: False}


def read_params(objective: Objective, params: Any) -> Asked:
    """Return what a request asks.

    Args:
        objective: The model's objective.
        params: The parameters by name. None stands for the default, of one or of all.

    Raises:
        ValueError: The parameters are no mapping, or one is unknown to this model, has another
            type, or is out of range.
    """
    if params is not None and not isinstance(params, Mapping):
        raise ValueError(f"params: a {type(params).__name__}; give them by name, as an object")
    defaults = defaults_of(objective)
    given = {name: value for name, value in (params or {}).items() if value is not None}
    if unknown := given.keys() - defaults:
        raise ValueError(
            f"params: this model does not take {', '.join(sorted(map(str, unknown)))}; it takes "
            f"{', '.join(defaults)}"
        )
    values = {**defaults, **given}
    for name, value in values.items():
        wanted = type(defaults[name])
        is_number = wanted is float and isinstance(value, int) and not isinstance(value, bool)
        if type(value) is not wanted and not is_number:
            raise ValueError(f"params: {name} is a {type(value).__name__}; give a {_NAMES[wanted]}")
    top_k, threshold = int(values.get(TOP_K, 0)), values.get(THRESHOLD)
    if top_k < 0:
        raise ValueError(f"params: {TOP_K} is {top_k}; give 1 or more, or 0 for all classes")
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(f"params: {THRESHOLD} is {threshold}; give a number between 0 and 1")
    if threshold is not None:
        objective = replace(objective, threshold=float(threshold))  # type: ignore[type-var]  # it is a dataclass with this field
    return Asked(objective, top_k, bool(values[ATTENTION]))


_NAMES = {bool: "boolean", int: "whole number", float: "number"}
