"""PointNet++ as a peer: its centres and neighbours, masks, size, and what it learns from clouds."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.studies.data import make_set
from pipeline.studies.peer_training import PeerTraining
from pipeline.studies.peers.pointnet import Level, PointNet, farthest_points, neighbours
from pipeline.studies.peers.table import Points, count_parameters, sized_peer
from pipeline.studies.planning import base_config, bases_of
from pipeline.studies.point_data import POINTS, write_ink
from pipeline.studies.questions.table import STUDIES
from pipeline.studies.request import Request
from pipeline.studies.trainings import test_accuracy as accuracy_on_test

LEVELS = (Level(16, 0.3, 8), Level(4, 0.6, 8))


def clouds(num_points: int = 40) -> torch.Tensor:
    return 2 * torch.rand(3, num_points, 3, generator=torch.Generator().manual_seed(0)) - 1


def test_each_centre_is_the_farthest_point_from_those_before_it() -> None:
    points = clouds()
    chosen = farthest_points(points, None, 10)
    for cloud, indices in zip(points, chosen.tolist(), strict=True):
        assert indices[0] == 0
        for number in range(1, 10):
            apart = torch.cdist(cloud, cloud[indices[:number]]).amin(dim=1)
            assert indices[number] == int(apart.argmax())


def test_a_cloud_of_few_points_gives_them_again_and_never_an_invalid_one() -> None:
    mask = torch.zeros(3, 40, dtype=torch.bool)
    mask[:, 5:9] = True
    chosen = farthest_points(clouds(), mask, 10)
    for indices in chosen.tolist():
        assert indices[0] == 5
        assert sorted(indices[:4]) == [5, 6, 7, 8] and set(indices) == {5, 6, 7, 8}


def test_neighbours_are_within_the_radius_and_filled_up_with_the_nearest() -> None:
    points = clouds()
    mask = torch.arange(40).expand(3, 40) < 30
    centres = points[:, :6]
    level = Level(6, 0.5, 8)
    near = neighbours(points, centres, mask, level)
    assert near.shape == (3, 6, 8)
    for cloud, places, found in zip(points, centres, near, strict=True):
        for number, (place, indices) in enumerate(zip(places, found.tolist(), strict=True)):
            apart = (cloud[:30] - place).norm(dim=1)
            within = sorted(torch.nonzero(apart <= level.radius).flatten().tolist())
            assert set(indices) <= set(within) and indices[0] == number
            if len(within) <= 8:
                assert sorted(set(indices)) == within
            else:
                assert sorted(indices) == sorted(apart.argsort()[:8].tolist())


def test_what_is_masked_changes_nothing_and_neither_does_the_order() -> None:
    model = PointNet(5, 8, 32, LEVELS, dropout=0.0).eval()
    points, mask = clouds(), torch.arange(40).expand(3, 40) < 25
    expected = model(points[:, :25])
    torch.testing.assert_close(model(points, mask), expected)
    # The first point is where the choice of centres begins.
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(24)])
    torch.testing.assert_close(model(points[:, order]), expected)
    assert not torch.allclose(model(points), expected)


def test_the_paper_s_network_is_one_of_its_sizes() -> None:
    """The layers of Qi et al., appendix B, without biases before a normalisation."""
    model = PointNet(40, 64, 1024, (Level(512, 0.2, 32), Level(128, 0.4, 64)), dropout=0.5)
    products = [
        (m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)
    ]
    assert products == [
        (3, 64), (64, 64), (64, 128),
        (131, 128), (128, 128), (128, 256),
        (259, 256), (256, 512), (512, 1024),
        (1024, 512), (512, 256), (256, 40),
    ]  # fmt: skip


@pytest.mark.parametrize("wanted", [30_000, 44_000, 400_000, 1_500_000, 6_000_000])
def test_it_has_the_parameters_of_the_perceiver_within_5_percent(wanted: int) -> None:
    num_points = 128 if wanted < 1_000_000 else 2048
    with torch.device("meta"):
        peer = sized_peer("pointnet++", Points(num_points, 40), wanted)
    assert abs(count_parameters(peer) - wanted) <= 0.05 * wanted


def test_it_learns_digits_from_their_ink(
    tmp_path: Path, digit_images: Path, ray_cluster: None, console: Console
) -> None:
    small = ("training.batch_size=32", "training.epochs=12")
    request = Request("peers", scale="tiny", output=str(tmp_path), overrides=small)
    study = STUDIES["peers"]
    scale = study.scales["tiny"]
    base = bases_of(study, scale, base_config(request, scale), small)[POINTS]
    write_ink(digit_images, tmp_path / POINTS)
    shard_set = make_set(base, POINTS, 0, tmp_path / "data", tmp_path, console)
    config: Config = with_values(base, {"shards": str(shard_set.location)})
    peer = PeerTraining(config, "pointnet++")
    assert peer.forward_flops() > 0
    before = accuracy_on_test(config, shard_set, peer.logits, peer.model)
    peer.train()
    after = accuracy_on_test(config, shard_set, peer.logits, peer.model)
    assert after > max(0.6, before)
