"""What is asked of `perceiver plan` besides a configuration."""

import math
from dataclasses import asdict, dataclass

from pipeline.config.tree import Config
from pipeline.errors import UserError
from pipeline.plan.devices import Device, device_named
from pipeline.training.precision import products_in


@dataclass(frozen=True)
class Request:
    """What is asked besides the configuration.

    Attributes:
        gpu: The name of the device; None takes `cpu`, or `h100` with `cluster.use_gpu`.
        gpu_memory: The memory of the device, in GiB.
        gpu_tflops: The peak of the device at the training's precision.
        price: The price of one device for an hour.
        classes: The number of classes, if there is no set.
        samples: The number of training samples, if there is no set.
        mfu: The share of the peak that the step's FLOPs reach, instead of the estimate.
        failure_hours: The mean time between two failures of one worker.
        restart_seconds: The time from a failure to the first step after it.
    """

    gpu: str | None = None
    gpu_memory: float | None = None
    gpu_tflops: float | None = None
    price: float | None = None
    classes: int | None = None
    samples: int | None = None
    mfu: float | None = None
    failure_hours: float | None = None
    restart_seconds: float | None = None

    def device_of(self, config: Config) -> Device:
        """Return the device of each worker of a training.

        Raises:
            UserError: The device is not known.
        """
        return device_named(
            self.gpu or ("h100" if config.cluster.use_gpu else "cpu"),
            products_in(config.training.precision),
            cores=config.cluster.cpus_per_worker,
            memory_gib=self.gpu_memory,
            tflops=self.gpu_tflops,
        )


def check_request(request: Request) -> None:
    """Refuse numbers that cannot be.

    Raises:
        UserError: A number is not above 0.
    """
    for name, value in asdict(request).items():
        if isinstance(value, int | float) and not (value > 0 and math.isfinite(value)):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be above 0")
    if request.restart_seconds is not None and request.failure_hours is None:
        raise UserError(
            "--restart-seconds: has no effect without --failure-hours, the mean time between two "
            "failures of one worker"
        )
    if request.mfu is not None and request.mfu > 1:
        raise UserError(f"--mfu {request.mfu}: is a share of the peak, so at most 1")
