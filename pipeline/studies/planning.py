"""What a study runs: the configurations of its arms, their sets, and its trials."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pipeline.config.load import load_config, with_values
from pipeline.config.overrides import read_override
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.runs.console import Console
from pipeline.runs.tracking import source_tags
from pipeline.studies import costs, peers, works
from pipeline.studies.data import data_sections, fold_of, make_set
from pipeline.studies.positions import add_tables
from pipeline.studies.request import Request
from pipeline.studies.running import Trial
from pipeline.studies.study import Arm, Scale, Study
from pipeline.training.loaders import steps_per_epoch
from pipeline.training.open_shards import open_shards
from shards import ShardSet

PLACES = ("name", "output", "shards", "tracking", "registry", "study", "cluster", "seed")
"""The sections of a configuration that do not change what is learned. The seed is told apart."""


def base_config(request: Request, scale: Scale) -> Config:
    """Return the configuration that all arms start from."""
    config = load_config(scale.config, [f"output={request.output}"])
    name = f"study-{request.name}-{request.scale}"
    config = with_values(
        config,
        {
            **scale.values,
            "name": name,
            "study": None,
            "cluster.num_workers": 0,
            "cluster.address": None,
            "tracking.experiment": name,
            "tracking.system_metrics": False,
            **({"tracking.uri": request.tracking_uri} if request.tracking_uri else {}),
        },
    )
    config = load_overridden(config, request.overrides)
    # The trainings have folders of their own, and share the store.
    config = with_values(config, {"tracking.uri": config.tracking_uri})
    if config.trained_for is None or config.trained_for.kind != "classify":
        raise UserError("a study compares accuracies, and the overrides leave none to compare")
    return config


def load_overridden(config: Config, overrides: Sequence[str]) -> Config:
    """Return a configuration with overrides, as a command line gives them."""
    refused = ("name", "output", "shards", "seed", "study", "data.train", "data.test")
    values = dict(map(read_override, overrides))
    for path in values:
        is_place = path.startswith(("cluster.", "tracking.")) and path != "cluster.address"
        if path in refused or is_place or path.startswith("training.augment"):
            raise UserError(f"{path}: the study sets it itself; see 'perceiver study --help'")
    return with_values(config, values) if values else config


def bases_of(
    study: Study, scale: Scale, base: Config, overrides: Sequence[str]
) -> dict[str, Config]:
    """Return the configurations that a study's arms start from, by the name of their set.

    Args:
        study: The study.
        scale: The scale.
        base: The configuration from `base_config`.
        overrides: Changes to the configuration of all arms.
    """
    names = dict.fromkeys(arm.data for arm in study.arms)
    values = {name: {**data_sections(name), **scale.by_data.get(name, {})} for name in names}
    # What the person asks for changes what the scale does for one set, too.
    return {
        name: load_overridden(with_values(base, each), overrides) if each else base
        for name, each in values.items()
    }


def shard_sets(
    study: Study,
    bases: Mapping[str, Config],
    seeds: range,
    given: Path | None,
    folder: Path,
    console: Console,
) -> dict[tuple[str, int], ShardSet]:
    """Make the shard sets of a study's arms, with the position tables of all arms.

    Returns:
        The sets by name and fold.
    """
    data, sets = folder / "data", {}
    for arm in study.arms:
        config = arm.config(bases[arm.data])
        for fold in dict.fromkeys(fold_of(arm.data, seed) for seed in seeds):
            key = (arm.data, fold)
            if key not in sets:
                sets[key] = make_set(config, arm.data, fold, data, given, console)
            add_tables(sets[key], arm.data, config)
    return sets


def planned_trials(
    study: Study,
    bases: Mapping[str, Config],
    sets: Mapping[tuple[str, int], ShardSet],
    seeds: range,
    folder: Path,
    run: Any,
    device: str,
) -> list[Trial]:
    """Return the trials of a study: every arm from every seed, seed by seed.

    Raises:
        UserError: An arm cannot be trained on its set.
    """
    tags, trials = source_tags(), []
    for seed in seeds:
        for number, arm in enumerate(study.arms):
            shard_set = sets[arm.data, fold_of(arm.data, seed)]
            values = {"seed": seed, "shards": str(shard_set.location)}
            config = arm.config(bases[arm.data], values)
            if seed == seeds[0]:  # what no trial could train is refused before any begins
                steps_per_epoch(config, open_shards(config))
            digest = definition_digest(arm, config, shard_set.digest, device)
            name = f"{number:02d}-seed-{seed}-{digest[:10]}"
            config = with_values(config, {"name": name, "output": str(folder / "trainings")})
            trials.append(
                Trial(
                    arm.label,
                    seed,
                    config.model_dump_json(),
                    arm.peer,
                    arm.costs,
                    arm.work,
                    dict(arm.options),
                    digest,
                    str(folder / "results" / f"{name}.json"),
                    run,
                    {**tags, "perceiver.arm": arm.label, "perceiver.seed": str(seed)},
                )
            )
    return trials


def definition_digest(arm: Arm, config: Config, data_digest: str, device: str) -> str:
    """Return a digest of all that determines the result of a training.

    An arm whose digest has changed is trained anew. Its older results stay, and are not used.
    """
    tree = {key: value for key, value in config.tree().items() if key not in PLACES}
    tree["data"] = {k: v for k, v in tree["data"].items() if k not in ("train", "test")}
    text: dict[str, Any] = {
        "config": tree,
        "seed": config.seed,
        "data": data_digest,
        "set": arm.data,
        "peer": arm.peer,
        "peers": _sources(peers) if arm.peer else None,
        "device": device,
        "versions": [version("perceiver-pipeline"), torch.__version__],
    }
    if arm.costs:
        text["costs"] = hashlib.sha256(Path(costs.__file__).read_bytes()).hexdigest()
    if arm.work:
        text |= {"work": arm.work, "options": dict(arm.options), "works": _sources(works)}
        text["peers"] = _sources(peers)
    return hashlib.sha256(json.dumps(text, sort_keys=True, default=str).encode()).hexdigest()


def _sources(package: ModuleType) -> str:
    """Return the digest of a package's modules."""
    files = sorted(Path(str(package.__file__)).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
