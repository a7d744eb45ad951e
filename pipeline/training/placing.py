"""The placement of a configuration's workers and tasks, for `cluster.placement`."""

import functools

from cluster.errors import ClusterError
from cluster.placement import (
    ACCELERATOR,
    ACCELERATOR_SHARE,
    Place,
    WorkerPlacement,
    missing_for,
    missing_in_all,
)
from cluster.remote_makers import RemoteMakers
from pipeline.config.cluster import ClusterConfig
from pipeline.config.placement import place_of


def worker_placement(cluster: ClusterConfig) -> WorkerPlacement:
    """Return how the processes of a training are placed; of a range, its smallest number."""
    gpus = cluster.gpus_per_worker if cluster.use_gpu else 0
    kind = cluster.accelerator_type
    accelerator = {f"{ACCELERATOR}{kind}": ACCELERATOR_SHARE} if kind else {}
    return WorkerPlacement(
        num_workers=cluster.min_workers,
        place=Place(
            {"CPU": cluster.cpus_per_worker, "GPU": gpus, **cluster.resources, **accelerator},
            cluster.labels,
        ),
        strategy=cluster.placement,
        workers_per_node=cluster.workers_per_node,
    )


def missing_workers(cluster: ClusterConfig) -> str | None:
    """Describe what the connected cluster lacks for the processes; None if nothing."""
    return worker_placement(cluster).missing()


def check_room(cluster: ClusterConfig) -> None:
    """Refuse more processes than the connected cluster can hold.

    Raises:
        ClusterError: The cluster lacks CPUs, GPUs or machines for the workers or their decoders.
    """
    mend = (
        "lower cluster.num_workers or cluster.cpus_per_worker, or name a larger cluster in "
        "cluster.address"
    )
    worker_placement(cluster).require("the training", mend)
    if cluster.decode is None:
        return
    place, count = place_of(cluster.decode), cluster.decode.workers * cluster.min_workers
    # The workers keep what they reserve, so both must fit at once.
    cpus = place.resources["CPU"] * count + cluster.cpus_per_worker * cluster.min_workers
    if missing := missing_for(place, count, "processes") or missing_in_all("CPU", cpus):
        raise ClusterError(
            f"decoding for the training (cluster.decode) {missing}; lower cluster.decode.workers, "
            "or name a larger cluster in cluster.address"
        )


def decoders(cluster: ClusterConfig) -> RemoteMakers | None:
    """Return the processes that decode for this worker; None if it does so itself."""
    if cluster.decode is None or not cluster.min_workers:
        return None
    return _decoders(cluster.model_dump_json())


@functools.cache
def _decoders(cluster: str) -> RemoteMakers:
    """Return the same processes to each loader of this worker."""
    decode = ClusterConfig.model_validate_json(cluster).decode
    assert decode is not None
    return RemoteMakers(place_of(decode), decode.workers)
