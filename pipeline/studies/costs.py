"""What a model of images costs at growing sizes: time of a step and of inference, and memory."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cluster.strategy import AUTOCAST_DTYPES
from perceiver_model import PerceiverClassifier, num_parameters
from perceiver_model.config import FourierConfig
from pipeline.config.load import with_values
from pipeline.config.tree import Config
from pipeline.plan.live_tensors import LiveTensors
from pipeline.preprocess.identity import needed_positions
from pipeline.preprocess.position_tables import position_table_of
from pipeline.studies.image_data import image_format
from pipeline.studies.peer_inputs import ImageReading
from pipeline.studies.peers.table import sized_peer
from pipeline.training.precision import compute_as, products_in

TIMES = (1, 2, 4)
"""The sides of the images, as multiples of the side that an arm is trained on."""
BATCH, REPEATS = 8, 3


def image_costs(config: Config, peer: str | None, num_classes: int) -> dict[str, float]:
    """Measure a model of an arm at each of `TIMES`, with new weights and random pixels.

    A peer has as many parameters as the Perceiver at each size.

    Args:
        config: The configuration of the arm, which reads images.
        peer: The name of the peer; None measures the Perceiver.
        num_classes: The number of classes.

    Returns:
        For each multiple such as `x2`: `step_ms_x2` (forward and backward pass of one image, in
        milliseconds: the median of repeats in batches of 8), `infer_ms_x2` (forward pass only),
        and `step_mib_x2` (the most memory that tensors of both passes take, without weights and
        without gradients of weights that are finished, for one image, in MiB).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side, found = image_format(config).height, {}
    for times in TIMES:
        at = sized(config, times * side, times * image_format(config).width)
        model, logits = model_of(at, peer, num_classes, device)
        image = image_format(at)
        pixels = torch.randint(
            256,
            (BATCH, image.height, image.width, image.channels),
            dtype=torch.uint8,
            device=device,
        )
        targets = torch.randint(num_classes, (BATCH,), device=device)
        dtype = AUTOCAST_DTYPES.get(products_in(config.training.precision))
        cast = torch.autocast(device.type, dtype, enabled=dtype is not None)

        def step(
            model: nn.Module = model, logits: Any = logits, pixels: Any = pixels,
            targets: Any = targets, cast: Any = cast,
        ) -> None:  # fmt: skip
            model.zero_grad(set_to_none=True)
            with cast:
                scores = logits(pixels)
            F.cross_entropy(scores.float(), targets).backward()

        def infer(logits: Any = logits, pixels: Any = pixels, cast: Any = cast) -> None:
            with torch.inference_mode(), cast:
                logits(pixels)

        model.train()
        found[f"step_ms_x{times}"] = milliseconds(step, device) / BATCH
        found[f"step_mib_x{times}"] = peak_bytes(step, model) / BATCH / 2**20
        model.eval()
        found[f"infer_ms_x{times}"] = faster_path(infer, device) / BATCH
    return found


def sized(config: Config, height: int, width: int) -> Config:
    """Return the configuration for larger images, whose positions reach their resolution."""
    values: dict[str, Any] = {"data.image.height": height, "data.image.width": width}
    if isinstance(config.model.positions, FourierConfig):
        values["model.positions.max_resolution"] = [height, width]
    return with_values(config, values)


def model_of(
    config: Config, peer: str | None, num_classes: int, device: torch.device
) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """Return a model, and what returns its logits of pixels."""
    tables = [position_table_of(spec)[1] for spec in needed_positions(config)]
    positions = torch.from_numpy(tables[0].copy()) if tables else None
    described = config.classifier(num_classes)
    if peer is None:
        ours = PerceiverClassifier(described, positions).to(device)
        compute_as(ours, config.training.precision, config.training.attention_path)
        return ours, ours
    reading = ImageReading(config, positions, num_classes, device)
    with torch.device("meta"):
        size = num_parameters(PerceiverClassifier(described))
    theirs = sized_peer(peer, reading.shape, size).to(device)
    return theirs, lambda pixels: theirs(reading(pixels))


def faster_path(infer: Callable[[], None], device: torch.device) -> float:
    """Return the time of inference with torch's fast path of encoder layers, or without it.

    On CPUs, the fast path keeps the whole matrix of attention, and many tokens take longer by it.
    """
    was = torch.backends.mha.get_fastpath_enabled()
    try:
        times = []
        for is_enabled in (True, False):
            torch.backends.mha.set_fastpath_enabled(is_enabled)
            times.append(milliseconds(infer, device))
        return min(times)
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def milliseconds(run: Callable[[], None], device: torch.device) -> float:
    """Return the median time of repeats, after one that warms up."""
    seconds = []
    for _ in range(1 + REPEATS):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(step: Callable[[], None], model: nn.Module) -> int:
    """Return the most bytes of tensors that a step makes, without finished gradients."""
    live = LiveTensors()
    hooks = [
        parameter.register_post_accumulate_grad_hook(live.take_gradient)
        for parameter in model.parameters()
    ]
    with live:
        step()
    for hook in hooks:
        hook.remove()
    return live.peak
