"""The peers of studies: their size, and the batches and pixels that they are trained on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.inputs.batches import inputs_on
from pipeline.runs.console import Console
from pipeline.studies import costs
from pipeline.studies.costs import TIMES, faster_path, image_costs, peak_bytes
from pipeline.studies.data import make_set
from pipeline.studies.image_data import PERMUTED, PLAIN, SHUFFLED, pixel_order
from pipeline.studies.peer_training import PeerTraining
from pipeline.studies.peers.table import PEERS, Images, count_parameters, sized_peer
from pipeline.studies.peers.vit import ViT
from pipeline.studies.planning import base_config
from pipeline.studies.positions import add_tables
from pipeline.studies.questions.table import STUDIES
from pipeline.studies.request import Request
from pipeline.training.loaders import train_loader
from pipeline.training.objectives import objective_of
from pipeline.training.rank_info import RankInfo
from shards import ShardSet

SIDE = 8
OF_IMAGES = [name for name in PEERS if name not in ("tabnet", "pointnet++")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("studies")
    small = (f"data.image.height={SIDE}", f"data.image.width={SIDE}", "training.batch_size=64")
    request = Request("permuted", scale="tiny", output=str(folder), overrides=small)
    return base_config(request, STUDIES["permuted"].scales["tiny"])


@pytest.fixture(scope="module")
def sets(base: Config, digit_images: Path, ray_cluster: None) -> dict[str, ShardSet]:
    made = {}
    with (base.folder.parent / "console.txt").open("w") as file:
        for name in (PLAIN, PERMUTED, SHUFFLED):
            folder = Path(str(base.folder)) / "data"
            made[name] = make_set(base, name, 0, folder, digit_images, Console(file, file))
            add_tables(made[name], name, base)
    return made


def config_on(base: Config, shard_set: ShardSet, seed: int = 0) -> Config:
    return with_values(base, {"shards": str(shard_set.location), "seed": seed})


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("wanted", [30_000, 44_000, 60_000, 109_000, 400_000, 1_000_000])
def test_a_small_peer_has_the_parameters_of_the_perceiver_within_5_percent(
    name: str, wanted: int
) -> None:
    peer = sized_peer(name, Images(35, 28, 28, 10), wanted)
    assert abs(count_parameters(peer) - wanted) <= 0.05 * wanted
    assert peer(torch.zeros(2, 35, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_peer_at_full_scale_has_the_parameters_of_the_papers_perceiver(name: str) -> None:
    with torch.device("meta"):
        peer = sized_peer(name, Images(261, 224, 224, 1000), 44_900_000)
    assert abs(count_parameters(peer) - 44_900_000) <= 0.05 * 44_900_000


def test_a_size_that_no_peer_has_is_refused() -> None:
    with pytest.raises(UserError, match="no vit has 100 parameters within 5%"):
        sized_peer("vit", Images(1, 28, 28, 10), 100)


def test_a_peer_gets_the_batches_of_the_perceiver(base: Config, sets: dict[str, ShardSet]) -> None:
    config = config_on(base, sets[PLAIN], seed=3)
    alone = RankInfo(0, 0, 0, 1, torch.device("cpu"))
    ours = train_loader(config, objective_of(config, sets[PLAIN]), sets[PLAIN], alone)
    theirs = PeerTraining(config, "vit").batches()
    for loader in (ours, theirs):
        loader.set_epoch(1)
    pairs = list(zip(ours, theirs, strict=True))
    assert len(pairs) == 300 // 64
    for a, b in pairs:
        assert torch.equal(a.numbers, b.numbers)
        assert torch.equal(a.fields["image"], b.fields["image"])


def pixels_and_positions(
    config: Config, shard_set: ShardSet, split: str
) -> tuple[dict[bytes, int], torch.Tensor]:
    """The images of a split, each as the sorted pairs of its pixel and place, with its class."""
    from pipeline.inputs.positions import load_positions
    from pipeline.studies.sets import split_loader

    table = load_positions(shard_set, objective_of(config, shard_set).model_config)
    assert table is not None
    found = {}
    for batch in split_loader(config, shard_set, split):
        inputs, _ = inputs_on(batch, config.data.formats, torch.device("cpu"))
        there = batch.weights > 0
        for pixels, target in zip(inputs[there], batch.targets[there].tolist(), strict=True):
            tokens = np.column_stack([pixels.reshape(-1, 1).numpy(), table.numpy()])
            found[tokens[np.lexsort(tokens.T)].tobytes()] = target
    return found, table


def test_permuted_images_are_the_same_tokens_in_another_order(
    base: Config, sets: dict[str, ShardSet]
) -> None:
    """Each pixel keeps its position, and each split its images and classes."""
    for split, count in (("train", 300), ("test", 60)):
        plain, table = pixels_and_positions(config_on(base, sets[PLAIN]), sets[PLAIN], split)
        moved, other = pixels_and_positions(config_on(base, sets[PERMUTED]), sets[PERMUTED], split)
        assert len(plain) == count
        assert moved == plain
        assert torch.equal(other, table[torch.from_numpy(pixel_order(SIDE, SIDE))])


def test_shuffled_images_lose_their_positions(base: Config, sets: dict[str, ShardSet]) -> None:
    plain, table = pixels_and_positions(config_on(base, sets[PLAIN]), sets[PLAIN], "test")
    lost, other = pixels_and_positions(config_on(base, sets[SHUFFLED]), sets[SHUFFLED], "test")
    assert torch.equal(other, table)
    assert not lost.keys() & plain.keys()


@pytest.mark.parametrize(("name", "patch"), [("vit", 4), ("transformer", 1)])
def test_the_flops_of_a_transformer_are_those_of_its_layers(
    name: str, patch: int, base: Config, sets: dict[str, ShardSet]
) -> None:
    peer = PeerTraining(config_on(base, sets[PLAIN]), name)
    vit = peer.model
    assert isinstance(vit, ViT)
    layer = vit.layers.layers[0]
    dim, hidden, tokens = (
        layer.linear1.in_features,
        layer.linear1.out_features,
        (SIDE // patch) ** 2,
    )
    products = 2 * tokens * (4 * dim**2 + 2 * dim * hidden) + 4 * tokens**2 * dim
    embedded = 2 * tokens * peer.reading.shape.channels * patch**2 * dim
    assert peer.forward_flops() == len(vit.layers.layers) * products + embedded + 2 * dim * 3


def test_a_peer_sees_positions_as_channels(
    base: Config, sets: dict[str, ShardSet], make_config: Callable[..., Config]
) -> None:
    peer = PeerTraining(config_on(base, sets[PERMUTED]), "resnet")
    seen = []
    peer.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.arange(SIDE * SIDE, dtype=torch.uint8).reshape(1, SIDE, SIDE, 1)
    peer.logits(image)
    (maps,) = seen
    assert maps.shape == (1, peer.reading.shape.channels, SIDE, SIDE)
    torch.testing.assert_close(maps[0, 0], (image[0, :, :, 0] / 255 - 0.5) / 0.5)
    order = pixel_order(SIDE, SIDE)
    assert peer.reading.positions is not None
    plain = PeerTraining(config_on(base, sets[PLAIN]), "resnet").reading.positions
    assert plain is not None
    torch.testing.assert_close(maps[0, 1:].flatten(1), plain[0].flatten(1)[:, order])


@pytest.mark.parametrize("peer", [None, "vit"])
def test_costs_grow_as_the_arithmetic_says(base: Config, peer: str | None) -> None:
    """Memory is exact: the tensors of a step, measured twice. Times are positive."""
    found, again = (image_costs(base, peer, 3) for _ in range(2))
    memory = [found[f"step_mib_x{times}"] for times in TIMES]
    assert memory == [again[f"step_mib_x{times}"] for times in TIMES]
    assert all(value > 0 for value in found.values())
    # What is kept grows at least with the tokens, beside a part that does not grow.
    assert memory[0] < memory[1] < memory[2]
    assert memory[2] - memory[1] >= 3.5 * (memory[1] - memory[0])


@pytest.mark.parametrize("fast", [True, False])
def test_inference_is_timed_on_the_faster_path_of_torch(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    was = torch.backends.mha.get_fastpath_enabled()

    def milliseconds(run: Callable[[], None], device: torch.device) -> float:
        run()
        return 1.0 if torch.backends.mha.get_fastpath_enabled() == fast else 2.0

    monkeypatch.setattr(costs, "milliseconds", milliseconds)
    assert faster_path(lambda: None, torch.device("cpu")) == 1.0
    assert torch.backends.mha.get_fastpath_enabled() == was


def test_a_steps_memory_is_that_of_the_tensors_it_keeps() -> None:
    """For each row the outputs of Tanh, and their gradients, of 1000 numbers."""
    model = torch.nn.Sequential(torch.nn.Linear(100, 1000), torch.nn.Tanh())

    def bytes_of(num_rows: int) -> int:
        rows = torch.zeros(num_rows, 100)
        return peak_bytes(lambda: model(rows).sum().backward(), model)

    assert bytes_of(800) - bytes_of(400) == 400 * 2 * 1000 * 4
