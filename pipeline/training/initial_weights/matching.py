"""Which tensors of a source fit a model, and which parameters patterns choose.

The functions here are pure: they see names and shapes, and no tensors.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from pipeline.config.init import InitConfig
from pipeline.errors import UserError

NAMED = 5
"""How many names an error lists."""


class TensorKind(NamedTuple):
    """What must agree between a tensor of the source and one of the model.

    Attributes:
        shape: The shape.
        is_floating: Whether the dtype is floating-point.
    """

    shape: tuple[int, ...]
    is_floating: bool = True


@dataclass(frozen=True)
class MatchedTensor:
    """What became of one tensor.

    Attributes:
        name: The name in the model's state dict, or in the source's.
        state: `loaded`; `skipped` if the source has it and it does not fit; `new` if only the model
            has it.
        shape: The model's shape; None if the model has no such tensor.
        reason: Why it was not loaded; empty if it was.
    """

    name: str
    state: Literal["loaded", "skipped", "new"]
    shape: tuple[int, ...] | None
    reason: str = ""


@dataclass(frozen=True)
class InitPlan:
    """What a training starts from, and what it trains.

    Attributes:
        tensors: Every tensor of the model and of the source; empty if nothing is to be loaded.
        frozen: The parameters that are not trained.
        rate_scales: The factor of the learning rate of each parameter that does not have 1.
    """

    tensors: tuple[MatchedTensor, ...] = ()
    frozen: frozenset[str] = frozenset()
    rate_scales: Mapping[str, float] = field(default_factory=dict)

    def names(self, state: str) -> list[str]:
        """Return the names of the tensors with a state."""
        return [tensor.name for tensor in self.tensors if tensor.state == state]


def match_tensors(
    source: Mapping[str, TensorKind], model: Mapping[str, TensorKind]
) -> tuple[MatchedTensor, ...]:
    """Compare the tensors of a source with those of a model by their names.

    Args:
        source: The tensors of the source.
        model: The tensors of the model's state dict: its parameters and buffers.

    Returns:
        The model's tensors in their order, then those that only the source has.
    """
    found = [_match(name, source.get(name), kind) for name, kind in model.items()]
    left = [name for name in source if name not in model]
    return (*found, *(MatchedTensor(n, "skipped", None, "the model has none") for n in left))


def _match(name: str, given: TensorKind | None, own: TensorKind) -> MatchedTensor:
    if given is None:
        return MatchedTensor(name, "new", own.shape, "the source has none")
    if given == own:
        return MatchedTensor(name, "loaded", own.shape)
    if given.shape == own.shape:
        reason = "integers" if own.is_floating else "floating-point numbers"
        return MatchedTensor(name, "skipped", own.shape, f"{reason} in the source")
    return MatchedTensor(name, "skipped", own.shape, f"{list(given.shape)} in the source")


def plan_init(
    init: InitConfig,
    source: Mapping[str, TensorKind] | None,
    model: Mapping[str, TensorKind],
    parameters: Iterable[str],
    untrained: Collection[str] = (),
) -> InitPlan:
    """Decide what is loaded, frozen, and trained at which rate.

    Args:
        init: The section `model.init`.
        source: The tensors of the source; None if nothing is to be loaded, because the training
            resumes.
        model: The tensors of the model's state dict.
        parameters: The names of the model's parameters.
        untrained: The parameters that the model itself does not train.

    Raises:
        UserError: Nothing fits, a pattern matches nothing or contradicts another one, a tensor does
            not fit and `strict` is set, or a frozen parameter would keep its random values.
    """
    names = list(parameters)
    frozen = {
        name
        for pattern in init.freeze
        for name in _matching(pattern, names, f"model.init.freeze: {pattern!r}")
    }
    trained = [name for name in names if name not in frozen and name not in untrained]
    if not trained:
        raise UserError("model.init.freeze: matches every parameter, so nothing would be trained")
    scales = _rate_scales(init, names, trained)
    if source is None:
        return InitPlan((), frozenset(frozen), scales)
    plan = InitPlan(match_tensors(source, model), frozenset(frozen), scales)
    _check_loaded(init, plan, source)
    if random := sorted(frozen.difference(plan.names("loaded"))):
        raise UserError(
            f"model.init.freeze: {_listed(random)} cannot be loaded from {init.source}, so "
            "random values would be frozen; narrow the patterns"
        )
    return plan


def _check_loaded(init: InitConfig, plan: InitPlan, source: Collection[str]) -> None:
    if not plan.names("loaded"):
        raise UserError(
            f"model.init.from={init.source}: none of its {len(source)} tensors fits the model; it "
            f"has {_listed(sorted(source))}, and the model has "
            f"{_listed([t.name for t in plan.tensors if t.shape is not None])}"
        )
    if init.strict and (odd := [t for t in plan.tensors if t.state != "loaded"]):
        texts = [f"{t.name} ({t.reason}{_own(t)})" for t in odd]
        raise UserError(
            f"model.init.from={init.source}: {len(odd)} tensors do not fit the model: "
            f"{_listed(texts)}; set model.init.strict=false to load only those that fit"
        )


def _rate_scales(init: InitConfig, names: list[str], trained: list[str]) -> dict[str, float]:
    scales: dict[str, float] = {}
    chosen_by: dict[str, str] = {}
    for pattern, factor in init.learning_rate_scale.items():
        where = f"model.init.learning_rate_scale: {pattern!r}"
        matching = _matching(pattern, names, where)
        own = [name for name in matching if name in trained]
        if not own:
            raise UserError(f"{where} matches only parameters that are not trained")
        for name in own:
            if name in chosen_by:
                raise UserError(
                    f"{where} and {chosen_by[name]!r} both match {name}; give patterns that do not "
                    "overlap"
                )
            chosen_by[name] = pattern
            scales[name] = factor
    return {name: factor for name, factor in scales.items() if factor != 1}


def _matching(pattern: str, names: list[str], where: str) -> list[str]:
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        parts = sorted({name.partition(".")[0] + ".*" for name in names if "." in name})
        raise UserError(
            f"{where} matches no parameter of the model; its parameters match {', '.join(parts)}"
        )
    return found


def _own(tensor: MatchedTensor) -> str:
    in_both = tensor.state == "skipped" and tensor.shape is not None
    return f", {list(tensor.shape or ())} in the model" if in_both else ""


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return ", ".join(texts[:NAMED]) + more
