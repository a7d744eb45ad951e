"""Latents that are carried from part to part: where they start, and parts that cannot be read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from perceiver_model.adapters.configs import TextInput, TokenEmbeddingConfig
from perceiver_model.config import DecoderConfig, EncoderConfig
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.queries_config import QueriesConfig
from pipeline.errors import UserError
from pipeline.media import TextFormat
from pipeline.registry.served.card import ModelCard
from pipeline.training.objectives import Batch, Objective
from pipeline.training.objectives.carried import Carried, read_part
from pipeline.training.objectives.classification import Classification
from pipeline.training.objectives.multi_label import MultiLabel
from pipeline.training.objectives.regression import Regression
from pipeline.training.rank_info import RankInfo
from pipeline.training.stored_tensors import StoredTensors, read_layout
from pipeline.training.streams import CarriedLatents, idle_notes
from shards.lanes import Lanes
from shards.recordings import Recordings

READING = {
    "input": TextInput(max_length=6),
    "adapter": TokenEmbeddingConfig(num_channels=8),
    "positions": None,
    "encoder": EncoderConfig(
        num_latents=3, latent_dim=8, num_blocks=1, num_cross_attends=1, num_self_attends=1,
        num_self_heads=2, latent_init_std=1.0,
    ),
}  # fmt: skip
CLASSES = Classification(ClassifierConfig(**READING, num_classes=2), ("a", "b"))
NUMBERS = Regression(
    QueriesConfig(**READING, decoder=DecoderConfig(), num_queries=2, output_channels=1),
    ("x", "y"), (5.0, 0.0), (2.0, 1.0),
)  # fmt: skip


def batch_of(texts: torch.Tensor, good: list[bool]) -> Batch:
    size = len(texts)
    return Batch(
        texts, None, torch.zeros(size, dtype=torch.long), torch.ones(size, dtype=torch.long),
        torch.tensor(good).float(), torch.arange(size),
    )  # fmt: skip


@pytest.mark.parametrize("objective", [CLASSES, NUMBERS], ids=["classify", "regress"])
@pytest.mark.parametrize("unreadable", [0, 1, 2, 3])
def test_a_part_that_cannot_be_read_is_passed_over(objective: Objective, unreadable: int) -> None:
    """Four parts of two recordings; one part of the first recording cannot be read."""
    torch.manual_seed(0)
    model = objective.build_model().eval()
    # Another recording was read in the same rows before.
    texts = torch.randint(6, 262, (5, 2, 6))
    _, carried = read_part(
        objective, model, batch_of(texts[4], [True, True]), torch.tensor([True, True]), Carried()
    )
    found = []
    for number in range(4):
        good = [number != unreadable, True]
        firsts = torch.tensor([number == 0] * 2)
        outputs, carried = read_part(
            objective, model, batch_of(texts[number], good), firsts, carried
        )
        found.append(outputs)
    for row, parts in ((0, [n for n in range(4) if n != unreadable]), (1, [0, 1, 2, 3])):
        state = None
        for number in parts:
            alone = batch_of(texts[number, row : row + 1], [True])
            expected, state = objective.stream_outputs(model, alone, state, torch.tensor([False]))
            torch.testing.assert_close(found[number][row], expected[0])
        assert carried.latents is not None and state is not None
        torch.testing.assert_close(carried.latents[row], state[0])


def stored(tensors: dict[str, torch.Tensor], folder: Path) -> StoredTensors:
    save_file(tensors, folder / "carried.safetensors")
    return read_layout(folder, ["carried.safetensors"])


def ranks(world_size: int, lanes: Lanes) -> list[CarriedLatents]:
    device = torch.device("cpu")
    return [
        CarriedLatents(lanes, RankInfo(rank, rank, 0, world_size, device))
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_rank_takes_up_the_latents_of_its_own_lanes(
    groups: int, world_size: int, tmp_path: Path
) -> None:
    lanes = Lanes(12, 2, groups)
    saved = {"latents": torch.randn(12, 3, 8), "waiting": torch.arange(12) % 5 == 0}
    found = ranks(world_size, lanes)
    for each in found:
        each.restore(stored(saved, tmp_path), "checkpoint")
    for name, tensor in saved.items():
        in_order = [getattr(each.groups[group], name) for group in range(groups) for each in found]
        assert torch.equal(torch.cat(in_order), tensor)


@pytest.mark.parametrize("change", [
    lambda saved: saved.pop("waiting"),
    lambda saved: saved.update(latents=torch.zeros(11, 3, 8)),
    lambda saved: saved.update(waiting=torch.zeros(12)),
    lambda saved: saved.update(more=torch.zeros(1)),
])  # fmt: skip
def test_latents_of_other_lanes_are_refused(change: Callable[[dict], None], tmp_path: Path) -> None:
    saved = {"latents": torch.randn(12, 3, 8), "waiting": torch.zeros(12, dtype=torch.bool)}
    change(saved)
    (one,) = ranks(1, Lanes(12))
    with pytest.raises(UserError, match="checkpoint: does not hold the latents of 12 lanes"):
        one.restore(stored(saved, tmp_path), "checkpoint")


def test_a_card_says_that_its_model_reads_streams() -> None:
    media = TextFormat(max_length=6, cut="all")
    card = ModelCard(CLASSES, media, is_stream=True)
    assert ModelCard.from_json(card.to_json()) == card
    assert "stream" not in ModelCard(CLASSES, media).to_json()
    first_only = ModelCard(CLASSES, TextFormat(max_length=6), is_stream=True)
    labels = MultiLabel(ClassifierConfig(**READING, num_classes=2), ("a", "b"), 0.5)
    for wrong in (first_only, ModelCard(labels, media, is_stream=True)):
        with pytest.raises(ValueError, match="reads no files in parts"):
            ModelCard.from_json(wrong.to_json())


@pytest.mark.parametrize(("lengths", "lanes", "share"), [
    ([4] * 8, 4, None), ([16, 2, 2, 2, 2], 2, None), ([30, 2, 2, 2, 2, 2], 2, "33%"),
])  # fmt: skip
def test_the_user_is_told_of_rows_that_have_nothing_to_read(
    lengths: list[int], lanes: int, share: str | None
) -> None:
    sizes = np.array(lengths)
    notes = idle_notes(Lanes(lanes), Recordings(np.cumsum(sizes) - sizes, sizes))
    assert [share in note and "longest of 6 files has 30 parts" in note for note in notes] == (
        [True] if share else []
    )
