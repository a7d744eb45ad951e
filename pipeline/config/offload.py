"""The section `training.offload`: what ZeRO keeps in the memory or on the disks of the machine."""

from pathlib import PurePath
from typing import Literal, Self

from pydantic import model_validator

from pipeline.config.base import ConfigBase

Place = Literal["none", "cpu", "nvme"]


class OffloadConfig(ConfigBase):
    """What ZeRO keeps in the memory (`cpu`) or on the disks (`nvme`) of the machine.

    Attributes:
        optimizer: Where the float32 weights and the state of the optimizer are kept. They are also
            stepped on the CPU, with `nvme` a group at a time. `none` keeps them on the device.
            ZeRO stages 1 to 3 take `cpu`, and stage 3 takes `nvme`.
        parameters: Where stage 3 keeps each worker's part of the weights until it is needed: on the
            device, in the machine's memory, or in files.
        nvme_path: The folder on a local disk for what is on `nvme`; refused without it.
    """

    optimizer: Place = "none"
    parameters: Place = "none"
    nvme_path: str | None = None

    @model_validator(mode="after")
    def _path_fits(self) -> Self:
        if self.uses_nvme and self.nvme_path is None:
            raise ValueError("nvme_path is missing: give a folder on a local disk for nvme")
        if self.nvme_path is not None and not PurePath(self.nvme_path).is_absolute():
            raise ValueError(
                f"nvme_path is {self.nvme_path}; give an absolute path, which is the same folder "
                "for every worker of a machine"
            )
        if self.nvme_path is not None and not self.uses_nvme:
            raise ValueError(
                f"nvme_path is {self.nvme_path}, but neither optimizer nor parameters is nvme; "
                "leave it out"
            )
        return self

    @property
    def uses_nvme(self) -> bool:
        """Whether something is offloaded to NVMe."""
        return "nvme" in (self.optimizer, self.parameters)

    @property
    def offloaded(self) -> list[str]:
        """The names of the fields that offload something."""
        return [name for name in ("optimizer", "parameters") if getattr(self, name) != "none"]

    def check(self, zero_stage: int) -> None:
        """Check that a ZeRO stage can offload this.

        Raises:
            ValueError: It cannot.
        """
        for name in self.offloaded:
            place = getattr(self, name)
            lowest = 1 if (name, place) == ("optimizer", "cpu") else 3
            if zero_stage < lowest:
                stages = "1, 2 or 3" if lowest == 1 else "3"
                raise ValueError(
                    f"offload.{name} is {place}, which needs zero_stage {stages}; it is "
                    f"{zero_stage}"
                )
