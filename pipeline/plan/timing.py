"""How long a step takes: each operation at the speed of products, attention or memory.

The shares of a device's peak are those that were measured on an H100 (`docs/plan.md`). That other
GPUs reach the same shares is an assumption.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.plan.devices import Device
from pipeline.plan.live_tensors import Operation

PRODUCT_SHARE = 0.73
"""Of the peak: 728 of an H100's 989 TFLOP/s, over all products of a training step."""
ATTENTION_SHARE = {False: 0.51, True: 0.30}
"""Of the peak, forward and backward: 507 and 293 TFLOP/s."""
SEPARABLE_SHARE = 0.2
"""Of the peak in float32."""
MEMORY_SHARE = 0.8
LAUNCH_SECONDS = {False: 2e-6, True: 8e-6}
"""The least time of an operation on a CPU, and on a GPU, which Python cannot start faster."""
CPU_PRODUCT_SHARE = 0.85
LINK_SHARE = 0.7
COMPILED_SHARE = 0.8
"""What `torch.compile` leaves of a step's time: 199 of 249 to 272 ms on an H100."""


@dataclass(frozen=True)
class StepTime:
    """The seconds of one optimizer step.

    Attributes:
        passes: Forward and backward of all micro-batches.
        optimizer: The optimizer's step.
        communication: The exchange of gradients and weights.
    """

    passes: float
    optimizer: float
    communication: float

    @property
    def total(self) -> float:
        """The whole step. Nothing of it overlaps; loading of samples does, and is not counted."""
        return self.passes + self.optimizer + self.communication


def step_time(
    operations: Iterable[Operation],
    device: Device,
    *,
    micro_batches: int,
    trained: int,
    moments: int,
    stage: int,
    workers: int,
    compiled: bool,
) -> StepTime:
    """Return the time of one optimizer step.

    Args:
        operations: The operations of one micro-batch.
        device: The device.
        micro_batches: The number of micro-batches of a worker in one step.
        trained: The number of trained parameters.
        moments: The number of tensors that the optimizer keeps for each parameter.
        stage: The ZeRO stage.
        workers: The number of workers.
        compiled: Whether the model is compiled.
    """
    passes = micro_batches * sum(_seconds(operation, device) for operation in operations)
    if compiled and device.is_gpu:
        passes *= COMPILED_SHARE
    size = 4 * trained
    own = size / workers if stage else size
    rate = MEMORY_SHARE * device.bandwidth * 1e9
    # Weights, gradients and moments are read, weights and moments written.
    optimizer = (3 + 2 * moments) * own / rate
    # A ring sends (n - 1) / n of everything twice; stage 3 gathers the weights in both passes.
    sent = {0: 2.0, 1: 2.0, 2: 2.0, 3: 1.0 + 2.0 * micro_batches}[stage] * size
    communication = sent * (workers - 1) / workers / (LINK_SHARE * device.link * 1e9)
    return StepTime(passes, optimizer, communication)


def _seconds(operation: Operation, device: Device) -> float:
    if not device.is_gpu:
        speed = CPU_PRODUCT_SHARE * device.tflops * 1e12
    elif operation.kind == "attention":
        speed = ATTENTION_SHARE[operation.backward] * device.tflops * 1e12
    elif operation.kind == "separable":
        speed = SEPARABLE_SHARE * device.float32_tflops * 1e12
    else:
        speed = PRODUCT_SHARE * device.tflops * 1e12
    moved = operation.moved / (MEMORY_SHARE * device.bandwidth * 1e9)
    return max(operation.flops / speed, moved, LAUNCH_SECONDS[device.is_gpu])
