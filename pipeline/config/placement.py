"""The parts of the section `cluster` that say where workers and tasks run."""

from typing import Annotated

from pydantic import AfterValidator, Field

from cluster.placement import Place
from pipeline.config.base import ConfigBase

_OF_FIELDS = ("CPU", "GPU", "TPU")
WORKER_VARIABLES = (
    "NCCL_", "TORCH_NCCL_", "TORCH_DISTRIBUTED_", "TORCH_FR_", "GLOO_", "FI_", "UCX_",
    "TORCHINDUCTOR_", "TRITON_",
)  # fmt: skip
"""What the names of the variables in `cluster.environment` begin with."""


def _own_names(resources: dict[str, float]) -> dict[str, float]:
    for name, amount in resources.items():
        if name in _OF_FIELDS or not name:
            raise ValueError(
                f"names {name!r}; give a resource of your own or memory, since other fields give "
                "CPUs and GPUs"
            )
        if not 0 < amount < float("inf"):
            raise ValueError(f"{name} is {amount:g}; give more than 0")
        if amount > 1 and amount != int(amount):
            raise ValueError(f"{name} is {amount:g}; above 1, Ray takes whole numbers")
    return resources


def _of_workers(variables: dict[str, str]) -> dict[str, str]:
    for name in variables:
        if not name.startswith(WORKER_VARIABLES):
            raise ValueError(
                f"names {name!r}; it takes variables of communication and of the compiler, whose "
                f"names begin with {', '.join(WORKER_VARIABLES)}"
            )
    return variables


Resources = Annotated[dict[str, float], AfterValidator(_own_names)]
Labels = dict[str, str]
WorkerVariables = Annotated[dict[str, str], AfterValidator(_of_workers)]


class TaskPlacement(ConfigBase):
    """Where tasks run, and what each of them reserves.

    Attributes:
        cpus: The CPUs that each task reserves.
        resources: Further resources that each task reserves, by name: those that machines were
            started with, or `memory` in bytes.
        labels: The labels of the machines that may run them, by key: a value, `!value`, `in(a, b)`
            or `!in(a, b)`.
    """

    cpus: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    resources: Resources = Field(default_factory=dict)
    labels: Labels = Field(default_factory=dict)


class DecodePlacement(TaskPlacement):
    """Where the samples of a training are read and decoded, if not beside its workers.

    Attributes:
        workers: The number of decoding processes for each training process.
        cpus: The CPUs that each of them reserves.
        resources: Further resources that each of them reserves, as for `preprocess`.
        labels: The labels of the machines that may run them, as for `preprocess`.
    """

    workers: int = Field(ge=1)


def place_of(tasks: TaskPlacement) -> Place:
    """Return what each task of a kind needs."""
    return Place({"CPU": tasks.cpus, **tasks.resources}, tasks.labels)
