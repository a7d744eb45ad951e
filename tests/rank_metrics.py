"""One of two gloo processes that evaluate together, which tests start."""

import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.evaluation.worker import evaluate_on_rank
from pipeline.training.evaluation import Metrics
from pipeline.training.objectives import Batch, Objective
from pipeline.training.rank_info import RankInfo
from pipeline.training.reports.details import details_of
from pipeline.training.reports.details import joined_details as joined

Cases = dict[str, tuple[Objective, list[tuple[Any, dict[str, Any]]]]]
"""Objectives, and batches of outputs and the fields of `Batch`."""


def measured(cases: Cases) -> dict[str, Any]:
    """The metrics and the details of each case, over the batches of all ranks."""
    found = {}
    for name, (objective, batches) in cases.items():
        metrics, details = Metrics(objective, torch.device("cpu")), details_of(objective)
        for outputs, fields in batches:
            metrics.update(outputs, Batch(**fields), 0)
            details.update(objective, outputs, Batch(**fields))
        metrics.sum_over_ranks()
        whole = joined(details)
        found[name] = metrics.compute(), whole and whole.result()
    return found


def main(rank: int, folder: Path) -> None:
    """Write what this rank finds for the cases and the task in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    cases, tasks = pickle.loads((folder / "given").read_bytes())
    info = RankInfo(rank, rank, 0, 2, torch.device("cpu"))
    found = measured(cases[rank]), [evaluate_on_rank(task, info) for task in tasks]
    (folder / f"found-{rank}").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
