"""The Dockerfile of the image that pods and rented machines run."""

import platform

from cluster.code_paths import PACKAGES, install_root
from pipeline.config.deploy import DeployConfig
from pipeline.config.tree import Config
from pipeline.errors import UserError

PLAIN = "debian:bookworm-slim"
CUDA = "nvidia/cuda:13.0.2-devel-ubuntu22.04"
"""DeepSpeed compiles its optimizers with the compiler of torch's CUDA."""
UV = "ghcr.io/astral-sh/uv:0.9"
COPIED = ("constraints.txt", "pyproject.toml", "README.md", "LICENSE", *PACKAGES)
"""What is copied from the checkout, which is the build's context."""
_FOR_TARGET = {
    "aws": (("s3",), ("boto3",)),
    "gcp": (("s3", "gcs"), ("google-api-python-client", "cryptography")),
}
"""The extras, and what Ray's launcher needs on the head."""


def render_dockerfile(config: Config, target: str) -> str:
    """Return the Dockerfile. It installs this package with the versions of `constraints.txt`.

    Args:
        config: The configuration.
        target: The name of the target.

    Raises:
        UserError: This is no checkout, which the build needs.
    """
    root = install_root()
    if missing := [name for name in COPIED if not (root / name).exists()]:
        raise UserError(
            f"Dockerfile: {root} has no {missing[0]}; the image is built from a checkout of this "
            "repository: run perceiver there, or use --only for the other files"
        )
    deploy = config.cluster.deploy or DeployConfig()
    extras, others = _FOR_TARGET.get(target, (("s3", "gcs"), ()))
    backend = "auto" if config.cluster.use_gpu else "cpu"
    base = deploy.base_image or (CUDA if config.cluster.use_gpu else PLAIN)
    packages = " ".join([f"'.[{','.join(extras)}]'", *others])
    torch = "" if config.cluster.use_gpu else f" --torch-backend={backend}"
    return f"""\
# Build it from the checkout: docker build -f Dockerfile -t IMAGE {root}
FROM {UV} AS uv
FROM {base}
# g++ and ninja compile DeepSpeed's optimizers, wget is for KubeRay's probes, and rsync and ssh are
# for Ray's launcher.
RUN apt-get update && apt-get install --yes --no-install-recommends \\
    bash ca-certificates g++ ninja-build openssh-client procps rsync wget \\
    && rm -rf /var/lib/apt/lists/*
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_LINK_MODE=copy UV_NO_CACHE=1
RUN uv venv --seed --python {platform.python_version()} /opt/perceiver
ENV VIRTUAL_ENV=/opt/perceiver PATH=/opt/perceiver/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /opt/source
{_copies()}
RUN uv pip install{torch} --constraint constraints.txt {packages}
# A login shell has another PATH.
RUN ln -s /opt/perceiver/bin/ray /opt/perceiver/bin/perceiver /usr/local/bin/
WORKDIR /root
"""


def _copies() -> str:
    files = [name for name in COPIED if name not in PACKAGES]
    lines = [f"COPY {' '.join(files)} ./", *(f"COPY {name} {name}" for name in PACKAGES)]
    return "\n".join(lines)
