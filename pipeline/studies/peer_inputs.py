"""What peers read: pixels with their positions, rows of tables as numbers, clouds of points."""

from typing import Any

import torch
import torch.nn.functional as F

from perceiver_model.adapters.configs import PointsInput, TableInput
from perceiver_model.adapters.table import TableRows
from perceiver_model.config import FourierConfig
from pipeline.config.tree import Config
from pipeline.inputs.positions import load_positions
from pipeline.studies.image_data import image_format
from pipeline.studies.peers.table import Images, Points, Rows
from shards import ShardSet


class ImageReading:
    """Pixels as the Perceiver reads them, with the features of their positions as further channels.

    So did the peers in the paper's table of permuted ImageNet.

    Args:
        config: The configuration of the arm.
        positions: The table of positions `[pixels, channels]`; None if the model has no such table.
        num_classes: The number of classes.
        device: The device of the inputs.
    """

    def __init__(
        self,
        config: Config,
        positions: torch.Tensor | None,
        num_classes: int,
        device: torch.device,
    ) -> None:
        image, model = image_format(config), config.model
        channels: int = image.channels
        self.positions = None
        if positions is not None:
            channels += positions.shape[1]
            maps = positions.T.reshape(1, -1, image.height, image.width)
            self.positions = maps.to(device)
        self.shape = Images(channels, image.height, image.width, num_classes)
        self._pixel_channels = image.channels
        self._mean = torch.tensor(model.pixel_mean, device=device)
        self._std = torch.tensor(model.pixel_std, device=device)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return maps `[batch, channels, height, width]` of pixels `[batch, height, width, …]`."""
        scaled = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()
        images = ((scaled - self._mean) / self._std).permute(0, 3, 1, 2)
        if self.positions is None:
            return images
        return torch.cat([images, self.positions.expand(len(images), -1, -1, -1)], dim=1)

    def blank(self) -> torch.Tensor:
        """Return a black image, `[1, height, width, channels]`."""
        size = (1, self.shape.height, self.shape.width, self._pixel_channels)
        return torch.zeros(size, dtype=torch.uint8, device=self._mean.device)


class TableReading:
    """Rows as standardised numbers, flags of the missing ones, and categories one by one.

    Args:
        table: The input of the arm's model.
        num_classes: The number of classes.
        device: The device of the inputs.
    """

    def __init__(self, table: TableInput, num_classes: int, device: torch.device) -> None:
        self._table, self._device = table, device
        self._mean = torch.tensor(table.mean, device=device)
        self._std = torch.tensor(table.std, device=device)
        known = sum(number + 1 for number in table.num_categories)
        self.shape = Rows(2 * table.num_numeric + known, num_classes)

    def __call__(self, rows: TableRows) -> torch.Tensor:
        """Return features `[batch, features]`. A missing number is the mean, and has a flag."""
        missing = rows.numeric.isnan()
        parts = [((rows.numeric - self._mean) / self._std).masked_fill(missing, 0.0), missing]
        for column, known in enumerate(self._table.num_categories):
            values = rows.categorical[:, column].clamp(max=known)
            # A missing category, -1, is none of them.
            parts.append(F.one_hot(values + 1, known + 2)[:, 1:])
        return torch.cat([part.float() for part in parts], dim=1)

    def blank(self) -> TableRows:
        """Return a row whose values are all missing."""
        categories = len(self._table.num_categories)
        return TableRows(
            torch.full((1, self._table.num_numeric), torch.nan, device=self._device),
            torch.full((1, categories), -1, device=self._device),
        )


class PointReading:
    """Clouds of points as they are, without Fourier features.

    Args:
        points: The input of the arm's model.
        num_classes: The number of classes.
        device: The device of the inputs.
    """

    def __init__(self, points: PointsInput, num_classes: int, device: torch.device) -> None:
        self._blank = torch.zeros(1, points.num_points, points.channels, device=device)
        self.shape = Points(points.num_points, num_classes)

    def __call__(self, points: torch.Tensor) -> torch.Tensor:
        """Return the points `[batch, points, 3]` in float32."""
        return points.float()

    def blank(self) -> torch.Tensor:
        """Return a cloud whose points all coincide."""
        return self._blank


def reading_of(
    config: Config, shard_set: ShardSet, objective: Any, device: torch.device
) -> ImageReading | TableReading | PointReading:
    """Return how a peer reads the inputs of an arm.

    Args:
        config: The configuration of the arm.
        shard_set: Its set.
        objective: Its objective.
        device: The device of the inputs.
    """
    read, num_classes = objective.model_config.input, len(shard_set.manifest.classes)
    if isinstance(read, TableInput):
        return TableReading(read, num_classes, device)
    if isinstance(read, PointsInput):
        return PointReading(read, num_classes, device)
    positions = None
    if isinstance(config.model.positions, FourierConfig):
        positions = load_positions(shard_set, objective.model_config)
    return ImageReading(config, positions, num_classes, device)
