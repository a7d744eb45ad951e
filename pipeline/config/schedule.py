"""The section `training.schedule`: the learning rate over the epochs."""

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import ConfigBase


class ScheduleConfig(ConfigBase):
    """The learning rate over the epochs of a training.

    Attributes:
        kind: How the learning rate changes after the warm-up. `cosine` falls to 0 on a cosine.
            `flat_cosine` (Perceiver IO, appendix H) holds for `flat_epochs` before it falls.
            `steps` (Perceiver) holds, and multiplies the rate by `factor` at each of `step_epochs`.
        warmup_epochs: The number of epochs in which the learning rate rises linearly from 0.
        flat_epochs: The number of epochs in which it stays at its highest; for `flat_cosine` only.
        step_epochs: The epochs at which it is multiplied, counted from the start of the training,
            in rising order; for `steps` only.
        factor: The number that it is multiplied by; for `steps` only.
    """

    kind: Literal["cosine", "flat_cosine", "steps"] = "cosine"
    warmup_epochs: float = Field(default=1.0, ge=0)
    flat_epochs: float = Field(default=0.0, ge=0)
    step_epochs: tuple[float, ...] = ()
    factor: float = Field(default=0.1, gt=0, le=1)

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> Self:
        if self.kind != "flat_cosine" and self.flat_epochs:
            raise ValueError(f"flat_epochs is for kind flat_cosine; the kind is {self.kind}")
        if self.kind != "steps":
            for name in ("step_epochs", "factor"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is for kind steps; the kind is {self.kind}")
            return self
        if not self.step_epochs:
            raise ValueError("step_epochs is missing; kind steps needs the epochs of its steps")
        if any(later <= sooner for sooner, later in pairwise((0.0, *self.step_epochs))):
            raise ValueError(f"step_epochs is {list(self.step_epochs)}; must be above 0 and rise")
        if self.step_epochs[0] < self.warmup_epochs:
            raise ValueError(
                f"step_epochs begins at {self.step_epochs[0]:g}, within the {self.warmup_epochs:g} "
                "warmup_epochs"
            )
        return self

    def check(self, epochs: int) -> None:
        """Check that the schedule fits into a training.

        Args:
            epochs: The epochs of the training.

        Raises:
            ValueError: Nothing is left for a part of the schedule.
        """
        if self.kind == "steps":
            if self.step_epochs[-1] >= epochs:
                raise ValueError(
                    f"schedule.step_epochs ends at {self.step_epochs[-1]:g}, but there are only "
                    f"{epochs} epochs"
                )
            return
        taken = self.warmup_epochs + self.flat_epochs
        if taken >= epochs:
            raise ValueError(
                f"schedule.warmup_epochs + schedule.flat_epochs is {taken:g}, but there are only "
                f"{epochs} epochs and none would be left for the cosine"
            )
