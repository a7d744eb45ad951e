"""Test-time augmentation: answers averaged over fixed views of an image or film."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F

from perceiver_model.adapters.configs import ImageInput, VideoInput
from perceiver_model.adapters.multimodal_config import MultimodalInput
from pipeline.training.objectives.batch import Batch

Views = Callable[[torch.Tensor], torch.Tensor]
"""Changes pixels `[batch, …, height, width, channels]`, all in the same way."""


@dataclass(frozen=True)
class InputViews:
    """The views of an input whose answers are averaged. They are the same in every evaluation.

    Attributes:
        flip: Whether each view is also mirrored left to right.
        crop_area: The share of the area of five crops (the corners and the centre), which are
            enlarged to the whole size; None takes the whole input only.
    """

    flip: bool = False
    crop_area: float | None = None

    @classmethod
    def of(cls, options: Any) -> Self | None:
        """Return the views that the option `objective.test_time` asks for; None for none."""
        found = getattr(options, "test_time", None)
        return None if found is None else cls(found.flip, found.crop_area)

    @classmethod
    def from_card(cls, values: Any, media: Any) -> Self | None:
        """Return the views of a registered model.

        Args:
            values: What `to_card` returned, in JSON types; None for none. It is untrusted.
            media: The input of the model.

        Raises:
            ValueError: A value is wrong, or the model reads neither images nor films.
        """
        if values is None:
            return None
        if not isinstance(values, dict) or values.keys() != {"flip", "crop_area"}:
            raise ValueError("test_time does not have the fields flip and crop_area")
        flip, area = values["flip"], values["crop_area"]
        is_share = isinstance(area, float) and 0 < area < 1
        if not isinstance(flip, bool) or not (area is None or is_share):
            raise ValueError("test_time: flip is no truth value, or crop_area not between 0 and 1")
        if not (flip or area) or not _pictures(media):
            raise ValueError("test_time changes nothing that the model reads")
        return cls(flip, area)

    def to_card(self) -> dict[str, Any]:
        """Return the fields in JSON types."""
        return asdict(self)

    def stack(self, model: Any, batch: Batch, media: Any) -> torch.Tensor:
        """Return the model's outputs for each view, `[views, batch, …]`.

        The views are computed one after the other, so they take the memory of one.

        Args:
            model: The module, or DeepSpeed's engine around it.
            batch: The samples.
            media: The input of the model. Modalities that are neither images nor films stay.
        """
        return torch.stack(
            [model(_changed(batch.inputs, media, view), batch.mask) for view in self._views()]
        )

    def _views(self) -> Iterator[Views]:
        crops: list[Views] = [lambda pixels: pixels]
        if self.crop_area is not None:
            share = math.sqrt(self.crop_area)
            places = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)]
            crops += [_crop(share, *place) for place in places]
        for crop in crops:
            yield crop
            if self.flip:
                yield lambda pixels, crop=crop: crop(pixels).flip(-2)  # type: ignore[misc]  # its default


def card_of(views: InputViews | None) -> dict[str, Any]:
    """Return the field `test_time` for a card; no field without views."""
    return {} if views is None else {"test_time": views.to_card()}


def mean_log_probabilities(outputs: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the views' mean probabilities of exclusive classes.

    Args:
        outputs: The logits, `[views, batch, classes]`.

    Returns:
        `[batch, classes]`, which is as good as logits.
    """
    logs = outputs.float().log_softmax(dim=-1)
    return logs.logsumexp(dim=0) - math.log(len(outputs))


def mean_log_odds(outputs: torch.Tensor) -> torch.Tensor:
    """Return the log-odds of the views' mean probability of each label.

    Args:
        outputs: The logits, `[views, batch, labels]`.

    Returns:
        `[batch, labels]`.
    """
    logits = outputs.float()
    return F.logsigmoid(logits).logsumexp(dim=0) - F.logsigmoid(-logits).logsumexp(dim=0)


def _pictures(media: Any) -> set[str]:
    """Return the names of the images and films of an input; `""` for a single one."""
    if isinstance(media, MultimodalInput):
        return {name for name, part in media.modalities.items() if _pictures(part.input)}
    return {""} if isinstance(media, ImageInput | VideoInput) else set()


def _changed(inputs: Any, media: Any, view: Views) -> Any:
    pictures = _pictures(media)
    if isinstance(inputs, Mapping):
        return {name: view(part) if name in pictures else part for name, part in inputs.items()}
    return view(inputs) if pictures else inputs


def _crop(share: float, down: float, right: float) -> Views:
    """Return a view of a part of the picture, enlarged by bilinear sampling.

    Args:
        share: The height and width of the part, relative to the picture's.
        down: Where the part lies, from 0 at the top to 1 at the bottom.
        right: Where the part lies, from 0 at the left to 1 at the right.
    """

    def view(pixels: torch.Tensor) -> torch.Tensor:
        height, width, channels = pixels.shape[-3:]
        rows, columns = max(1, round(height * share)), max(1, round(width * share))
        top, left = round((height - rows) * down), round((width - columns) * right)
        part = pixels[..., top : top + rows, left : left + columns, :]
        scale = 255 if pixels.dtype == torch.uint8 else 1
        planes = part.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2).float() / scale
        whole = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)
        return whole.permute(0, 2, 3, 1).reshape(pixels.shape).contiguous()

    return view
