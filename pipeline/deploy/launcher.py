"""Machines that Ray's launcher rents on AWS or Google Cloud: `ray-cluster.yaml` for `ray up`."""

import os
import shlex
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.deploy import GcpConfig
from pipeline.deploy.machines import Machines, require_remote
from pipeline.deploy.secret_values import check_secrets_file
from pipeline.errors import UserError

PORT = 6379
RECONNECT_SECONDS = 600
"""How long machines wait for a head that restarts. Ray's default is 60; KubeRay takes 600."""
SECRETS = "~/.perceiver.env"
TOKEN = "~/.ray/auth_token"
PREPARED = "~/ray_bootstrap_config.yaml"
"""The path at which Ray's launcher writes the prepared configuration on the head."""


def render_aws(machines: Machines) -> dict[str, str]:
    """Return `ray-cluster.yaml` for AWS.

    Raises:
        UserError: The configuration lacks the section, or asks for what AWS cannot do.
    """
    own = machines.deploy.aws
    if own is None:
        raise _no_section("aws", "region, machine_type and machine_image")
    _check(machines, "aws", own.cpu_machine_type)
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}} if machines.deploy.spot else {}

    def node(machine_type: str, **more: Any) -> dict[str, Any]:
        disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": own.disk_gb, "VolumeType": "gp3"}}
        return {
            "InstanceType": machine_type,
            "ImageId": own.machine_image,
            "BlockDeviceMappings": [disk],
            **more,
        }

    provider = {"type": "aws", "region": own.region, "cache_stopped_nodes": False}
    return _files(
        machines,
        provider=provider,
        head=node(own.head_machine_type),
        training=node(own.machine_type, **spot),
        cpu=node(own.cpu_machine_type or "", **spot),
    )


def render_gcp(machines: Machines) -> dict[str, str]:
    """Return `ray-cluster.yaml` for Google Cloud.

    Raises:
        UserError: The configuration lacks the section, or asks for what Google Cloud cannot do.
    """
    own = machines.deploy.gcp
    if own is None:
        raise _no_section("gcp", "project, region, zone, machine_type and machine_image")
    _check(machines, "gcp", own.cpu_machine_type)
    if own.accelerator and not machines.gpus:
        raise UserError(
            f"cluster.deploy.gcp.accelerator={own.accelerator}: no GPU is used; set "
            "cluster.use_gpu=true, or accelerator to null"
        )

    provider = {
        "type": "gcp",
        "region": own.region,
        "availability_zone": own.zone,
        "project_id": own.project,
        "cache_stopped_nodes": False,
    }
    return _files(
        machines,
        provider=provider,
        head=_gcp_node(own, own.head_machine_type, spot=False, gpus=0),
        training=_gcp_node(own, own.machine_type, machines.deploy.spot, machines.gpus),
        cpu=_gcp_node(own, own.cpu_machine_type or "", machines.deploy.spot, gpus=0),
    )


def _gcp_node(own: GcpConfig, machine_type: str, spot: bool, gpus: int) -> dict[str, Any]:
    disk = {"diskSizeGb": own.disk_gb, "sourceImage": own.machine_image}
    node: dict[str, Any] = {
        "machineType": machine_type,
        "disks": [
            {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}
        ],
    }
    scheduling: list[dict[str, Any]] = [{"preemptible": True}] if spot else []
    if gpus:
        scheduling.append({"onHostMaintenance": "TERMINATE"})
        if own.accelerator:
            kind = f"zones/{own.zone}/acceleratorTypes/{own.accelerator}"
            node["guestAccelerators"] = [{"acceleratorType": kind, "acceleratorCount": gpus}]
    if scheduling:
        node["scheduling"] = scheduling
    return node


def _no_section(target: str, fields: str) -> UserError:
    return UserError(f"cluster.deploy.{target} is missing: give its {fields}")


def _check(machines: Machines, target: str, cpu_machine_type: str | None) -> None:
    """Reject what rented machines cannot do."""
    deploy = machines.deploy
    if deploy.image is None:
        raise UserError(
            f"cluster.deploy.image is missing on {target}: name the image that you build from the "
            "rendered Dockerfile and push, such as registry.example.org/perceiver:1"
        )
    if machines.config.cluster.min_workers == 0:
        raise UserError(f"cluster.num_workers=0 on {target}: rented machines train; give 1 or more")
    if bool(deploy.cpu_machines) != bool(cpu_machine_type):
        raise UserError(
            f"cluster.deploy.cpu_machines={deploy.cpu_machines} on {target}, and "
            f"cluster.deploy.{target}.cpu_machine_type is {cpu_machine_type or 'missing'}; give "
            "both or neither"
        )
    if deploy.secrets and deploy.secrets_file is None:
        raise UserError(
            f"cluster.deploy.secrets_file is missing on {target}: name a file of this machine with "
            f"lines NAME=value for {', '.join(deploy.secrets)}; it is copied to the machines"
        )
    check_secrets_file(deploy)
    require_remote(machines, target)


def _files(
    machines: Machines,
    *,
    provider: dict[str, Any],
    head: dict[str, Any],
    training: dict[str, Any],
    cpu: dict[str, Any],
) -> dict[str, str]:
    deploy = machines.deploy
    resources = {"CPU": machines.cpus} | ({"GPU": machines.gpus} if machines.gpus else {})
    if kind := machines.config.cluster.accelerator_type:
        resources[f"accelerator_type:{kind}"] = 1
    types: dict[str, Any] = {
        "head": {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0, "node_config": head},
        "training": {
            "resources": resources | machines.training.resources,
            "labels": machines.training.labels,
            "min_workers": machines.least,
            "max_workers": machines.most,
            "node_config": training,
        },
    }
    if deploy.cpu_machines:
        types["cpu"] = {
            "resources": {"CPU": machines.cpus} | machines.cpu.resources,
            "labels": machines.cpu.labels,
            "min_workers": 0,
            "max_workers": deploy.cpu_machines,
            "node_config": cpu,
        }
    mounts = {TOKEN: str(Path("~/.ray/auth_token").expanduser())}
    if deploy.secrets_file is not None:
        mounts[SECRETS] = os.path.abspath(Path(deploy.secrets_file).expanduser())  # noqa: PTH100 - no links
    ray = shlex.quote(machines.ray)
    tree = {
        "cluster_name": machines.name,
        "max_workers": machines.most + deploy.cpu_machines,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": provider,
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "image": deploy.image,
            "container_name": "perceiver",
            "pull_before_run": True,
            "run_options": ["--ulimit nofile=65536:65536"],
        },
        "available_node_types": types,
        "head_node_type": "head",
        "file_mounts": mounts,
        "cluster_synced_files": [],
        "setup_commands": [],
        "head_start_ray_commands": [
            f"{ray} stop",
            f"{_environment(machines, is_head=True)}{ray} start --head --port={PORT} "
            f"--object-manager-port=8076 --autoscaling-config={PREPARED} "
            "--dashboard-host=127.0.0.1",
        ],
        "worker_start_ray_commands": [
            f"{ray} stop",
            f"{_environment(machines, is_head=False)}{ray} start "
            f"--address=$RAY_HEAD_IP:{PORT} --object-manager-port=8076",
        ],
    }
    return {
        "ray-cluster.yaml": yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000)
    }


def _environment(machines: Machines, *, is_head: bool) -> str:
    """Return the shell commands that set the environment of `ray start`."""
    deploy = machines.deploy
    parts = ["ulimit -n 65536", "export RAY_AUTH_MODE=token"]
    if deploy.secrets_file is not None:
        parts.append(f"set -a; . {SECRETS}; set +a")
    if deploy.redis is not None and is_head:
        parts.append(f"export RAY_REDIS_ADDRESS={deploy.redis}")
    elif deploy.redis is not None:
        parts.append(f"export RAY_gcs_rpc_server_reconnect_timeout_s={RECONNECT_SECONDS}")
    return "".join(f"{part}; " for part in parts)
