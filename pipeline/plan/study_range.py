"""The range of a study: the smallest and the largest trial over the corners of its search space."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.config.conditions import Settings, Space, contexts, existing, in_order
from pipeline.config.study import StudyConfig
from pipeline.config.tree import Config
from pipeline.config.trial_configs import draw_settings, study_base, trial_config
from pipeline.errors import UserError
from pipeline.plan.devices import GIB
from pipeline.plan.planned_set import PlannedSet
from pipeline.plan.planned_training import plan_training
from pipeline.plan.request import Request

MAX_CORNERS = 16
"""Each takes up to a second or two. A space with more corners is searched field by field."""
FIGURES = ("parameters", "memory", "step_seconds", "seconds")


@dataclass(frozen=True)
class Corner:
    """A trial with extreme values of the searched fields.

    Attributes:
        settings: The values.
        parameters: The number of trained parameters.
        memory: The bytes that one worker takes at its peak.
        step_seconds: The time of an optimizer step.
        seconds: The time of the whole training; None if the number of samples is not known.
        device: The name of the device.
        device_memory: The bytes that the device has.
        fits: Whether the memory fits the device.
    """

    settings: Settings
    parameters: int
    memory: int
    step_seconds: float
    seconds: float | None
    device: str
    device_memory: int
    fits: bool


@dataclass(frozen=True)
class StudyRange:
    """The range of a study.

    Attributes:
        study: The section `study`.
        epochs: The epochs of a trial that is not stopped.
        fields: The searched fields that change each figure by themselves.
        others: The searched fields that change none.
        corners: The trials at the corners of the space of `fields`.
        whole: Whether these are all corners. If not, each field's extremes were found alone.
        refused: Why some corners are no trainings, each reason once.
        price: The price of one device for an hour; None if it is not known.
    """

    study: StudyConfig
    epochs: int
    fields: dict[str, list[str]]
    others: list[str]
    corners: list[Corner]
    whole: bool
    refused: list[str]
    price: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the range as `perceiver plan --json` shows it."""
        found: dict[str, Any] = {
            "trials": self.study.trials,
            "workers": self.study.num_workers,
            "epochs": self.epochs,
            "fields": sorted({field for fields in self.fields.values() for field in fields}),
            "fields_without_effect": self.others,
            "corners": len(self.corners),
            "all_corners": self.whole,
            "refused": self.refused,
        }
        for name in FIGURES:
            known = [each for each in self.corners if getattr(each, name) is not None]
            if known:
                ends = {"smallest": min, "largest": max}
                found[name] = {
                    end: self._value(pick(known, key=lambda each: getattr(each, name)), name)
                    for end, pick in ends.items()
                }
        if "seconds" in found:
            seconds = found["seconds"]["largest"]["value"]
            hours = self.study.trials * self.study.num_workers * seconds / 3600
            found["most_device_hours"] = hours
            if self.price is not None:
                found["most_cost"] = hours * self.price
        return found

    def _value(self, corner: Corner, name: str) -> dict[str, Any]:
        """Return a figure of a corner, with the values of the fields that change it."""
        settings = {field: corner.settings[field] for field in self.fields[name]
                    if field in corner.settings}  # fmt: skip
        return {"value": getattr(corner, name), "settings": settings}


def study_range(config: Config, planned: PlannedSet, request: Request) -> StudyRange | None:
    """Return the range of a configuration's study; None if it has no section `study`.

    Args:
        config: The configuration.
        planned: The shard set, or what is known of it.
        request: What else is asked.
    """
    study = config.study
    if study is None:
        return None
    base = study_base(config, study)
    known: dict[str, Corner | str] = {}

    def at(settings: Settings) -> Corner | str:
        key = repr(sorted(settings.items()))
        if key not in known:
            known[key] = _corner(base, settings, planned, request)
        return known[key]

    ends = {field: _ends(study.space, field) for field in in_order(study.space)}
    alone = {
        field: [at({**next(contexts(study.space, field)), field: value}) for value in values]
        for field, values in ends.items()
    }
    by_figure = {
        name: [field for field, found in alone.items() if _has_effect(found, name)]
        for name in FIGURES
    }
    has_effect = {field for field in ends if any(field in each for each in by_figure.values())}
    conditions = {other for field in has_effect for other in _above(study.space, field)}
    fields = [field for field in ends if field in has_effect | conditions]
    size = math.prod(len(ends[field]) for field in fields)
    whole = size <= MAX_CORNERS
    settings = (
        (dict(zip(fields, values, strict=True))
         for values in itertools.product(*(ends[field] for field in fields)))
        if whole
        else _extremes({field: alone[field] for field in fields})
    )  # fmt: skip
    corners = (existing(study.space, each) for each in settings)
    found = [at(each) for each in {repr(sorted(each.items())): each for each in corners}.values()]
    return StudyRange(
        study=study,
        epochs=base.training.epochs,
        fields=by_figure,
        others=[field for field in ends if field not in fields],
        corners=[each for each in found if isinstance(each, Corner)],
        whole=whole,
        refused=sorted({each for each in found if isinstance(each, str)}),
        price=request.price,
    )


def problems_of_study(config: Config, found: StudyRange | None) -> list[str]:
    """Return what is wrong with the trials of a study.

    Args:
        config: The configuration.
        found: What `study_range` returned.
    """
    if found is None:
        return []
    problems = []
    base = study_base(config, found.study)
    for number, settings in enumerate(draw_settings(found.study, config.seed)):
        try:
            trial_config(base, settings)
        except UserError as error:
            problems.append(f"study: settings {number + 1} ({told(settings)}) are refused: {error}")
            break
    too_large = [each for each in found.corners if not each.fits]
    if too_large:
        worst = max(too_large, key=lambda each: each.memory)
        problems.append(
            f"study: with {told(worst.settings)} one worker needs {worst.memory / GIB:.1f} GiB, "
            f"and {worst.device} has {worst.device_memory / GIB:.1f}; narrow study.space, or raise "
            "training.gradient_accumulation_steps or study.num_workers"
        )
    return problems


def told(settings: Settings, *, short: bool = False) -> str:
    """Return the values of fields in one line.

    Args:
        settings: The values by their fields' dotted paths.
        short: Whether to show the last word of each path only.
    """
    names = {field: field.rpartition(".")[2] if short else field for field in settings}
    return ", ".join(f"{names[field]}={value}" for field, value in settings.items()) or "any values"


def _corner(
    base: Config, settings: Settings, planned: PlannedSet, request: Request
) -> Corner | str:
    """Return the figures of a trial, or why there can be none."""
    try:
        config = trial_config(base, settings)
        training = plan_training(config, planned, request.device_of(config))
    except UserError as error:
        return str(error)
    memory = training.memory(config.zero_stage).peak
    step, steps = training.step_time(request.mfu).total, training.steps_per_epoch
    return Corner(
        settings=settings,
        parameters=training.trained,
        memory=memory,
        step_seconds=step,
        seconds=None if steps is None else steps * config.training.epochs * step,
        device=training.device.name,
        device_memory=training.device.memory,
        fits=memory <= training.room,
    )


def _ends(space: Space, field: str) -> list[Any]:
    """Return the smallest and the largest value, or all of them if they are not all numbers.

    The values that conditions of other fields name are among them.
    """
    named = [value for each in space.values() for value in each.when.get(field, ())]
    ends = space[field].ends
    if not any(isinstance(value, bool | str) for value in ends):
        ends = (min(ends), max(ends))
    return list(dict.fromkeys([*ends, *named]))


def _above(space: Space, field: str) -> set[str]:
    """Return the fields that the condition of a field names, and theirs."""
    return {each for other in space[field].when for each in (other, *_above(space, other))}


def _has_effect(found: list[Corner | str], name: str) -> bool:
    """Return whether a field's values change a figure, or are not all possible."""
    return len({each if isinstance(each, str) else getattr(each, name) for each in found}) > 1


def _extremes(alone: dict[str, list[Corner | str]]) -> Iterator[Settings]:
    """Yield the settings whose values each make a figure smallest, or largest, by themselves."""
    possible = {
        field: [each for each in found if isinstance(each, Corner)]
        for field, found in alone.items()
    }
    for name in FIGURES:
        for pick in (min, max):
            settings: Settings = {}
            for found in possible.values():
                if found and getattr(found[0], name) is not None:
                    settings |= pick(found, key=lambda each: getattr(each, name)).settings
            yield settings
