"""The configuration of a backbone: a user's torch module whose feature maps the latents read.

It does not import torch.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from perceiver_model.adapters.config_base import AdapterBase
from perceiver_model.adapters.image_config import ImageInput
from perceiver_model.config_checks import Count, Names, config_dataclass, refusal
from perceiver_model.layer_flops import matmul_flops

if TYPE_CHECKING:
    from perceiver_model.adapters.backbone_module import Geometry

_NAME = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_TARGET = re.compile(f"{_NAME}:{_NAME}")


@config_dataclass
class BackboneConfig(AdapterBase):
    """The feature maps of a torch module, such as a pretrained ResNet, as keys and values.

    The module takes standardised images, float32 `[batch, channels, height, width]`. Successive
    cross-attends read its feature maps in the order of `outputs`, and then again from the first.
    A map has one token per cell, and the positions of its own grid.

    Attributes:
        kind: Must be `backbone`.
        module: What makes the module, as `package.module:callable`. Python must find the package.
        arguments: The keyword arguments of the callable, in the types of JSON.
        weights: A safetensors file with all tensors of the module's state dict. Null keeps the
            weights with which the callable makes the module.
        frozen: Whether the module is kept as it is. A trained module keeps the running statistics
            of its batch norms, too.
        outputs: The feature maps: names of the module's submodules, keys of the mapping or numbers
            of the list that the module returns, or `output` for the tensor that it returns. Each is
            `[batch, channels, rows, columns]`. A map that is listed twice gets a projection of its
            own each time.
        num_channels: The number of channels to which a learned linear layer projects each map, at
            least 1.
    """

    reads = (ImageInput,)
    is_successive = True

    kind: Literal["backbone"] = "backbone"
    module: str
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    weights: Annotated[str, Field(min_length=1)] | None = None
    frozen: bool = True
    outputs: Annotated[Names, Field(min_length=1)]
    num_channels: Count = 64

    def __post_init__(self) -> None:
        if not _TARGET.fullmatch(self.module):
            raise refusal(self, "module", "written as package.module:callable")
        try:
            self._arguments_text()
            is_json = all(name.isidentifier() for name in self.arguments)
        except (TypeError, ValueError, RecursionError):
            is_json = False
        if not is_json:
            allowed = "a mapping from Python names to values of JSON's types"
            raise refusal(self, "arguments", allowed)

    def token_dims(self, image: ImageInput) -> int:
        """Return 2: the rows and columns of a feature map."""
        return 2

    def token_grid(self, image: ImageInput) -> tuple[int, ...]:
        """Return the rows and columns of the first map. It imports torch and runs the module."""
        return self.token_grids(image)[0]

    def token_grids(self, image: ImageInput) -> tuple[tuple[int, ...], ...]:
        """Return the rows and columns of each map. It imports torch and runs the module."""
        return tuple((rows, columns) for _, rows, columns in self._geometry(image).shapes)

    def content_channels(self, image: ImageInput) -> int:
        """Return the number of channels of the projections."""
        return self.num_channels

    def flops(self, image: ImageInput) -> int:
        """Return the FLOPs of the module, as torch counts them, and of the projections."""
        geometry = self._geometry(image)
        projections = sum(
            matmul_flops(rows * columns, channels, self.num_channels)
            for channels, rows, columns in geometry.shapes
        )
        return geometry.flops + projections

    def _geometry(self, image: ImageInput) -> "Geometry":
        from perceiver_model.adapters.backbone_module import geometry

        shape = (image.channels, image.height, image.width)
        return geometry(self.module, self._arguments_text(), self.outputs, shape)

    def _arguments_text(self) -> str:
        return json.dumps(dict(self.arguments), sort_keys=True, allow_nan=False)


def backbone_of(config: Any) -> BackboneConfig | None:
    """Return the backbone in the configuration of a model, its field `adapter`; None if none."""
    adapter = getattr(config, "adapter", None)
    return adapter if isinstance(adapter, BackboneConfig) else None
