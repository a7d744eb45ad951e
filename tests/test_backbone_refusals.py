"""Modules, weights and fields that cannot make a backbone are refused in one line."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_backbone import SmallNet
from test_backbone import ENCODER, IMAGE, backbone, config

from perceiver_model.adapters.backbone import BackboneAdapter
from perceiver_model.adapters.configs import AudioInput, VideoInput
from perceiver_model.adapters.multimodal_config import Modality
from perceiver_model.families.classifier import PerceiverClassifier


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.bias": None}, "lacks fc.bias"),
        ({"more.w": torch.ones(1)}, "has more.w, which the backbone does not have"),
        ({"fc.bias": None, "x": torch.ones(1)}, "lacks fc.bias; it has x, which"),
        ({"fc.bias": torch.ones(3)}, r"fc.bias has the shape \[3\], in the backbone \[10\]"),
        ({"fc.bias": torch.ones(10).double()}, "fc.bias is torch.float64; must be torch.float32"),
        ({"fc.bias": torch.ones(10) / 0}, "fc.bias has numbers that are not finite"),
    ],
)
def test_weights_of_another_module_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    tensors = {n: t for n, t in {**SmallNet().state_dict(), **change}.items() if t is not None}
    path = tmp_path / "net.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=rf"net\.safetensors: .*{message}") as refusal:
        BackboneAdapter(IMAGE, backbone(weights=str(path)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04pickle"])
def test_only_safetensors_files_are_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "net.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"net\.pt: no readable safetensors file"):
        BackboneAdapter(IMAGE, backbone(weights=str(path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module": "no_such_net:Net"}, "no module 'no_such_net'; install it, or put the folder"),
        ({"module": "small_backbone:Nothing"}, "small_backbone has no 'Nothing'"),
        ({"module": "small_backbone:broken"}, "cannot be built: no such variant"),
        ({"module": "small_backbone:not_a_module"}, "gives a str, not a torch module"),
        ({"module": "small_backbone:Tied"}, "fc.weight and again.weight are one tensor"),
        ({"module": "small_backbone:Precise"}, "is torch.float64; must be torch.float32"),
        ({"arguments": {"depth": 3}}, "cannot be built: .*unexpected keyword argument 'depth'"),
        ({"arguments": {"channels": 3}}, r"cannot read images \[1, 1, 28, 20\]: .*3 channels"),
        (
            {"outputs": ("layer1",)},
            "no output and no submodule 'layer1'; it has output, stages, stages.0",
        ),
        ({"outputs": ("fc",)}, r"gives \[1, 10\] as 'fc'; a feature map is \[batch"),
        ({"outputs": ("stages.0.1",)}, "changes the output of 'stages.0.1' in place"),
        ({"outputs": ("stages",)}, "does not run its submodule 'stages'"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^backbone small_backbone:\w+: .*{message}|^backbone no_such_net:Net: .*{message}",
    ) as refusal:
        BackboneAdapter(IMAGE, backbone(**changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"module": "os.system"}, {"module": "a b:c"}, {"module": ":f"}, {"arguments": {"a": {1}}},
        {"arguments": {"a-b": 1}}, {"arguments": {"x": math.inf}}, {"arguments": [1]},
        {"weights": ""}, {"outputs": ()}, {"outputs": ("",)}, {"outputs": "layer1"},
        {"num_channels": 0}, {"frozen": 1},
    ],
)  # fmt: skip
def test_a_bad_field_is_named(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=rf"BackboneConfig\.{name}\S* is .*; must "):
        backbone(**changes)


def test_every_map_needs_a_cross_attend_and_images() -> None:
    one = dataclasses.replace(ENCODER, num_cross_attends=1)
    with pytest.raises(
        ValueError, match="num_cross_attends is 1; must be at least 2, one for each"
    ):
        config(encoder=one)
    with pytest.raises(ValueError, match=r"must be chunks, mel.* for audio"):
        config(input=AudioInput(sample_rate=8000, num_samples=800))
    with pytest.raises(ValueError, match="for video"):
        config(input=VideoInput(num_frames=2, height=8, width=8))
    with pytest.raises(ValueError, match="adapter 'backbone' is for images alone"):
        Modality(input=IMAGE, adapter=backbone())
    with pytest.raises(ValueError, match="positions: given as a table"):
        PerceiverClassifier(config(), positions=torch.zeros(12, 14))
