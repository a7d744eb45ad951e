"""Start a training from weights: the driver finds and saves them, and every worker loads them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from cluster.divided_model import fill_own
from perceiver_model.config_checks import flatten, write_config
from pipeline.config.folders import Folder
from pipeline.config.init import InitConfig
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.training.initial_weights.matching import InitPlan, TensorKind, plan_init
from pipeline.training.initial_weights.saved import (
    SavedInit,
    digest_of,
    kinds_of,
    read_init,
    save_init,
)
from pipeline.training.initial_weights.sources import InitSource, read_source
from pipeline.training.objectives import Objective, objective_of
from shards import ShardSet
from shards.redaction import redacted_tree

SAME_SHAPES = (
    "encoder.num_blocks", "encoder.num_cross_attends", "encoder.num_cross_heads",
    "encoder.num_self_heads", "encoder.gelu", "encoder.share_cross_attends",
    "encoder.share_self_attends", "encoder.cross_attend_layout", "decoder.num_heads",
    "decoder.query_residual", "decoder.gelu", "positions.num_bands", "positions.max_resolution",
)  # fmt: skip
"""The settings that change what a model computes with its tensors, but not always their shapes."""


@dataclass(frozen=True)
class FoundInit:
    """The weights that a training starts from, as the driver knows them.

    Attributes:
        config: The section `model.init`.
        origin: What was read, in words.
        sha256: The digest of the tensors.
        kinds: The shapes of the tensors, by name.
        settings: The settings of the source's model, by dotted names.
        source: The weights; None if the copy in the run folder is used.
    """

    config: InitConfig
    origin: str
    sha256: str
    kinds: Mapping[str, TensorKind]
    settings: Mapping[str, Any]
    source: InitSource | None

    def saved(self, folder: Folder) -> "FoundInit":
        """Write the weights into the run folder, unless its copy is used.

        Returns:
            The same, with the weights only in the folder and not in memory.

        Raises:
            UserError: The folder cannot be written.
        """
        if self.source is not None:
            save_init(folder, self.source, self.sha256)
        return replace(self, source=None)

    def plan(self, config: Config, shard_set: ShardSet) -> InitPlan:
        """Return what a training with a configuration loads, freezes and scales.

        Raises:
            UserError: `model.init` does not fit the model.
        """
        assert config.model.init is not None
        model = skeleton_of(objective_of(config, shard_set))
        return _plan(config.model.init, self.kinds, model)

    def odd_settings(self, objective: Objective) -> list[str]:
        """Return the settings that differ although the shapes of tensors may agree, in words."""
        own = flatten(write_config(objective.model_config))
        return [
            f"{name} is {self.settings[name]} in the source, and {own[name]} in the model"
            for name in SAME_SHAPES
            if name in own.keys() & self.settings.keys()
            if _plain(own[name]) != _plain(self.settings[name])
        ]


def find_init(
    config: Config, folder: Folder, console: Console, *, fresh: bool = False
) -> FoundInit | None:
    """Find the weights of `model.init.from`; None if a training starts from new ones.

    A training that goes on needs its source no more: it uses its own copy if the source cannot be
    read, or if an alias has moved to another version.

    Args:
        config: The configuration.
        folder: The folder of the training or study.
        console: The console, which shows notes.
        fresh: Whether the copy in the folder will be deleted.

    Raises:
        UserError: There are no such weights.
    """
    init = config.model.init
    if init is None:
        return None
    saved = None if fresh else read_init(folder)
    if saved is not None and saved.address != redacted_tree(init.source):
        saved = None
    try:
        source = read_source(init, config.tracking_uri)
    except UserError as error:
        if saved is None:
            raise
        console.notice(f"{error}; going on with the copy in {folder}")
        return _of_copy(init, saved)
    sha256 = digest_of(source.tensors)
    if saved is not None and saved.sha256 != sha256 and init.can_move:
        console.notice(
            f"{init.source} is now {source.origin}; this training goes on with {saved.origin}, "
            "from which it started"
        )
        return _of_copy(init, saved)
    return FoundInit(init, source.origin, sha256, kinds_of(source.tensors), source.settings, source)


def saved_init(config: Config, folder: Folder) -> FoundInit | None:
    """Return the weights that are saved in the folder of a study; None without `model.init`.

    Raises:
        UserError: The copy is missing or damaged.
    """
    if config.model.init is None:
        return None
    return _of_copy(config.model.init, _saved(config.model.init, folder))


def _saved(init: InitConfig, folder: Folder) -> SavedInit:
    saved = read_init(folder)
    if saved is None:
        raise UserError(
            f"{folder}: has no copy of the weights of model.init.from={init.source}; start this "
            "again with --fresh"
        )
    return saved


def _of_copy(init: InitConfig, saved: SavedInit) -> FoundInit:
    saved.check()
    return FoundInit(init, saved.origin, saved.sha256, saved.kinds(), saved.settings, None)


def start_from(
    model: nn.Module, init: InitConfig | None, folder: Folder, *, load: bool
) -> InitPlan:
    """Load the saved weights into a new model, and freeze what is not to be trained.

    Each rank reads only what it holds: at ZeRO stage 3, a part of the weights that are divided
    already. Rank 0 also reads the whole file once to check it, a bounded piece at a time.

    Args:
        model: The model, on its device.
        init: The section `model.init`, if there is one.
        folder: The folder with the copy of the weights.
        load: Whether to load. A training that resumes only freezes.

    Raises:
        UserError: The copy is missing or damaged, or does not fit the model.
    """
    if init is None:
        return InitPlan()
    saved = _saved(init, folder) if load else None
    plan = _plan(init, saved.kinds() if saved else None, model)
    if saved is not None:
        if dist.get_rank() == 0:
            saved.check()
        state = model.state_dict(keep_vars=True)
        with saved.open() as stored:
            for name in plan.names("loaded"):
                fill_own(state[name], partial(stored.read, name))
    for name in plan.frozen:
        model.get_parameter(name).requires_grad_(False)
    return plan


def skeleton_of(objective: Objective) -> nn.Module:
    """Return the model of an objective without memory for its weights."""
    with torch.device("meta"):
        return objective.build_model()


def _plan(init: InitConfig, kinds: Mapping[str, TensorKind] | None, model: nn.Module) -> InitPlan:
    parameters = dict(model.named_parameters())
    untrained = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    return plan_init(init, kinds, kinds_of(model.state_dict(keep_vars=True)), parameters, untrained)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
