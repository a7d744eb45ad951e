"""How many machines of which size a configuration needs, and what no file may hold."""

import dataclasses
import math
import re
import sys

import yaml

from pipeline.config.deploy import DeployConfig
from pipeline.config.resolved import resolved_tree
from pipeline.config.tree import Config
from pipeline.deploy.offers import (
    Offer,
    gpus_of_a_machine,
    offers,
    processes_of_a_machine,
    reserved_cpus,
)
from pipeline.errors import UserError
from shards.redaction import redacted_tree

IMAGE_PYTHON = "/opt/perceiver/bin/python"
"""The path of the Python in the image that the rendered Dockerfile builds."""
_LONGEST_NAME = 40


@dataclasses.dataclass(frozen=True)
class Machines:
    """The machines of a configuration, and the job that runs on them.

    Attributes:
        name: The name of the cluster: lower-case letters, digits and hyphens, at most 40.
        verb: The verb of the job, such as `train`.
        config: The configuration.
        deploy: Its section `cluster.deploy`, or the defaults of that.
        python: The path of the Python on the machines.
        per_machine: The number of training processes of a machine.
        least: The smallest number of machines.
        most: The largest number of machines.
        cpus: The number of CPUs of a machine.
        gpus: The number of GPUs of a machine.
        training: What Ray is told about a machine with training processes.
        cpu: What Ray is told about one of `cluster.deploy.cpu_machines`.
    """

    name: str
    verb: str
    config: Config
    deploy: DeployConfig
    python: str
    per_machine: int
    least: int
    most: int
    cpus: int
    gpus: int
    training: Offer
    cpu: Offer

    @property
    def ray(self) -> str:
        """The path of the command `ray` on the machines."""
        return f"{self.python.rpartition('/')[0]}/ray"

    @property
    def config_text(self) -> str:
        """The resolved configuration of the job as YAML, without the section `cluster.deploy`."""
        tree = resolved_tree(self.config)
        tree["cluster"]["deploy"] = None
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def machines_of(config: Config, verb: str) -> Machines:
    """Return the machines that a configuration needs.

    Args:
        config: The configuration.
        verb: The verb of the job.

    Raises:
        UserError: A machine is too small for its training processes or has GPUs that they do not
            use, or an address in the configuration holds a secret.
    """
    cluster, deploy = config.cluster, config.cluster.deploy or DeployConfig()
    _refuse_secrets(config)
    if cluster.address is not None:
        raise UserError(
            f"cluster.address={cluster.address}: the rendered files start a cluster of their own; "
            "set cluster.address to null"
        )
    gpus = gpus_of_a_machine(cluster, deploy)
    per_machine = processes_of_a_machine(cluster, deploy)
    least, most = (math.ceil(n / per_machine) for n in (cluster.min_workers, cluster.max_workers))
    needed = reserved_cpus(cluster, deploy)
    cpus = deploy.cpus or needed
    training, cpu = offers(cluster, deploy, cpus=cpus, per_machine=per_machine, needed=needed)
    return Machines(
        name=_label(config.name),
        verb=verb,
        config=config,
        deploy=deploy,
        python=deploy.python or (IMAGE_PYTHON if deploy.image else sys.executable),
        per_machine=per_machine,
        least=max(1, least),
        most=max(1, most),
        cpus=cpus,
        gpus=gpus,
        training=training,
        cpu=cpu,
    )


def refuse(machines: Machines, target: str, fields: dict[str, str]) -> None:
    """Reject fields that are set, and that a target cannot follow.

    Args:
        machines: The machines.
        target: The name of the target.
        fields: Names of fields of `cluster.deploy`, each with the reason and how to mend it.

    Raises:
        UserError: One of them differs from its default.
    """
    for field, reason in fields.items():
        value = getattr(machines.deploy, field)
        if value != DeployConfig.model_fields[field].get_default(call_default_factory=True):
            raise UserError(f"cluster.deploy.{field}={value} on {target}: {reason}")


def require_remote(machines: Machines, target: str, folders: tuple[str, ...] = ()) -> None:
    """Reject addresses of this machine, which rented machines and pods cannot see.

    Args:
        machines: The machines.
        target: The name of the target.
        folders: Absolute folders that all machines share.

    Raises:
        UserError: An address that the verb reads or writes is a path of this machine.
    """
    config = machines.config
    named = {"output": config.output, "shards": config.shards, "tracking.uri": config.tracking_uri}
    if machines.verb == "preprocess":
        data = resolved_tree(config)["data"]
        named |= {f"data.{split}": data[split] for split in ("train", "validation", "test")}
    elif config.model.init is not None:
        named["model.init.from"] = config.model.init.source
    for field, address in named.items():
        path = _path_here(address)
        if path is not None and not any(path.startswith(f"{folder}/") for folder in folders):
            server = field == "tracking.uri"
            mend = "name MLflow's server (https://…)" if server else "give a URL (s3://bucket/…)"
            if target == "kuberay":
                mend += ", or a folder of cluster.deploy.kuberay.volumes"
            raise UserError(
                f"{field}={address} on {target}: the machines do not have this machine's files; "
                f"{mend}"
            )


def _path_here(address: object) -> str | None:
    """Return the path of an address on this machine, or None if it is elsewhere or no address."""
    if not isinstance(address, str):
        return None
    if match := re.match(r"(sqlite|file|local):/*(/.*)", address):
        return match[2]
    return address if address.startswith("/") else None


def _refuse_secrets(config: Config) -> None:
    """Reject secrets in addresses, because the rendered files hold the configuration."""
    tree = resolved_tree(config)
    for section, value in tree.items():
        inner = value if isinstance(value, dict) else {}
        for field, text in inner.items() or [("", value)]:
            if redacted_tree(text) != text:
                mend = (
                    "name MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                    if section == "tracking"
                    else "name the variables with the keys"
                )
                name = f"{section}.{field}".strip(".")
                raise UserError(
                    f"{name} holds a password or a signature, which the rendered files would show; "
                    f"leave it out, and {mend} in cluster.deploy.secrets"
                )


def _label(name: str) -> str:
    """Return a name as Kubernetes and the clouds accept it: it starts with a letter."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_NAME].strip("-")
    return label if label[:1].isalpha() else f"p-{label}"[:_LONGEST_NAME].strip("-")
