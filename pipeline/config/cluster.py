"""The section `cluster`: the machines and processes that do the work."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.config.base import ConfigBase
from pipeline.config.deploy import DeployConfig
from pipeline.config.placement import (
    DecodePlacement,
    Labels,
    Resources,
    TaskPlacement,
    WorkerVariables,
)


class WorkerRange(ConfigBase):
    """A number of training processes that follows the machines.

    Attributes:
        min: The smallest number. With fewer, a training waits for machines.
        max: The largest number. With more machines, the rest stays free.
        resize_seconds: How often a running training looks whether it can have more processes.
    """

    min: int = Field(ge=1)
    max: int = Field(ge=1)
    resize_seconds: float = Field(default=60.0, gt=0)

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, and max is {self.max}; give min <= max")
        return self


def _kind(value: Any) -> str:
    """Return which alternative of `num_workers` a value is, so that only its errors are shown."""
    return "WorkerRange" if isinstance(value, dict | WorkerRange) else "int"


NumWorkers = Annotated[
    Annotated[int, Tag("int")] | Annotated[WorkerRange, Tag("WorkerRange")], Discriminator(_kind)
]


class ClusterConfig(ConfigBase):
    """The machines and processes that do the work.

    Attributes:
        address: The address of the Ray cluster. Null starts Ray on this machine for this command
            alone; `auto` joins the cluster that runs here; `host:port` or `ray://host:port` joins
            another one.
        num_workers: The number of training processes; 0 trains in the calling process, without Ray.
            `{min: 1, max: 8}` takes as many as the machines have room for, and changes the number
            when a machine is lost or returns.
        cpus_per_worker: The number of CPUs that each training process reserves.
        use_gpu: Whether each training process gets one GPU.
        max_failures: How many times a training is restarted from its last checkpoint after a worker
            or a machine is lost. With a range of workers, only losses without a new checkpoint
            since the one before count, and at least 3 of them are allowed.
        device_peak_tflops: The peak speed of one device at `training.precision`, in 10¹² FLOPs a
            second, which MFU is a share of. Null takes that of known GPUs; a CPU and other devices
            then have no MFU.
        gpus_per_worker: The share of a GPU that each process reserves, with `use_gpu`. With 0.25,
            four trials of one process each share a GPU. Several processes of one training each need
            a whole one.
        resources: Further resources that each process reserves, by name: those that machines were
            started with (`ray start --resources`), or `memory` in bytes.
        accelerator_type: The kind of accelerator that the machines must have, by Ray's name, such
            as H100.
        labels: The labels of the machines that may run the processes, by key: a value, `!value`,
            `in(a, b)` or `!in(a, b)`.
        placement: How Ray places the processes: `pack` on few machines, `spread` over many,
            `strict_pack` on one machine, `strict_spread` each on another.
        workers_per_node: The number of processes on each machine, fewer on the last; null leaves
            it to `placement`.
        timeout_seconds: How many seconds a process waits for the others in one exchange before the
            training fails; it then starts again as after a lost worker.
        environment: Variables of the communication library and of torch's compiler for each
            process, such as `NCCL_SOCKET_IFNAME` or `TORCHINDUCTOR_CACHE_DIR`.
        preprocess: Where `perceiver preprocess` runs its tasks.
        decode: Processes on other machines that read and decode the samples of a training; null
            does that beside its workers. The order of the samples is the same.
        wait_seconds: How many seconds a training waits for machines, at its start and after one is
            lost, before it ends with an error; null waits for ever.
        deploy: The machines that `perceiver cluster render` describes; null takes the defaults.
    """

    address: str | None = None
    num_workers: NumWorkers = 1
    cpus_per_worker: int = Field(default=1, ge=1)
    use_gpu: bool = False
    max_failures: int = Field(default=0, ge=0)
    device_peak_tflops: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    gpus_per_worker: float = Field(default=1.0, gt=0, le=1)
    resources: Resources = Field(default_factory=dict)
    accelerator_type: str | None = Field(default=None, min_length=1)
    labels: Labels = Field(default_factory=dict)
    placement: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack"
    workers_per_node: int | None = Field(default=None, ge=1)
    timeout_seconds: int = Field(default=1800, ge=1)
    environment: WorkerVariables = Field(default_factory=dict)
    preprocess: TaskPlacement = TaskPlacement()
    decode: DecodePlacement | None = None
    wait_seconds: float | None = Field(default=600.0, ge=0)
    deploy: DeployConfig | None = None

    @model_validator(mode="after")
    def _is_a_number_of_workers(self) -> Self:
        if isinstance(self.num_workers, int) and self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}; give 0 or more")
        return self

    @model_validator(mode="after")
    def _can_be_placed(self) -> Self:
        if self.gpus_per_worker < 1 and not self.use_gpu:
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker:g} without a GPU; set use_gpu=true"
            )
        if self.gpus_per_worker < 1 and self.max_workers > 1:
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker:g} with {self.max_workers} processes, "
                "which NCCL cannot connect on one GPU; give 1, or one process"
            )
        if self.workers_per_node is not None and self.placement != "pack":
            raise ValueError(
                f"workers_per_node and placement={self.placement} both say where processes run; "
                "give one of them"
            )
        if self.workers_per_node is not None and self.is_elastic:
            raise ValueError(
                "workers_per_node needs a fixed num_workers, since a range follows the machines; "
                "give placement=strict_spread for one process on each"
            )
        return self

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers follows the machines."""
        return isinstance(self.num_workers, WorkerRange)

    def fixed(self) -> Self:
        """Return the section with the smallest number of processes, for work that cannot resize."""
        return self.model_copy(update={"num_workers": self.min_workers})

    @property
    def min_workers(self) -> int:
        """The smallest number of training processes; 0 trains in the calling process."""
        return (
            self.num_workers.min if isinstance(self.num_workers, WorkerRange) else self.num_workers
        )

    @property
    def max_workers(self) -> int:
        """The largest number of training processes; 0 trains in the calling process."""
        return (
            self.num_workers.max if isinstance(self.num_workers, WorkerRange) else self.num_workers
        )
