"""Kubernetes with KubeRay: a `RayJob` that runs and ends, and a `RayCluster` that stays."""

from typing import Any

import ray
import yaml

from pipeline.config.deploy import KubeRayConfig
from pipeline.deploy.machines import Machines, refuse, require_remote
from pipeline.deploy.offers import Offer
from pipeline.errors import UserError

TARGET = "kuberay"
CONFIG_FOLDER = "/etc/perceiver"
GRACE_SECONDS = 120
"""The time in which a pod that is taken away saves a checkpoint."""
SPOT_TAINTS = (
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
    ("karpenter.sh/capacity-type", "spot"),
)
"""The taints of spot machines on Google's and Azure's Kubernetes, and with Karpenter."""
GPU = "nvidia.com/gpu"
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
REDIS_PASSWORD = "REDIS_PASSWORD"
HEAD_CPUS = 2


def render_kuberay(machines: Machines) -> dict[str, str]:
    """Return `rayjob.yaml` and `raycluster.yaml`.

    The job's configuration is a ConfigMap beside the RayJob. KubeRay makes a token for each
    cluster, without which its ports refuse every request.

    Raises:
        UserError: The configuration asks for what pods cannot do.
    """
    own = machines.deploy.kuberay
    if machines.deploy.image is None:
        raise UserError(
            "cluster.deploy.image is missing on kuberay: name the image that you build from the "
            "rendered Dockerfile and push, such as registry.example.org/perceiver:1"
        )
    refuse(
        machines,
        TARGET,
        {
            "secrets_file": "Kubernetes keeps them; make a secret with 'kubectl create secret "
            "generic NAME --from-env-file FILE', and name it in cluster.deploy.kuberay.secret"
        },
    )
    if machines.deploy.secrets and own.secret is None:
        raise UserError(
            "cluster.deploy.kuberay.secret is missing: name the Kubernetes secret that holds "
            f"{', '.join(machines.deploy.secrets)}"
        )
    if machines.config.cluster.min_workers == 0:
        raise UserError("cluster.num_workers=0 on kuberay: pods train; give at least 1")
    require_remote(machines, TARGET, tuple(own.volumes))
    name = f"{machines.name}-{machines.verb}"[:47].rstrip("-")
    metadata = {"name": name, "namespace": own.namespace}
    file = f"{machines.config.name}.yaml"
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {file: machines.config_text},
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": f"{machines.python} -P -m pipeline {machines.verb} "
            f"{CONFIG_FOLDER}/{file}",
            "backoffLimit": machines.config.cluster.max_failures,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": _cluster(machines, own, config_map=name),
        },
    }
    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {**metadata, "name": machines.name},
        "spec": _cluster(machines, own, config_map=None),
    }
    return {
        "rayjob.yaml": yaml.safe_dump_all([config_map, job], sort_keys=False, allow_unicode=True),
        "raycluster.yaml": yaml.safe_dump(cluster, sort_keys=False, allow_unicode=True),
    }


def _cluster(machines: Machines, own: KubeRayConfig, config_map: str | None) -> dict[str, Any]:
    """Return the spec of the cluster.

    Args:
        machines: The machines.
        own: The section `cluster.deploy.kuberay`.
        config_map: The ConfigMap that the head mounts, or None.
    """
    deploy = machines.deploy
    training = _group(machines, own, "training", machines.least, machines.most, machines.gpus)
    groups = [training | _offered(machines.training)]
    if deploy.cpu_machines:
        group = _group(machines, own, "cpu", 0, deploy.cpu_machines, 0)
        groups.append(group | _offered(machines.cpu))
    spec: dict[str, Any] = {
        "rayVersion": ray.__version__,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 300},
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # No training process runs on the head.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _template(
                machines, own, "ray-head", HEAD_CPUS, deploy.head_memory_gb, 0, config_map
            ),
        },
        "workerGroupSpecs": groups,
    }
    if deploy.redis is not None:
        spec["gcsFaultToleranceOptions"] = {"redisAddress": deploy.redis}
        if REDIS_PASSWORD in deploy.secrets:
            spec["gcsFaultToleranceOptions"]["redisPassword"] = {
                "valueFrom": {"secretKeyRef": {"name": own.secret, "key": REDIS_PASSWORD}}
            }
    return spec


def _offered(offer: Offer) -> dict[str, Any]:
    """Return the fields of a group that tell Ray about its pods."""
    resources = {name: str(amount) for name, amount in offer.resources.items()}
    fields: dict[str, Any] = {"resources": resources, "labels": offer.labels}
    return {name: value for name, value in fields.items() if value}


def _group(
    machines: Machines, own: KubeRayConfig, name: str, least: int, most: int, gpus: int
) -> dict[str, Any]:
    """Return a group of equal pods, of which the autoscaler starts as many as have work."""
    memory = machines.deploy.memory_gb
    template = _template(machines, own, "ray-worker", machines.cpus, memory, gpus, None)
    pod = template["spec"]
    if name == "training" and own.node_selector:
        pod["nodeSelector"] = dict(own.node_selector)
    tolerations = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}] if gpus else []
    if machines.deploy.spot:
        tolerations += [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            for key, value in SPOT_TAINTS
        ]
    if tolerations:
        pod["tolerations"] = tolerations
    return {
        "groupName": name,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": template,
    }


def _template(
    machines: Machines,
    own: KubeRayConfig,
    name: str,
    cpus: int,
    memory_gb: int,
    gpus: int,
    config_map: str | None,
) -> dict[str, Any]:
    """Return the template of a pod with one container that runs Ray."""
    amounts: dict[str, Any] = {"cpu": str(cpus), "memory": f"{memory_gb}Gi"}
    if gpus:
        amounts[GPU] = str(gpus)
    mounts = [{"name": f"volume-{n}", "mountPath": f} for n, f in enumerate(own.volumes)]
    volumes: list[dict[str, Any]] = [
        {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}}
        for number, claim in enumerate(own.volumes.values())
    ]
    if config_map is not None:
        mounts.append({"name": "configuration", "mountPath": CONFIG_FOLDER})
        volumes.append({"name": "configuration", "configMap": {"name": config_map}})
    # KubeRay passes the password of Redis by itself.
    own_secrets = [
        s for s in machines.deploy.secrets if s != REDIS_PASSWORD or not _redis(machines)
    ]
    container: dict[str, Any] = {
        "name": name,
        "image": machines.deploy.image,
        "resources": {"requests": amounts, "limits": dict(amounts)},
    }
    if own_secrets:
        container["env"] = [
            {"name": secret, "valueFrom": {"secretKeyRef": {"name": own.secret, "key": secret}}}
            for secret in own_secrets
        ]
    if name == "ray-head":
        container["ports"] = [{"name": n, "containerPort": port} for n, port in PORTS.items()]
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [container],
    }
    if mounts:
        container["volumeMounts"] = mounts
        pod["volumes"] = volumes
    if own.service_account:
        pod["serviceAccountName"] = own.service_account
    return {"spec": pod}


def _redis(machines: Machines) -> bool:
    return machines.deploy.redis is not None
