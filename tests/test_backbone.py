"""Feature maps of a user's torch module as the keys and values of successive cross-attends."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from resnets import resnet50
from safetensors.torch import save_file
from small_backbone import Levels, Pyramid, SmallNet
from torch import nn

from perceiver_model.adapters.configs import (
    BackboneConfig,
    ImageInput,
    PixelsConfig,
)
from perceiver_model.attention_maps import cross_attention_maps, on_grid
from perceiver_model.config import EncoderConfig, FourierConfig, LearnedPositions
from perceiver_model.export import export_program
from perceiver_model.families.classifier import PerceiverClassifier
from perceiver_model.families.classifier_config import ClassifierConfig
from perceiver_model.families.dense import DensePredictor
from perceiver_model.families.dense_config import DenseConfig
from perceiver_model.families.queries import QueryPredictor
from perceiver_model.families.queries_config import QueriesConfig
from perceiver_model.flops import forward_flops, num_parameters
from perceiver_model.fourier import position_table
from pipeline.config.load import load_config

IMAGE = ImageInput(height=28, width=20, channels=1, mean=(0.2,), std=(0.4,))
ENCODER = EncoderConfig(
    num_latents=4, latent_dim=16, num_blocks=3, num_cross_attends=3, num_self_attends=1,
    num_self_heads=2, cross_channels=12, latent_init_std=1.0,
)  # fmt: skip
GRIDS = {"stages.2": (4, 3), "stages.1": (7, 5)}


def backbone(**changes: Any) -> BackboneConfig:
    fields = {"module": "small_backbone:SmallNet", "outputs": tuple(GRIDS), "num_channels": 6}
    return BackboneConfig(**{**fields, **changes})


def config(adapter: BackboneConfig | None = None, **changes: Any) -> ClassifierConfig:
    fields = {
        "input": IMAGE,
        "adapter": adapter or backbone(),
        "positions": FourierConfig(num_bands=3),
        "encoder": ENCODER,
        "num_classes": 5,
    }
    return ClassifierConfig(**{**fields, **changes})


def model(adapter: BackboneConfig | None = None, **changes: Any) -> PerceiverClassifier:
    torch.manual_seed(0)
    made = PerceiverClassifier(config(adapter, **changes))
    pretrain(made)
    return made


def pretrain(net: nn.Module) -> None:
    """Give batch norms other statistics than a new module's."""
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.2, 0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.02, 0.2)


@pytest.fixture
def images() -> torch.Tensor:
    shape = (3, 28, 20, 1)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).byte()


# --- the values, against plain torch ---


def plain_attend(part: Any, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """A cross-attend or self-attend with its MLP, by the formulas of the paper."""
    normed = part.query_norm(queries) if hasattr(part, "query_norm") else part.norm(queries)
    read = part.input_norm(tokens) if hasattr(part, "input_norm") else normed
    heads = [
        layer(x).unflatten(-1, (part.num_heads, -1)).transpose(1, 2)
        for layer, x in ((part.query, normed), (part.key, read), (part.value, read))
    ]
    attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    result = queries + part.output(attended)
    return result + part.mlp(part.mlp_norm(result))


def test_successive_cross_attends_read_the_maps_in_turn(images: torch.Tensor) -> None:
    made = model().eval()
    encoder, net = made.encoder, made.adapter.module
    features = (images.float() / 255 - 0.2) / 0.4
    features = features.permute(0, 3, 1, 2)
    maps = {}
    for number, stage in enumerate(net.stages):
        features = maps[f"stages.{number}"] = stage(features)
    arrays = []
    for project, (name, grid) in zip(made.adapter.projections, GRIDS.items(), strict=True):
        assert tuple(maps[name].shape[2:]) == grid
        content = project(maps[name].flatten(2).transpose(1, 2))
        positions = position_table(grid, 3, grid).expand(len(images), -1, -1)
        arrays.append(torch.cat([content, positions], dim=-1))
    latents = encoder.latents.expand(len(images), -1, -1)
    for index, weights in enumerate((0, 1, 1)):  # the later cross-attends share weights
        latents = plain_attend(encoder.cross_attends[weights], latents, arrays[index % 2])
        for self_attend in encoder.blocks[0]:
            latents = self_attend(latents)
    expected = made.head.output(latents.mean(dim=1))
    assert (expected[0] - expected[1]).abs().max() > 0.1
    torch.testing.assert_close(made(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [(Pyramid, ("c2", "c1")), (Levels, ("2", "1")), (Pyramid, ("c2", "stages.1"))],
)
def test_maps_are_outputs_or_submodules(
    images: torch.Tensor, kind: type[SmallNet], outputs: tuple[str, ...]
) -> None:
    named = backbone(module=f"small_backbone:{kind.__name__}", outputs=outputs)
    expected, other = model().eval(), model(named).eval()
    other.load_state_dict(expected.state_dict())
    assert torch.equal(other(images), expected(images))


def test_a_copied_model_reads_its_own_maps(images: torch.Tensor) -> None:
    made = model().eval()
    expected = made(images)
    copied = copy.deepcopy(made)
    with torch.no_grad():
        made.adapter.module.stages[0][0].weight.zero_()
    assert torch.equal(copied(images), expected)
    assert not torch.equal(made(images), expected)


def test_all_families_of_images_take_a_backbone(images: torch.Tensor) -> None:
    parts = {"input": IMAGE, "adapter": backbone(), "encoder": ENCODER, "output_channels": 2}
    parts["positions"] = LearnedPositions(num_channels=4, projected_channels=5)
    dense = DensePredictor(DenseConfig(**parts))
    assert dense(images).shape == (3, 28, 20, 2)
    queries = QueryPredictor(QueriesConfig(**parts, num_queries=7))
    assert queries(images).shape == (3, 7, 2)
    assert queries.positions[1].table.shape == (35, 4)
    with pytest.raises(ValueError, match="query_tokens is True; must be False: a backbone's maps"):
        DenseConfig(**parts, query_tokens=True)


def test_masked_pixels_have_no_influence(images: torch.Tensor) -> None:
    made = model().eval()
    mask = torch.ones(3, 28, 20, dtype=torch.bool)
    mask[:, :, 8:] = False
    other = images.masked_fill(~mask.unsqueeze(-1), 7)
    assert torch.equal(made(images, mask), made(other, mask))
    (_, first), (_, second) = made.adapter(images, mask)
    assert first.view(3, 4, 3)[0].tolist() == [[True, True, False]] * 4
    assert second.view(3, 7, 5)[0, 0].tolist() == [True, True, False, False, False]
    assert made(images, torch.zeros_like(mask)).isfinite().all()


# --- what is trained ---


def trained(made: PerceiverClassifier, images: torch.Tensor, steps: int = 2) -> None:
    """Take steps of training, through switches of the mode as a training does them."""
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        made.eval()
        made.train()
        optimizer.zero_grad()
        F.cross_entropy(made(images), torch.arange(len(images))).backward()
        optimizer.step()


def test_a_frozen_backbone_keeps_every_bit(images: torch.Tensor) -> None:
    made = model(backbone(arguments={"width": 4}))
    before = copy.deepcopy(made.state_dict())
    trained(made, images)
    after = made.state_dict()
    own = [name for name in before if name.startswith("adapter.module.")]
    assert len(own) == 20 and all(torch.equal(before[name], after[name]) for name in own)
    assert not any(parameter.requires_grad for parameter in made.adapter.module.parameters())
    assert not any(module.training for module in made.adapter.module.modules())
    assert not torch.equal(
        before["adapter.projections.0.weight"], after["adapter.projections.0.weight"]
    )


def test_a_trained_backbone_keeps_its_statistics_and_what_no_map_needs(
    images: torch.Tensor,
) -> None:
    made = model(backbone(frozen=False))
    before = copy.deepcopy(made.state_dict())
    trained(made, images)
    moved = {
        name.removeprefix("adapter.module.")
        for name, tensor in made.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    weights = {f"stages.{n}.{m}" for n in range(3) for m in ("0.weight", "1.weight", "1.bias")}
    assert {name for name in moved if name.startswith(("stages", "fc"))} == weights
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)
    assert not made.adapter.module.fc.weight.requires_grad
    assert made.adapter.module.stages[0].training
    assert not made.adapter.module.stages[0][1].training


def test_parameters_after_the_last_map_are_not_trained() -> None:
    made = model(backbone(frozen=False, outputs=("stages.1",)))
    trains = {n for n, p in made.adapter.module.named_parameters() if p.requires_grad}
    assert trains == {f"stages.{n}.{m}" for n in (0, 1) for m in ("0.weight", "1.weight", "1.bias")}


# --- weights ---


def test_weights_come_from_a_safetensors_file(tmp_path: Path, images: torch.Tensor) -> None:
    torch.manual_seed(5)
    net = SmallNet()
    pretrain(net)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    made = PerceiverClassifier(config(backbone(weights=str(tmp_path / "net.safetensors"))))
    for name, tensor in net.state_dict().items():
        assert torch.equal(made.adapter.module.state_dict()[name], tensor)
    half = {n: t.half() if t.is_floating_point() else t for n, t in net.state_dict().items()}
    save_file(half, tmp_path / "half.safetensors")
    made = PerceiverClassifier(config(backbone(weights=str(tmp_path / "half.safetensors"))))
    assert torch.equal(made.adapter.module.fc.weight, net.fc.weight.half().float())


# --- what else is told of models ---


def test_a_configuration_survives_json_and_imports_neither_torch_nor_the_module() -> None:
    made = config(backbone(arguments={"width": 4, "norm": "group"}, frozen=False))
    assert ClassifierConfig.from_dict(made.to_dict()) == made
    assert made.input_channels == 6 + 2 * (2 * 3 + 1)
    code = (
        "import sys; from perceiver_model.adapters.configs import BackboneConfig, ImageInput, "
        "PixelsConfig; from perceiver_model.families.classifier_config import ClassifierConfig; "
        "ClassifierConfig(input=ImageInput(height=8, width=8), num_classes=2, "
        "adapter=BackboneConfig(module='small_backbone:SmallNet', outputs=('x',))); "
        "assert not {'torch', 'small_backbone'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_flops_and_parameters_are_counted() -> None:
    made = config()
    assert made.token_grid == GRIDS["stages.2"] and made.token_grids == tuple(GRIDS.values())
    convolutions = [(14 * 10, 9, 8), (7 * 5, 9 * 8, 16), (4 * 3, 9 * 16, 32), (1, 32, 10)]
    module = sum(2 * rows * inner * columns for rows, inner, columns in convolutions)
    projections = 2 * (12 * 32 + 35 * 16) * 6
    assert made.adapter.flops(IMAGE) == module + projections
    same = dataclasses.replace(made, adapter=backbone(outputs=("stages.2", "stages.2", "stages.1")))
    # Its attends read 12, 12 and 35 tokens instead of 12, 35 and 12, and it projects a map twice.
    assert forward_flops(same) - forward_flops(made) == 2 * 12 * 32 * 6
    pixels = dataclasses.replace(made, adapter=PixelsConfig())
    assert num_parameters(PerceiverClassifier(made)) - num_parameters(
        PerceiverClassifier(pixels)
    ) == num_parameters(SmallNet()) + (32 + 1 + 16 + 1) * 6 + 5 * 2 * (2 * 12 + 2)


def test_attention_maps_lie_on_the_grids(images: torch.Tensor) -> None:
    made = model()
    maps = cross_attention_maps(made, images)
    for index, found in enumerate(maps):
        grid = made.config.token_grids[index % 2]
        assert on_grid(found, grid).shape == (3, 1, 4, *grid)
        torch.testing.assert_close(found.sum(dim=-1), torch.ones(3, 1, 4))


def test_a_model_with_a_backbone_is_exported(images: torch.Tensor) -> None:
    made = model().eval()
    program = export_program(made, (images,))
    more = torch.cat([images, images])
    torch.testing.assert_close(program.module()(more), made(more), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_compiled_model_agrees(images: torch.Tensor, frozen: bool) -> None:
    made = model(backbone(frozen=frozen))
    compiled = copy.deepcopy(made)
    compiled.compile(backend="eager", dynamic=False)
    for _ in range(2):  # the second time with other modes in between
        results = []
        for each in (made, compiled):
            each.eval()
            each.train()
            each.zero_grad()
            F.cross_entropy(each(images), torch.arange(3)).backward()
            results.append({n: p.grad for n, p in each.named_parameters() if p.grad is not None})
        torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)
        assert ("adapter.module.stages.0.0.weight" in results[1]) != frozen


def test_the_shipped_configuration_reads_a_resnet_50() -> None:
    shipped = load_config("backbone")
    made = shipped.classifier(num_classes=3)
    assert made.token_grids == ((7, 7), (14, 14), (28, 28))
    assert num_parameters(resnet50()) == 25_557_032
    projections = 2 * 256 * (49 * 2048 + 196 * 1024 + 784 * 512)
    assert round((made.adapter.flops(made.input) - projections) / 2e7) == 409  # GFLOPs / 100
    assert made.adapter.weights is None
    assert shipped.model.adapter.weights == str(Path("resnet50.safetensors").absolute())
