"""What every section of the configuration has in common, and how two trees of values differ."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class ConfigBase(BaseModel):
    """Base of every section: frozen, strictly typed, closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def differences(then: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first three fields in which two flat trees differ, in words; None where in none."""
    changed = [
        f"{field} was {then.get(field)!r}, is {now.get(field)!r}"
        for field in sorted(then.keys() | now.keys())
        if then.get(field) != now.get(field)
    ]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return "; ".join(changed[:3]) + more if changed else None
