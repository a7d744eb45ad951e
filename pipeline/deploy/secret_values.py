"""The values of `cluster.deploy.secrets`: whether they are where they should be."""

import os
import re
from pathlib import Path

from pipeline.config.deploy import DeployConfig
from pipeline.errors import UserError

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=")


def check_secrets_file(deploy: DeployConfig) -> None:
    """Check that the file of `cluster.deploy.secrets_file` has every name, and has no other reader.

    Raises:
        UserError: There is no such file, others may read it, or it lacks a name. No value is
            shown.
    """
    if deploy.secrets_file is None:
        return
    path, what = Path(deploy.secrets_file).expanduser(), "cluster.deploy.secrets_file"
    try:
        mode, lines = path.stat().st_mode, path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{what}={path}: it cannot be read: {reason}") from None
    if mode & 0o077:
        raise UserError(f"{what}={path}: others may read it; run 'chmod 600 {path}'")
    names = {match[1] for line in lines if (match := _LINE.match(line.strip()))}
    if missing := [name for name in deploy.secrets if name not in names]:
        raise UserError(f"{what}={path}: it has no line {missing[0]}=…; add one")


def require_secrets(deploy: DeployConfig | None) -> None:
    """Check that this machine's environment has every variable of `cluster.deploy.secrets`.

    Args:
        deploy: The section, or None.

    Raises:
        UserError: One is missing.
    """
    for name in deploy.secrets if deploy is not None else ():
        if not os.environ.get(name):
            raise UserError(
                f"cluster.deploy.secrets: {name} is not set on the cluster's machines; set it "
                "where they start (docs/cluster.md)"
            )
