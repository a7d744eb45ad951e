"""What a person asks of a study."""

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What the person asks for.

    Attributes:
        name: The name of the study.
        scale: `small`, `full`, or `tiny` for tests.
        device: `auto`, `cpu` or `cuda`.
        seeds: The number of seeds; None takes the scale's.
        first_seed: The first of them.
        output: The folder for everything.
        data: The folder with `train` and `test`; None takes data that packages carry.
        docs: The folder that gets copies of the pages and the index; None copies nothing.
        tracking_uri: MLflow's URI; None takes the default.
        against: The summary of a page with other seeds, whose means are compared; None compares
            nothing.
        fresh: Whether to forget the results of an earlier run.
        overrides: Changes to the configuration of all arms.
    """

    name: str
    scale: str = "small"
    device: str = "auto"
    seeds: int | None = None
    first_seed: int = 0
    output: str = "runs"
    data: Path | None = None
    docs: Path | None = None
    tracking_uri: str | None = None
    against: Path | None = None
    fresh: bool = False
    overrides: tuple[str, ...] = ()

    def command(self) -> str:
        """Return the command line that asks for the same results."""
        words = ["perceiver", "study", self.name, *self.overrides, "--scale", self.scale]
        if self.device != "auto":
            words += ["--device", self.device]
        if self.seeds is not None:
            words += ["--seeds", str(self.seeds)]
        if self.first_seed:
            words += ["--first-seed", str(self.first_seed)]
        if self.data is not None:
            words += ["--data", str(self.data)]
        return shlex.join(words)
