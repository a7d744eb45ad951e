"""MixUp and CutMix: pairs of samples and their targets, the same at any world size."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from augment_samples import KINDS, config_of, inputs_of
from modality_samples import make_config
from rank_processes import run_ranks

from pipeline.config.augment import check_mixing
from pipeline.config.objectives import OBJECTIVE_CONFIGS
from pipeline.config.training import AugmentConfig
from pipeline.training.augmentation.mixing import draw_plan, mix_batch
from pipeline.training.objectives import Batch
from pipeline.training.objectives.batch import Mix
from pipeline.training.objectives.classification import Classification
from pipeline.training.objectives.multi_label import MultiLabel

SIZE = 16
BOTH = AugmentConfig(mixup=0.8, cutmix=1.0)


def batch_of(
    inputs: torch.Tensor, mask: torch.Tensor | None = None, bad: tuple[int, ...] = ()
) -> Batch:
    size = len(inputs)
    weights = torch.ones(size)
    weights[list(bad)] = 0
    ones = torch.ones(size, dtype=torch.int64)
    return Batch(inputs, mask, torch.arange(size), ones, weights, torch.arange(size))


def mixed(batch: Batch, config: AugmentConfig, seed: int = 3) -> Batch:
    return mix_batch(batch, config, seed=seed, rank=0, global_batch=len(batch.weights))


def grey(channels: int = 1) -> torch.Tensor:
    """Images of one grey each: a pixel tells of which sample it is."""
    levels = torch.arange(SIZE, dtype=torch.uint8) * 10
    return levels[:, None, None, None].expand(SIZE, 12, 10, channels).contiguous()


def test_without_mixing_a_batch_is_the_same_object():
    batch = batch_of(grey())
    assert mixed(batch, AugmentConfig(flip=True)) is batch


def test_mixup_blends_a_sample_and_its_target_by_one_share():
    after = mixed(batch_of(grey()), AugmentConfig(mixup=0.8))
    share, partner = after.mix.shares, after.mix.targets
    assert share.dtype == after.inputs.dtype == torch.float32
    assert sorted(partner.tolist()) == list(range(SIZE))
    expected = (share * torch.arange(SIZE) + (1 - share) * partner) * 10 / 255
    torch.testing.assert_close(after.inputs, expected[:, None, None, None].expand(SIZE, 12, 10, 1))
    assert share.unique().numel() == SIZE and share.min() > 0 and share.max() < 1


@pytest.mark.parametrize("film", [False, True])
def test_cutmix_blends_targets_by_the_area_of_its_box(film):
    images = grey(3)
    inputs = images[:, None].expand(SIZE, 4, 12, 10, 3) if film else images
    after = mixed(batch_of(inputs), AugmentConfig(cutmix=1.0))
    pixels = (after.inputs * 255 / 10).round().long()
    if film:
        assert torch.equal(pixels, pixels[:, :1].expand_as(pixels))
        pixels = pixels[:, 0]
    own = torch.arange(SIZE)[:, None, None] == pixels[..., 0]
    other = after.mix.targets[:, None, None] == pixels[..., 0]
    assert (own | other).all()
    fixed = after.mix.targets == torch.arange(SIZE)  # these are their own partners
    share = own.float().mean(dim=(1, 2))
    torch.testing.assert_close(after.mix.shares[~fixed], share[~fixed])
    assert share.min() < 0.6 and share.max() > 0.8
    for each, is_own in zip(~own, own, strict=True):  # what is not the sample's own is one box
        rows, columns = each.any(dim=1), each.any(dim=0)
        assert torch.equal(each, rows[:, None] & columns[None, :]) or is_own.all()


def test_the_shares_follow_the_beta_distribution():
    plan = draw_plan(AugmentConfig(mixup=0.2), 4000, seed=1)
    assert plan.shares.mean() == pytest.approx(0.5, abs=0.03)
    assert plan.shares.var() == pytest.approx(0.25 / (2 * 0.2 + 1), abs=0.01)
    plan = draw_plan(BOTH, 4000, seed=1)
    is_cut = (plan.boxes != 0).any(dim=1)
    assert is_cut.double().mean() == pytest.approx(0.5, abs=0.05)
    assert (plan.shares[is_cut] == 1).all() and (plan.shares[~is_cut] < 1).all()


def test_a_sample_whose_partner_could_not_be_read_stays_as_it_is():
    images = grey()
    for config in (AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)):
        bad = (2, 5)
        after = mixed(batch_of(images, bad=bad), config)
        for number in torch.where(torch.isin(after.mix.targets, torch.tensor(bad)))[0]:
            assert after.mix.shares[number] == 1
            assert torch.equal(after.inputs[number], images[number] / 255)


def test_mixed_sounds_reach_as_far_as_the_longer_one():
    sound = torch.full((SIZE, 20), 8192, dtype=torch.int16)
    mask = torch.arange(20) < torch.arange(SIZE)[:, None] + 4
    after = mixed(batch_of(sound * mask, mask), AugmentConfig(mixup=0.8))
    assert torch.equal(after.mask, mask | mask[after.mix.targets])
    assert torch.equal(after.inputs != 0, after.mask)
    share = after.mix.shares[:, None]
    expected = 0.25 * (share * mask + (1 - share) * mask[after.mix.targets])
    torch.testing.assert_close(after.inputs, expected)


# --- any world size ---


def sharded(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    world_size = 2
    store = dist.FileStore(f"{folder}/store", world_size)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    part = slice(rank * SIZE // 2, (rank + 1) * SIZE // 2)
    # The last row is padding, as where the ranks do not divide the batch.
    found: dict[str, Any] = {}
    for kind, config in (("image", BOTH), ("sound", AugmentConfig(mixup=0.2))):
        inputs, mask = inputs_of(kind, SIZE)
        whole = batch_of(inputs, mask, bad=(3, 9))
        own = Batch(
            whole.inputs[part],
            None if mask is None else mask[part],
            *(each[part] for each in (whole.targets, whole.target_lengths, whole.weights)),
            whole.numbers[part],
        )
        after = mix_batch(own, config, seed=3, rank=rank, global_batch=SIZE - 1)
        found[kind] = (after.inputs, after.mask, after.mix.targets, after.mix.shares)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_workers_mix_a_batch_as_one_does(tmp_path: Path):
    run_ranks(sharded, (str(tmp_path),), 2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind, config in (("image", BOTH), ("sound", AugmentConfig(mixup=0.2))):
        inputs, mask = inputs_of(kind, SIZE)
        rows = slice(SIZE - 1)
        whole = batch_of(inputs[rows], None if mask is None else mask[rows], bad=(3, 9))
        after = mixed(whole, config)
        expected = (after.inputs, after.mask, after.mix.targets, after.mix.shares)
        for index, alone in enumerate(expected):
            if alone is None:
                assert parts[0][kind][index] is None
                continue
            assert torch.equal(torch.cat([part[kind][index] for part in parts])[rows], alone)
        assert (after.mix.targets[:8] >= 8).any()  # some partners lie on the other worker


# --- losses ---


def outputs_and_batch(targets: torch.Tensor, partners: torch.Tensor) -> tuple[torch.Tensor, Batch]:
    generator = torch.Generator().manual_seed(0)
    outputs, shares = torch.randn(6, 4, generator=generator), torch.rand(6, generator=generator)
    ones = torch.ones(6, dtype=torch.int64)
    mix = Mix(partners, shares)
    inputs = torch.zeros(6, 1)
    return outputs, Batch(inputs, None, targets, ones, torch.ones(6), ones, mix=mix)


CLASSES, PARTNERS = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 1, 0, 2, 3, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_samples_is_the_cross_entropy_with_soft_targets(smoothing):
    objective = Classification(SimpleNamespace(), ("a", "b", "c", "d"), smoothing)
    outputs, batch = outputs_and_batch(CLASSES, PARTNERS)
    share = batch.mix.shares[:, None]
    one_hot = torch.nn.functional.one_hot
    soft = share * one_hot(CLASSES, 4) + (1 - share) * one_hot(PARTNERS, 4)
    expected = torch.nn.functional.cross_entropy(
        outputs, soft, reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(objective.losses(outputs, batch, training=True), expected)
    right = (soft * one_hot(outputs.argmax(dim=1), 4)).sum()
    torch.testing.assert_close(objective.sums(outputs, batch), torch.stack([right, right * 0 + 6]))


def test_class_weights_weigh_both_classes_of_a_mixed_sample():
    weights = (1.0, 2.0, 0.5, 4.0)
    objective = Classification(SimpleNamespace(), ("a", "b", "c", "d"), 0.0, weights)
    outputs, batch = outputs_and_batch(CLASSES, PARTNERS)
    share, table = batch.mix.shares, torch.tensor(weights)
    own = torch.nn.functional.cross_entropy(outputs, CLASSES, table, reduction="none")
    other = torch.nn.functional.cross_entropy(outputs, PARTNERS, table, reduction="none")
    weight = objective.loss_weights(batch)
    torch.testing.assert_close(weight, share * table[CLASSES] + (1 - share) * table[PARTNERS])
    losses = objective.losses(outputs, batch, training=True) * weight
    torch.testing.assert_close(losses, share * own + (1 - share) * other)


def test_the_labels_of_mixed_samples_are_blended():
    marks = torch.randint(0, 2, (6, 4), generator=torch.Generator().manual_seed(1))
    outputs, batch = outputs_and_batch(marks.to(torch.uint8), marks.flip(0).to(torch.uint8))
    share = batch.mix.shares[:, None]
    soft = share * marks + (1 - share) * marks.flip(0)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs, soft, reduction="none"
    ).mean(dim=1)
    found = MultiLabel(SimpleNamespace(), tuple("abcd")).losses(outputs, batch, training=True)
    torch.testing.assert_close(found, expected)


# --- what takes it ---

TAKEN = {"image": {"mixup", "cutmix"}, "video": {"mixup", "cutmix"}, "sound": {"mixup"},
         "mel": {"mixup"}}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["mixup", "cutmix"])
def test_a_modality_mixes_or_refuses_to(kind, field):
    if field in TAKEN.get(kind, set()):
        assert config_of(kind, {field: 0.2}).training.augment != AugmentConfig()
        return
    with pytest.raises(ValueError, match=f"training.augment.{field} changes none of the data"):
        config_of(kind, {field: 0.2})


@pytest.mark.parametrize("options", OBJECTIVE_CONFIGS)
def test_only_classes_and_labels_are_mixed(options):
    formats = {"image": KINDS["image"]}
    if options().kind in ("classify", "multi_label"):
        check_mixing(BOTH, formats, options())
        return
    with pytest.raises(ValueError, match=f"augment.mixup mixes .* {options().kind!r} cannot"):
        check_mixing(BOTH, formats, options())


def test_mixing_with_another_objective_or_several_modalities_is_refused_in_a_configuration():
    with pytest.raises(ValueError, match="mixup mixes samples of one modality; data has image, au"):
        check_mixing(BOTH, {"image": KINDS["image"], "audio": KINDS["sound"]}, None)
    config = make_config("sound", Path("/nowhere"), augment={"mixup": 0.2}).tree()
    config["data"]["target"] = {"kind": "regression", "columns": ["size"]}
    config["data"]["train"] = "sizes.csv"
    with pytest.raises(ValueError, match=r"augment.mixup mixes .* objective 'regress' cannot"):
        type(make_config("sound", Path("/nowhere"))).model_validate(config, strict=False)
