"""Reports the protections of the decoders' sandbox on this machine, for `perceiver config`."""

from typing import Any

from pipeline.media.sandbox.sandbox import SandboxError, protections


def sandbox_here() -> dict[str, Any]:
    """Return the state of the sandbox on this machine, as JSON.

    Returns:
        `held`, the layers of each protection that has some, and `missing`, the reason for each that
        has none; or `error`, the reason why the sandbox does not start.
    """
    try:
        found = protections()
    except SandboxError as error:
        return {"error": str(error)}
    held = {name: layers for name, layers in found.layers.items() if layers}
    return {"held": held, "missing": found.missing}


def as_comments(here: dict[str, Any]) -> str:
    """Return the same as YAML comments, so that the printed text is still a configuration."""
    lines = ["the sandbox of decoders on this machine:"]
    lines += [f"  {name}: {', '.join(layers)}" for name, layers in here.get("held", {}).items()]
    lines += [f"  {name}: NOT HELD ({why})" for name, why in here.get("missing", {}).items()]
    if "error" in here:
        lines.append(f"  it does not start: {here['error']}")
    return "".join(f"# {line}\n" for line in lines)
