"""The section `registry`: how a model is registered, and when it replaces the champion."""

from typing import Literal

from pydantic import Field

from pipeline.config.base import ConfigBase


class RegistryConfig(ConfigBase):
    """The name under which the model is registered in MLflow, and when its alias moves.

    Attributes:
        model_name: The name of the registered model in MLflow.
        alias: The alias of the version that is the champion.
        min_gain: How much better than the champion's the model's value of the objective's
            selection metric (the accuracy, for classifiers) must be, on the same samples.
        alpha: The largest p-value that replaces a champion. It is the probability that two equally
            good models differ as much by chance, from a one-sided paired permutation test on these
            samples (McNemar's exact test, for classifiers). At 1, any gain of at least `min_gain`
            suffices.
        worse_slices: What happens if the model is significantly worse for a class, for a folder of
            sources or for a group of `data.group`: `warn` names these, `refuse` leaves the champion
            where it is.
        slice_alpha: The largest p-value at which such a part is named, corrected for the number of
            parts.
        set_digest: The digest of the only set that may judge models, or its first 8 digits or more;
            null allows any set.
        licence: The licence of the model, such as `CC-BY-4.0`, for its card and the tag
            `perceiver.licence`.
        onnx: Whether a registered version has the file `artifacts/onnx/model.onnx`, too. What
            cannot be exported is then not registered.
    """

    model_name: str = "perceiver"
    alias: str = "champion"
    min_gain: float = Field(default=0.0, ge=0, lt=1)
    alpha: float = Field(default=0.05, gt=0, le=1)
    worse_slices: Literal["warn", "refuse"] = "warn"
    slice_alpha: float = Field(default=0.05, gt=0, lt=1)
    set_digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{8,64}$")
    licence: str | None = Field(default=None, pattern=r"^[^\n\r]{1,200}$")
    onnx: bool = False
