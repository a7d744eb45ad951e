"""The position of a loader: small enough for any checkpoint, and tied to one order of samples."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from shards.errors import ShardError

STATE_FORMAT = 1
_MAX = 1 << 62
_OPTIONAL = ("lanes", "balance", "nodes")
"""The fields that a state leaves out where they have their default values."""


@dataclass(frozen=True, kw_only=True)
class LoaderState:
    """A position in an epoch. It is independent of the world size and the number of workers.

    Attributes:
        digest: The digest of the shard set.
        split: The split of the set.
        seed: The seed of the order; see `epoch_positions`.
        shuffle: Whether the order is shuffled.
        window: The number of shards shuffled together, None for all.
        epoch: The epoch, from 0.
        samples: The samples of this epoch that all ranks together have received so far. Of streams,
            the positions of `LaneOrder`, with the empty ones.
        lanes: The number of lanes and of parts in a step, of a loader of streams; None for others.
        balance: How evenly classes are drawn, as in `BalancedOrder`. A state without it, which may
            be older than it, means 0.
        nodes: The parts of the set that each global batch is taken from, as in `NodeOrder`. A state
            without it means 1.
    """

    digest: str
    split: str
    seed: int
    shuffle: bool
    window: int | None
    epoch: int
    samples: int
    lanes: tuple[int, int] | None = None
    balance: float = 0.0
    nodes: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return this state as a dictionary for JSON."""
        content = {"format": STATE_FORMAT, **asdict(self)}
        for field in fields(self):
            if field.name in _OPTIONAL and content[field.name] == field.default:
                del content[field.name]
        return content

    @classmethod
    def from_dict(cls, content: Any) -> Self:
        """Read a state that `to_dict` returned.

        Raises:
            ShardError: The format is another, or fields are missing, unknown or of other types.
        """
        if not isinstance(content, dict) or content.get("format") != STATE_FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ShardError(
                f"loader state: format {found!r} instead of {STATE_FORMAT}; "
                "give what ShardLoader.state_dict returned"
            )
        values = {name: value for name, value in content.items() if name != "format"}
        names = {field.name for field in fields(cls)}
        if odd_names := {*values, *_OPTIONAL} ^ names:
            odd = ", ".join(sorted(map(str, odd_names)))
            raise ShardError(f"loader state: missing or unknown fields: {odd}; take another state")
        for name, value in values.items():
            if not _has_type(name, value):
                raise ShardError(
                    f"loader state: {name} {value!r} has another type, or is negative or huge; "
                    "take another state"
                )
        if "lanes" in values:
            values["lanes"] = tuple(values["lanes"])
        return cls(**values)

    def check_same_order(self, other: Self) -> None:
        """Raise ShardError unless `other`, the loader's own state, has the same order."""
        for name in ("digest", "split", "seed", "shuffle", "window", "lanes", "balance", "nodes"):
            saved, own = getattr(self, name), getattr(other, name)
            if saved != own:
                raise ShardError(
                    f"loader state: its {name} is {saved!r} and the loader's is {own!r}; resume "
                    f"with the state's {name}, or begin a new run without this state"
                )


def _has_type(name: str, value: Any) -> bool:
    if name in ("digest", "split"):
        return isinstance(value, str)
    if name == "shuffle":
        return isinstance(value, bool)
    if name == "lanes":
        is_pair = isinstance(value, list | tuple) and len(value) == 2
        return is_pair and all(_has_type("window", part) and part is not None for part in value)
    if name == "window" and value is None:
        return True
    if name == "balance":
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    smallest = {"window": 1, "epoch": 0, "samples": 0, "nodes": 1}.get(name, -_MAX)
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and smallest <= value <= _MAX
