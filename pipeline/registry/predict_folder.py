"""Predict any number of inputs to a folder of Parquet parts by Ray Data; a kill costs a few."""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import ClusterError
from cluster.placement import Place, capacity, missing_for
from cluster.ray_session import ray_session
from pipeline.config.base import differences
from pipeline.config.folders import Folder
from pipeline.errors import UserError
from pipeline.registry.predict_inputs import Inputs, are_more
from pipeline.registry.predict_part import (
    MAX_SHOWN,
    PartActor,
    PartFacts,
    Weights,
    facts_of,
    make_part,
    part_name,
)
from pipeline.registry.predict_plan import FOLDER, PART_INPUTS, Plan, write_plan
from pipeline.registry.predict_reading import AT_ONCE
from pipeline.runs.console import Console
from pipeline.runs.records import write_json
from pipeline.runs.run_lock import run_lock
from pipeline.runs.storage import exists, names, read_bytes, remove, remove_folder
from shards.files import is_temporary

STATE_FILE = "_predictions.json"
INPUTS_HERE = 2 * PART_INPUTS
"""So many inputs are predicted by the calling process. Starting Ray would take longer."""
MAX_BLOCKS = 10_000
"""Ray Data keeps a few bytes for each block. More parts share blocks."""
_MAX_STATE_BYTES = 1 << 20
_MAX_PART_BYTES = 1 << 32


@dataclass(frozen=True)
class Request:
    """What is predicted, and by whom.

    Attributes:
        model_uri: The model's version; never an alias, which may move.
        digest: The sha256 of the model's card and weights.
        inputs: The inputs.
        folder: The folder of the predictions.
        workers: The number of processes; 0 for the calling one; None chooses.
        address: The Ray cluster to join; None starts Ray on this machine.
        fresh: Whether to replace earlier predictions.
    """

    model_uri: str
    digest: str
    inputs: Inputs
    folder: Folder
    workers: int | None = None
    address: str | None = None
    fresh: bool = False


def predict_to_folder(request: Request, model: Weights, console: Console) -> dict[str, Any]:
    """Write the predictions of all inputs, in order, as Parquet files of `PART_INPUTS` rows.

    A part appears whole. If the command is killed, the same command makes the parts that are
    missing, and the files are those of a command that was not killed.

    Args:
        request: What is predicted, and by whom.
        model: The model.
        console: The console, which shows the progress.

    Returns:
        `to`, `files` (the number of inputs), `parts`, `bad`, `bad_files` (`source` and `error` of
        the first ones), `made` (the number of parts that this call has made) and `skipped`.

    Raises:
        UserError: The folder has other predictions or other files, or an input cannot be listed.
        ClusterError: The cluster has no room for a worker.
    """
    if isinstance(request.folder, Path):  # Ray's workers work in another folder
        request = replace(request, folder=request.folder.absolute())
    folder = request.folder
    _refuse_foreign(folder)
    with run_lock(folder / ".predict.lock", str(folder), console.notice):
        if request.fresh:
            _clear(folder)
        if isinstance(folder, Path):
            _remove_temporaries(folder)
        return _predict(request, model, console)


def _predict(request: Request, model: Weights, console: Console) -> dict[str, Any]:
    folder, uses_ray = request.folder, request.workers
    if uses_ray is None:
        uses_ray = int(are_more(request.inputs, INPUTS_HERE))
    with ray_session(request.address) if uses_ray else nullcontext():
        plan = _list_by_ray(request) if uses_ray else write_plan(request.inputs, folder)
        if not plan.inputs:
            remove_folder(folder / FOLDER)
            raise UserError(f"{', '.join(request.inputs.given)}: no files there")
        skipped = _begin(request, plan)
        there = {*names(folder, ".parquet")}
        missing = [part for part in range(plan.parts) if part_name(part) not in there]
        with console.bar("predict", plan.inputs, "files") as bar:
            bar.skip(plan.inputs - _inputs_of(missing, plan))
            made = (
                _by_ray(request, plan, model, missing)
                if uses_ray and missing
                else _here(request, plan, model, missing)
            )
            facts = {}
            for each in made:
                bar.advance(each.inputs)
                if each.bad:
                    facts[each.part] = each
    earlier = ({*range(plan.parts)} - {*missing}) if plan.parts - len(missing) else set()
    facts |= {part: read for part in earlier if (read := _read_facts(folder, part)).bad}
    bad = [named for _, each in sorted(facts.items()) for named in each.shown][:MAX_SHOWN]
    _write_state(request, plan, done=True)
    remove_folder(folder / FOLDER)
    return {
        "to": str(folder),
        "files": plan.inputs,
        "parts": plan.parts,
        "bad": sum(each.bad for each in facts.values()),
        "bad_files": [{"source": source, "error": error} for source, error in bad],
        "made": len(missing),
        "skipped": skipped and not missing,
    }


def _list_by_ray(request: Request) -> Plan:
    """List the inputs in a process of their own, so that their names fill no memory of this one."""
    import ray

    def listed() -> Plan | UserError:
        try:
            return write_plan(request.inputs, request.folder)
        except UserError as error:
            return error

    plan = ray.get(ray.remote(listed).remote())
    if isinstance(plan, UserError):
        raise plan
    return plan


def _here(
    request: Request, plan: Plan, model: Weights, parts: Sequence[int]
) -> Iterator[PartFacts]:
    predictor = model.predictor() if parts else None
    for part in parts:
        assert predictor is not None
        yield make_part(predictor, part, str(request.folder), plan.roots)


def _by_ray(
    request: Request, plan: Plan, model: Weights, parts: Sequence[int]
) -> Iterator[PartFacts]:
    import ray

    place, workers = _placed(request)
    if missing := missing_for(place, workers, "worker"):
        raise ClusterError(f"predicting {missing}; lower --workers, or name another --address")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    blocks = ray.data.from_arrow(
        [
            pa.table({"part": pa.array(some)})
            for some in np.array_split(parts, min(len(parts), MAX_BLOCKS))
        ]
    )
    options = {
        "num_cpus": place.resources["CPU"],
        "num_gpus": place.resources.get("GPU", 0),
    }
    done = blocks.map_batches(
        PartActor,
        fn_constructor_args=(ray.put(model), str(request.folder), plan.roots, 1),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts))),
        batch_size=1,
        **options,
    )
    for row in done.iter_rows():
        if row["error"]:
            raise UserError(row["error"])
        yield PartFacts(**json.loads(row["facts"]))


def _placed(request: Request) -> tuple[Place, int]:
    """Return what a worker reserves, and the number of workers: one a GPU, or else one a CPU."""
    import ray

    found = ray.cluster_resources()
    gpus = found.get("GPU", 0)
    if not gpus:
        place = Place({"CPU": 1.0})
        return place, request.workers or max(1, int(capacity(place)))
    workers = request.workers or int(gpus)
    return Place({"CPU": 1.0, "GPU": min(1.0, gpus / workers)}), workers


def _inputs_of(parts: Sequence[int], plan: Plan) -> int:
    total = PART_INPUTS * len(parts)
    return total - (plan.parts * PART_INPUTS - plan.inputs if plan.parts - 1 in parts else 0)


# --- the state ---


def _identity(request: Request, plan: Plan) -> dict[str, Any]:
    return {
        "model": request.model_uri,
        "model.sha256": request.digest,
        "inputs.number": plan.inputs,
        "inputs.sha256": plan.digest,
        "part_inputs": PART_INPUTS,
        "batch": AT_ONCE,
    }


def _begin(request: Request, plan: Plan) -> bool:
    """Return whether these predictions were done before.

    Raises:
        UserError: The folder has other predictions.
    """
    path = request.folder / STATE_FILE
    if not exists(path):
        _write_state(request, plan, done=False)
        return False
    try:
        state = json.loads(read_bytes(path, _MAX_STATE_BYTES))
        before, done = dict(state["made_of"]), bool(state["done"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{path}: damaged; predict again with --fresh") from None
    if changed := differences(before, _identity(request, plan)):
        raise UserError(
            f"{request.folder}: has predictions of other inputs or of another model: {changed}. "
            "Give another folder, or replace them with --fresh"
        )
    return done


def _write_state(request: Request, plan: Plan, *, done: bool) -> None:
    write_json(request.folder / STATE_FILE, {"made_of": _identity(request, plan), "done": done})


def _refuse_foreign(folder: Folder) -> None:
    """Refuse a folder with files that are no predictions.

    Raises:
        UserError: There is such a file.
    """
    if exists(folder / STATE_FILE):
        return
    foreign = [name for name in names(folder) if not name.startswith((".", "_"))]
    if foreign:
        raise UserError(
            f"--to {folder}: has files that are no predictions, such as {foreign[0]}; give an "
            "empty folder, or a file that ends in .jsonl, .csv or .parquet"
        )


def _remove_temporaries(folder: Path) -> None:
    """Remove what killed processes were writing."""
    for name in (*names(folder), *(f"{FOLDER}/{each}" for each in names(folder / FOLDER))):
        if is_temporary(Path(name).name):
            (folder / name).unlink(missing_ok=True)


def _clear(folder: Folder) -> None:
    """Remove earlier predictions, the state last: what is left after a kill is still known."""
    if not exists(folder / STATE_FILE):
        return
    remove_folder(folder / FOLDER)
    for name in names(folder, ".parquet"):
        if name.startswith("part-"):
            remove(folder / name)
    remove(folder / STATE_FILE)


def _read_facts(folder: Folder, part: int) -> PartFacts:
    """Return the facts of a part that an earlier command has made."""
    path = folder / part_name(part)
    try:
        data = read_bytes(path, _MAX_PART_BYTES)
        table = pq.read_table(pa.BufferReader(data), columns=["source", "error"])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and predict again") from None
    return facts_of(part, list(zip(*table.to_pydict().values(), strict=True)))
