"""The section `cluster.deploy`: the machines that `perceiver cluster render` describes."""

import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import ConfigBase

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_ONE_WORD = r"^[^\s'\"\\$`]+$"
"""Texts that are written into scripts have no spaces, quotes or signs of the shell."""


class KubeRayConfig(ConfigBase):
    """What only Kubernetes with KubeRay needs.

    Attributes:
        namespace: The Kubernetes namespace.
        secret: The name of the Kubernetes secret that has a key for each variable of
            `cluster.deploy.secrets`.
        service_account: The service account of the pods, such as one with a role for the bucket;
            null takes the namespace's default.
        node_selector: The labels of the machines that may run training processes, such as
            `{cloud.google.com/gke-accelerator: nvidia-l4}`.
        volumes: The folders in all pods, each with the name of the persistent volume claim that
            holds it, such as `{/data: media}`.
    """

    namespace: str = Field(default="default", pattern=_DNS_LABEL)
    secret: str | None = Field(default=None, pattern=_DNS_LABEL)
    service_account: str | None = Field(default=None, pattern=_DNS_LABEL)
    node_selector: dict[str, str] = Field(default_factory=dict)
    volumes: dict[str, str] = Field(default_factory=dict)

    @field_validator("volumes")
    @classmethod
    def _folders_are_absolute(cls, volumes: dict[str, str]) -> dict[str, str]:
        for folder in volumes:
            if not folder.startswith("/") or folder == "/":
                raise ValueError(f"{folder!r} is no absolute folder of a pod; give one like /data")
        return volumes


class SlurmConfig(ConfigBase):
    """What only Slurm needs.

    Attributes:
        partition: The partition; null takes Slurm's default.
        account: The account that is charged; null takes the user's default.
        hours: The time limit. A job that reaches it saves a checkpoint, and goes on when the script
            is submitted again.
        options: Further options of sbatch, such as `--constraint=a100`.
    """

    partition: str | None = Field(default=None, pattern=_ONE_WORD)
    account: str | None = Field(default=None, pattern=_ONE_WORD)
    hours: float = Field(default=24.0, gt=0)
    options: list[str] = Field(default_factory=list)

    @field_validator("options")
    @classmethod
    def _are_options(cls, options: list[str]) -> list[str]:
        for option in options:
            if not option.startswith("--") or len(option.splitlines()) != 1:
                raise ValueError(f"{option!r} is no option of sbatch; give one like --exclusive")
        return options


class AwsConfig(ConfigBase):
    """What only AWS needs.

    Attributes:
        region: The region, such as `us-west-2`.
        machine_type: The instance type of the machines with training processes.
        head_machine_type: The instance type of the head, which runs no training process.
        cpu_machine_type: The instance type of `cluster.deploy.cpu_machines`.
        machine_image: The AMI of all machines. It needs docker, and NVIDIA's driver where GPUs are
            used.
        disk_gb: The size of each machine's disk in GB.
    """

    region: str = Field(pattern=_ONE_WORD)
    machine_type: str = Field(pattern=_ONE_WORD)
    head_machine_type: str = Field(default="m5.large", pattern=_ONE_WORD)
    cpu_machine_type: str | None = Field(default=None, pattern=_ONE_WORD)
    machine_image: str = Field(pattern=_ONE_WORD)
    disk_gb: int = Field(default=256, ge=20)


class GcpConfig(ConfigBase):
    """What only Google Cloud needs.

    Attributes:
        project: The project's ID.
        region: The region, such as `us-west1`.
        zone: The zone, such as `us-west1-a`.
        machine_type: The type of the machines with training processes.
        head_machine_type: The type of the head, which runs no training process.
        cpu_machine_type: The type of `cluster.deploy.cpu_machines`.
        machine_image: The source image of all machines' disks. It needs docker, and NVIDIA's driver
            where GPUs are used.
        accelerator: The GPU that is attached to each machine, such as `nvidia-tesla-t4`; null for
            machine types that come with GPUs, or without.
        disk_gb: The size of each machine's disk in GB.
    """

    project: str = Field(pattern=_ONE_WORD)
    region: str = Field(pattern=_ONE_WORD)
    zone: str = Field(pattern=_ONE_WORD)
    machine_type: str = Field(pattern=_ONE_WORD)
    head_machine_type: str = Field(default="n2-standard-2", pattern=_ONE_WORD)
    cpu_machine_type: str | None = Field(default=None, pattern=_ONE_WORD)
    machine_image: str = Field(pattern=_ONE_WORD)
    accelerator: str | None = Field(default=None, pattern=_ONE_WORD)
    disk_gb: int = Field(default=256, ge=20)


class DeployConfig(ConfigBase):
    """The machines that `perceiver cluster render` describes. No other verb reads this section.

    What a target cannot do is refused. The sections of other targets are left out.

    Attributes:
        image: The container image with this package, built from the rendered Dockerfile.
        base_image: The image that the Dockerfile starts from; null takes one with CUDA's compiler
            with `cluster.use_gpu`, and else a plain Debian.
        python: The path of the Python with this package on the cluster's machines. Null takes that
            of the image, and without an image the path of the Python that renders.
        cpus: The number of CPUs of each machine; null takes as many as its training processes
            reserve.
        gpus: The number of GPUs of each machine; null takes 1 with `cluster.use_gpu`, and else
            none. Each of its training processes has one, unless `cluster.gpus_per_worker` or
            `cluster.workers_per_node` says otherwise. A number without `cluster.use_gpu` is
            refused.
        memory_gb: The memory of each machine in GiB.
        head_memory_gb: The memory of the head in GiB.
        cpu_machines: The largest number of further machines with the same CPUs and memory, and
            without GPUs. They start when work waits for CPUs: the tasks of `cluster.preprocess` and
            `cluster.decode`, whose resources and labels they have.
        spot: Whether machines may be such that the provider can take back. The head is not one.
        redis: The address of a Redis, `host:port`, that keeps the cluster's state, so that running
            work survives a restart of the head; null keeps it on the head alone. Its password is
            the variable REDIS_PASSWORD, if `secrets` names that.
        secrets: The names of the environment variables with passwords and keys that the machines
            need, such as AWS_SECRET_ACCESS_KEY. Values are never written down.
        secrets_file: A file of this machine with lines `NAME=value` for `secrets`, which is read by
            the scripts and copied to rented machines. Null takes them from the environment.
        kuberay: What only Kubernetes with KubeRay needs.
        slurm: What only Slurm needs.
        aws: What only AWS needs; null if there is no such target.
        gcp: What only Google Cloud needs; null if there is no such target.
    """

    image: str | None = Field(default=None, pattern=_ONE_WORD)
    base_image: str | None = Field(default=None, pattern=_ONE_WORD)
    python: str | None = None
    cpus: int | None = Field(default=None, ge=1)
    gpus: int | None = Field(default=None, ge=1)
    memory_gb: int = Field(default=16, ge=1)
    head_memory_gb: int = Field(default=8, ge=2)
    cpu_machines: int = Field(default=0, ge=0)
    spot: bool = False
    redis: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]+:\d+$")
    secrets: list[str] = Field(default_factory=list)
    secrets_file: str | None = None
    kuberay: KubeRayConfig = KubeRayConfig()
    slurm: SlurmConfig = SlurmConfig()
    aws: AwsConfig | None = None
    gcp: GcpConfig | None = None

    @model_validator(mode="after")
    def _secrets_are_names(self) -> Self:
        for name in self.secrets:
            if not re.fullmatch(_VARIABLE, name):  # the text may be a secret, and is not shown
                raise ValueError(
                    "secrets holds a text that is no name of an environment variable; give names, "
                    "not values"
                )
        return self
