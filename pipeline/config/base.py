"""The base of all sections of the configuration, and how two trees of values differ."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class ConfigBase(BaseModel):
    """The base of every section. It is frozen and strictly typed, and refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def differences(then: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Name the first three fields that differ between two flat trees; None if none does."""
    changed = [
        f"{field} was {then.get(field)!r}, is {now.get(field)!r}"
        for field in sorted(then.keys() | now.keys())
        if then.get(field) != now.get(field)
    ]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return "; ".join(changed[:3]) + more if changed else None
