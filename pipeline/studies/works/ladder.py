"""Time and memory of a model of images as the number of its tokens grows."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from cluster.strategy import AUTOCAST_DTYPES
from perceiver_model import num_parameters
from pipeline.config.tree import Config
from pipeline.runs.console import Console
from pipeline.studies.costs import milliseconds, model_of, peak_bytes, sized
from pipeline.studies.image_data import image_format
from pipeline.training.precision import products_in

CLASSES = 10


def measure_ladder(config: Config, options: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """Measure training steps of one image with new weights, at growing sizes.

    Args:
        config: The configuration of the arm, which reads images.
        options: `peer`, its name, or None for the Perceiver; `sides` of the images, ascending; and
            `limit_s`, the longest step in seconds. A size whose step would take longer if time
            grew with the square of the tokens is not measured, nor are larger ones.
        console: The console, which is told why sizes are left out.

    Returns:
        `step_ms` and `step_mib` by tokens, None where not measured; `parameters`; and `ends`, why
        the last sizes were left out.
    """
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    times: dict[int, float | None] = {}
    memory: dict[int, float | None] = {}
    found: dict[str, Any] = {"step_ms": times, "step_mib": memory}
    for side in options["sides"]:
        tokens = side * side
        times[tokens] = memory[tokens] = None
        if "ends" in found:
            continue
        most = _most_ms(times, tokens) / 1000
        if most > options["limit_s"]:
            found["ends"] = (
                f"not measured at {tokens:,} tokens and above, where a step may take {most:,.0f} "
                f"s; the limit is {options['limit_s']:g} s"
            )
            console.notice(found["ends"])
            continue
        try:
            found["parameters"], times[tokens], memory[tokens] = _measured(
                sized(config, side, side), options["peer"], device
            )
        except torch.OutOfMemoryError:
            found["ends"] = f"not measured at {tokens:,} tokens and above: out of memory"
            console.notice(found["ends"])
    return found


def _most_ms(times: Mapping[int, float | None], tokens: int) -> float:
    """Return what a step takes at a number of tokens if it grows with their square; 0 if unknown.

    The growth between small sizes says nothing: most of their time does not depend on the tokens.
    """
    known = [(n, ms) for n, ms in times.items() if ms is not None]
    if not known:
        return 0.0
    last, ms = known[-1]
    return float(ms * (tokens / last) ** 2)


def _measured(config: Config, peer: str | None, device: torch.device) -> tuple[int, float, float]:
    """Return the parameters, a step's time in ms and its memory in MiB, for one image."""
    model, logits = model_of(config, peer, CLASSES, device)
    image = image_format(config)
    shape = (1, image.height, image.width, image.channels)
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device)
    target = torch.randint(CLASSES, (1,), device=device)
    dtype = AUTOCAST_DTYPES.get(products_in(config.training.precision))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            scores = logits(pixels)
        F.cross_entropy(scores.float(), target).backward()

    model.train()
    return num_parameters(model), milliseconds(step, device), peak_bytes(step, model) / 2**20
