"""Search spaces by name, scaled to a configuration's own model and data."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from perceiver_model.config import FourierConfig
from perceiver_model.flops import num_tokens
from perceiver_model.tokens_config import TokensConfig
from pipeline.config.tree import Config
from pipeline.errors import UserError

ENCODER, AUTOREGRESSIVE, BANDS = (
    "model.encoder",
    "model.autoregressive",
    "model.positions.num_bands",
)
Validate = Callable[[dict[str, Any], str], Config]


def with_named_space(tree: dict[str, Any], source: str, validate: Validate) -> dict[str, Any]:
    """Return a tree whose `study.space`, if it is a name, is the space of that name.

    Args:
        tree: The sections of the configuration. It is not changed.
        source: The name of the configuration, for errors.
        validate: Makes a configuration of a tree, or raises UserError.

    Raises:
        UserError: There is no space of that name, or the rest of the tree is no configuration.
    """
    study = tree.get("study")
    if not isinstance(study, dict) or not isinstance(name := study.get("space"), str):
        return tree
    if name not in NAMED_SPACES:
        raise UserError(
            f"{source}: study.space is {name!r}; give the values of each field, or the name of a "
            f"space: {', '.join(NAMED_SPACES)}"
        )
    config = validate({**tree, "study": None}, source)
    space = {}
    for field, values in NAMED_SPACES[name](config, source):
        # Each value by itself. Those that do not go together are refused as trials.
        kept = [value for value in values if _holds(config, field, value, source, validate)]
        if len(kept) > 1:
            space[field] = {"choice": kept}
    return {**tree, "study": {**study, "space": space}}


def _holds(config: Config, field: str, value: Any, source: str, validate: Validate) -> bool:
    """Return whether a configuration may have another value of a field."""
    tree = copy.deepcopy(config.tree())
    *path, last = field.split(".")
    section = tree
    for key in path:
        section = section[key]
    section[last] = value
    try:
        validate(tree, source)
    except UserError:
        return False
    return True


def _perceiver(config: Config, source: str) -> Iterator[tuple[str, list[int]]]:
    """Yield what the papers' ablations vary: latents, their width, the depth, and the bands.

    Perceiver (arXiv 2103.03206), appendix D. Each value is the configuration's own, smaller or
    larger. No other value has more latents than half of the tokens, or more bands than a grid can
    tell apart.
    """
    if config.trained_for is None:
        raise UserError(
            f"{source}: study.space=perceiver needs to know what is trained; set objective.kind"
        )
    model: Any = config.trained_for.model(config, num_classes=2)
    tokens = num_tokens(model)
    part = ENCODER if hasattr(model, "encoder") else AUTOREGRESSIVE
    own = model.encoder if part == ENCODER else model
    width = "latent_dim" if part == ENCODER else "channels"
    most = max(tokens // 2, 1)
    latents = {min(most, max(1, own.num_latents * 2**power // 4)) for power in range(5)}
    yield f"{part}.num_latents", sorted({own.num_latents} | latents)
    yield f"{part}.{width}", _around(getattr(own, width))
    for depth in ("num_blocks", "num_cross_attends", "num_self_attends"):
        if hasattr(own, depth):
            yield f"{part}.{depth}", _around(getattr(own, depth))
    if isinstance(model, TokensConfig) and isinstance(model.positions, FourierConfig):
        most = max(1, max(model.token_grids[0]) // 2)
        bands = model.positions.num_bands
        yield BANDS, sorted({bands} | {min(most, each) for each in _around(bands)})


def _around(value: int) -> list[int]:
    """Return half of a value, the value itself, and twice of it."""
    return sorted({max(1, value // 2), value, 2 * value})


NAMED_SPACES = {"perceiver": _perceiver}
"""The spaces by name. Each yields dotted fields and the values that they may have."""
