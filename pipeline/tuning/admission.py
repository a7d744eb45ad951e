"""Which settings a study can train: they are looked at before a trial of them begins."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.config.conditions import Settings
from pipeline.config.tree import Config
from pipeline.config.trial_configs import trial_config
from pipeline.errors import UserError
from pipeline.preprocess.identity import needed_positions
from pipeline.preprocess.position_tables import add_missing_tables
from pipeline.runs.console import Console
from pipeline.training.loaders import steps_per_epoch
from pipeline.tuning.trial_costs import beyond, counted_costs
from shards import PositionSpec, ShardSet


class Admission:
    """Looks at settings before they are trained.

    Args:
        base: The configuration that every trial starts from.
        shard_set: The shard set.
        console: The console, which is told of position tables that are added to the set.
    """

    def __init__(self, base: Config, shard_set: ShardSet, console: Console) -> None:
        self._base, self._shard_set, self._console = base, shard_set, console
        self._tables: set[PositionSpec] = set()
        self._known: dict[str, dict[str, float]] = {}
        self._samples: dict[str, int] = {}

    def refuses(self, settings: Settings) -> str | None:
        """Return why settings cannot be trained; None if they can.

        Position tables that they need are added to the shard set.

        Raises:
            ShardError: The set lacks tables and cannot be written.
        """
        try:
            config = trial_config(self._base, settings)
            self.samples_per_epoch(settings)
            counted = self.costs(settings)
            if self._base.study is not None:
                limits = self._base.study.limits
                if broken := beyond(limits, counted, config, self._shard_set):
                    return broken
        except (UserError, ValueError) as error:
            return str(error).splitlines()[0]
        missing = set(needed_positions(config)) - self._tables
        if missing:
            opened = ShardSet.open(config.shards_folder, config.data.remote_reading)
            add_missing_tables(opened, missing, self._console)
            self._tables |= missing
        return None

    def samples_per_epoch(self, settings: Settings) -> int:
        """Return the number of samples on which an epoch with these settings trains.

        Raises:
            UserError: The settings do not go together, or a batch is larger than the set.
        """
        key = _key(settings)
        if key not in self._samples:
            config = trial_config(self._base, settings)
            steps = steps_per_epoch(config, self._shard_set)
            self._samples[key] = steps * config.training.batch_size
        return self._samples[key]

    def costs(self, settings: Settings) -> Mapping[str, float]:
        """Return the `flops` of the forward pass of a sample, and the number of `parameters`.

        Raises:
            UserError: The settings do not go together.
        """
        key = _key(settings)
        if key not in self._known:
            self._known[key] = counted_costs(trial_config(self._base, settings), self._shard_set)
        return self._known[key]


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
