"""Ranks agree on folder, shards and checkpoint before the first step, or all end with one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_checkpoints import part_of, save_checkpoint

from pipeline.errors import UserError
from pipeline.training.agreement import folder_token
from pipeline.training.checkpoint_files import TrainState
from pipeline.training.checkpoints import read_checkpoint

RANK = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from pipeline.training import agreement
from pipeline.errors import UserError

agreement.PATIENCE_SECONDS = 0.3
rank, store, cases = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
answers = {}
for name, (kind, places) in cases.items():
    place = places[rank]
    try:
        if kind == "folder":
            answers[name] = agreement.check_same_folder(Path(place[0]), place[1])
        elif kind == "shards":
            answers[name] = agreement.check_same_shards("set", place)
        else:
            chosen, notes = agreement.agreed_checkpoint(Path(place))
            answers[name] = [chosen and chosen.state.step, notes]
    except UserError as error:
        answers[name] = str(error)
print(json.dumps(answers))
sys.stdout.flush()
dist.barrier()  # a rank that leaves earlier may end the other one's process
dist.destroy_process_group()
"""


def on_two_ranks(folder: Path, cases: dict[str, tuple[str, list[Any]]]) -> list[dict[str, Any]]:
    """What each rank of a real process group finds; a case gives each rank its own place."""
    command = [sys.executable, "-c", RANK]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "store"), json.dumps(cases)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    return [json.loads(out) for out, _ in outputs]


def save(folder: Path, step: int, value: float = 0.0) -> Path:
    weights, moments = {"w": torch.full((2,), value)}, {"exp_avg.w": torch.zeros(2)}
    return save_checkpoint(folder, TrainState(step=step), weights, moments).path


def tear(checkpoint: Path) -> None:
    path = part_of(read_checkpoint(checkpoint), "optimizer")
    path.write_bytes(path.read_bytes()[:-3])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("ranks")

    def folder(name: str, *steps: int) -> Path:
        (root / name).mkdir()
        for step in steps:
            save(root / name, step)
        return root / name

    shared, none = folder("shared", 1, 2), folder("none")
    torn = folder("torn", 1, 2)
    tear(torn / "step-00000002")
    ruined = folder("ruined", 1, 2)
    tear(ruined / "step-00000001")
    tear(ruined / "step-00000002")
    older = Path(shutil.copytree(shared, root / "older"))
    shutil.rmtree(older / "step-00000002")
    other = folder("other", 1)
    save(other, 2, value=1.0)
    # Rank 1's view of rank 0's folder, with a torn file: a stale cache, a bad disk.
    stale = Path(shutil.copytree(shared, root / "stale"))
    tear(stale / "step-00000002")
    (shared / "token").write_text("token")
    cases = {
        "same": ("checkpoint", [str(shared)] * 2),
        "none": ("checkpoint", [str(none)] * 2),
        "torn": ("checkpoint", [str(torn)] * 2),
        "ruined": ("checkpoint", [str(ruined)] * 2),
        "rank 1 has an older one": ("checkpoint", [str(shared), str(older)]),
        "rank 1 has none": ("checkpoint", [str(shared), str(none)]),
        "rank 0 has none": ("checkpoint", [str(none), str(shared)]),
        "rank 0 has an older one": ("checkpoint", [str(older), str(shared)]),
        "another of the same step": ("checkpoint", [str(shared), str(other)]),
        "torn on rank 1": ("checkpoint", [str(shared), str(stale)]),
        "the same folder": ("folder", [[str(shared), "token"]] * 2),
        "another folder": ("folder", [[str(shared), "token"], [str(none), "token"]]),
        "no folder": ("folder", [[str(root / "nowhere"), "token"], [str(shared), "token"]]),
        "the same shards": ("shards", ["a", "a"]),
        "other shards": ("shards", ["a", "b"]),
    }
    return on_two_ranks(root, cases)


def test_ranks_that_see_the_same_go_on_from_the_last_checkpoint(found) -> None:
    for answers in found:
        assert answers["same"] == [2, []]
        assert answers["none"] == [None, []]
        assert answers["the same folder"] is None
        assert answers["the same shards"] is None


def test_a_torn_last_checkpoint_is_set_aside_and_the_one_before_it_is_used(found) -> None:
    for answers in found:
        step, (note,) = answers["torn"]
        assert step == 1
        assert "step-00000002/optimizer-" in note and "sha256 differs" in note
        assert "going on from step-00000001" in note


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("ruined", "no other checkpoint there is whole. Start this training again with --fresh"),
        ("rank 1 has an older one", "older/step-00000002: worker 0 resumes from this checkpoint"),
        ("rank 1 has none", "none/step-00000002: worker 0 resumes from this checkpoint"),
        ("rank 0 has none", "shared/step-00000002: is a checkpoint that worker 0 does not find"),
        ("rank 0 has an older one", "step-00000002: is a checkpoint that worker 0 does not find"),
        ("another of the same step", "is another checkpoint than worker 0 resumes from"),
        ("torn on rank 1", "stale/step-00000002/optimizer-"),
        ("another folder", "none: is not the folder that the driver writes to; set 'output'"),
        ("no folder", "nowhere: is not the folder that the driver writes to; set 'output'"),
        ("other shards", "set: holds shard set b, and worker 0 finds a there"),
    ],
)
def test_ranks_that_see_different_things_all_end_with_the_same_line(found, case, told) -> None:
    first, second = (answers[case] for answers in found)
    assert told in first
    assert first == second
    assert len(first.splitlines()) == 1


def test_the_token_is_gone_afterwards_and_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path,
) -> None:
    with folder_token(tmp_path) as token:
        assert (tmp_path / token).read_text() == token
    assert list(tmp_path.iterdir()) == []
    told = pytest.raises(UserError, match=r"nowhere: cannot be written .*; choose another 'output'")
    with told, folder_token(tmp_path / "nowhere"):
        pass
