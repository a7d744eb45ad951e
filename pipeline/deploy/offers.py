"""What machines offer to Ray, so that `cluster`'s resources, labels and placement find room."""

import dataclasses
import json
import math
from collections.abc import Iterable

from pipeline.config.cluster import ClusterConfig
from pipeline.config.deploy import DeployConfig
from pipeline.errors import UserError

_OF_RAY = "ray.io/"
"""Ray itself gives machines the labels whose keys begin so."""


@dataclasses.dataclass(frozen=True)
class Offer:
    """What Ray is told about a machine, besides its CPUs, GPUs and memory.

    Attributes:
        resources: Amounts of other resources, by name.
        labels: Labels, by key.
    """

    resources: dict[str, int]
    labels: dict[str, str]

    @property
    def options(self) -> str:
        """The options of `ray start` for the shell, with a space before each."""
        resources = f" --resources='{json.dumps(self.resources)}'" if self.resources else ""
        labels = ",".join(f"{key}={value}" for key, value in self.labels.items())
        return resources + (f" --labels='{labels}'" if labels else "")


def gpus_of_a_machine(cluster: ClusterConfig, deploy: DeployConfig) -> int:
    """Return how many GPUs a machine has.

    Raises:
        UserError: It shall have some, and the training uses none.
    """
    if cluster.use_gpu:
        return deploy.gpus or 1
    if deploy.gpus is not None:
        raise UserError(
            f"cluster.deploy.gpus={deploy.gpus}: no GPU is used; set cluster.use_gpu=true, or gpus "
            "to null"
        )
    return 0


def processes_of_a_machine(cluster: ClusterConfig, deploy: DeployConfig) -> int:
    """Return how many training processes a machine runs.

    Raises:
        UserError: The machine has too few GPUs or ones that are not used, or `placement` does not
            allow it.
    """
    gpus = gpus_of_a_machine(cluster, deploy)
    if cluster.use_gpu:
        room = int(gpus / cluster.gpus_per_worker)
    else:
        room = max(1, (deploy.cpus or 0) // cluster.cpus_per_worker)
    if cluster.placement == "strict_spread":
        return 1
    if cluster.placement == "strict_pack":
        if not cluster.use_gpu and deploy.cpus is None:
            return max(1, cluster.max_workers)
        if room < cluster.max_workers:
            raise UserError(
                f"cluster.placement=strict_pack: one machine has room for {room} of "
                f"{cluster.max_workers} processes; give larger machines in cluster.deploy (gpus, "
                "cpus)"
            )
    if cluster.workers_per_node is None:
        return room
    if cluster.use_gpu and room < cluster.workers_per_node:
        raise UserError(
            f"cluster.workers_per_node={cluster.workers_per_node}: a machine's GPUs are enough for "
            f"{room} (cluster.deploy.gpus={gpus}); give as many, or lower workers_per_node"
        )
    return cluster.workers_per_node


def reserved_cpus(cluster: ClusterConfig, deploy: DeployConfig) -> int:
    """Return how many CPUs the training processes of a machine reserve.

    Raises:
        UserError: The machine has too few CPUs or GPUs, or `placement` does not allow it.
    """
    per_machine = min(processes_of_a_machine(cluster, deploy), max(1, cluster.max_workers))
    needed = per_machine * cluster.cpus_per_worker
    if deploy.cpus is not None and deploy.cpus < needed:
        raise UserError(
            f"cluster.deploy.cpus={deploy.cpus}: a machine's training processes reserve {needed} "
            "CPUs (cluster.cpus_per_worker for each); give as many, or lower "
            "cluster.cpus_per_worker"
        )
    return needed


def offers(
    cluster: ClusterConfig, deploy: DeployConfig, *, cpus: int, per_machine: int, needed: int
) -> tuple[Offer, Offer]:
    """Return what machines with training processes offer, and machines without GPUs.

    Tasks of `preprocess` and `decode` run on the second kind, if there is one.

    Args:
        cluster: The section `cluster`.
        deploy: Its section `deploy`, or the defaults of that.
        cpus: The number of CPUs of a machine.
        per_machine: The number of its training processes.
        needed: The number of CPUs that these reserve.

    Raises:
        UserError: Labels cannot be given to a machine, or nothing has CPUs for `decode`.
    """
    tasks = [cluster.preprocess, *([cluster.decode] if cluster.decode else [])]
    if cluster.decode and not deploy.cpu_machines and cpus - needed < cluster.decode.cpus:
        raise UserError(
            "cluster.decode: no machine has CPUs for it; give cluster.deploy.cpu_machines, or more "
            "in cluster.deploy.cpus"
        )
    workers = [(cluster.resources, float(per_machine))]
    others = [(t.resources, max(1.0, cpus // t.cpus)) for t in tasks]
    if not deploy.cpu_machines:
        workers, others = workers + others, []
    labels = [cluster.labels, *([] if deploy.cpu_machines else [t.labels for t in tasks])]
    training = Offer(_amounts(workers), _merged(labels))
    if not deploy.cpu_machines:
        return training, Offer({}, {})
    return training, Offer(_amounts(others), _merged([task.labels for task in tasks]))


def _amounts(parts: Iterable[tuple[dict[str, float], float]]) -> dict[str, int]:
    """Return the amounts that a machine needs for so many processes; memory is not counted."""
    total: dict[str, float] = {}
    for resources, count in parts:
        for name, amount in resources.items():
            if name != "memory":
                total[name] = total.get(name, 0) + amount * count
    return {name: math.ceil(amount) for name, amount in total.items()}


def _merged(parts: Iterable[dict[str, str]]) -> dict[str, str]:
    """Return the labels that a machine must have for all of them.

    Raises:
        UserError: One is a condition instead of a value, or two contradict each other.
    """
    found: dict[str, str] = {}
    for labels in parts:
        for key, value in labels.items():
            if key.startswith(_OF_RAY):
                continue
            if value.startswith(("!", "in(")):
                raise UserError(
                    f"cluster.labels: {key}: {value} is a condition, and a rendered machine gets "
                    "one value; give a value"
                )
            if found.setdefault(key, value) != value:
                raise UserError(
                    f"cluster.labels: {key} is {found[key]} and {value} on the same machines; give "
                    "cluster.deploy.cpu_machines, or the same value"
                )
    return found
