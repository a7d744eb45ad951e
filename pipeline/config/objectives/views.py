"""The section `objective.test_time`: average the answers over views of an image or film."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.config.base import ConfigBase


class ViewsConfig(ConfigBase):
    """Average the answers over fixed views of each image or film (test-time augmentation).

    Evaluations, promotions and the registered model answer with the mean of the views; the
    training itself does not change. The time grows by the number of views.

    Attributes:
        flip: Whether each view is also mirrored left to right.
        crop_area: The share of the area that five crops keep: the corners and the centre. They are
            added to the whole input. Null adds none.
    """

    flip: bool = False
    crop_area: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.flip and self.crop_area is None:
            raise ValueError("test_time has neither flip nor crop_area; give one, or leave it out")
        return self
