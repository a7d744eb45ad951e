"""How a model is trained in parallel: the one place that writes DeepSpeed's configuration.

Weights, gradients and optimizer state are float32, and bf16 and fp16 are autocast. DeepSpeed's own
`bf16` and `fp16` modes are not used. At ZeRO stage 0 they take one hidden step before the first
(Adam's counter starts at 1), and a resumed run would lose its master weights. Its loss scaling for
autocast is not used either: see `cluster.loss_scale`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch

from cluster.deepspeed_values import merged, read_back
from cluster.errors import ClusterError
from cluster.optimizers import DEFAULT_OPTIMIZER, name_of

Precision = Literal["float32", "bf16", "fp16"]
OffloadPlace = Literal["none", "cpu", "nvme"]
AUTOCAST_DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
# One bucket fits all gradients of a small model. A large model uses it several times per step.
MAX_BUCKET_ELEMENTS = 200_000 * 1024
# With NVMe, this many weights are stepped at once: 1 GiB of locked memory for a rank.
NVME_GROUP_ELEMENTS = 1 << 26
# Adam's weights, gradients and two moments.
NVME_BUFFERS = 4
# The weights that are gathered at the same time: those of a module, and of those that contain it.
PARAMETER_BUFFERS = 32
# Communication overlaps with the backward pass only if there are several buckets in a step.
OVERLAPPED_BUCKETS = 8


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a model is trained in parallel, as requested or as read from an engine.

    Attributes:
        world_size: The number of ranks.
        zero_stage: The ZeRO stage, 0 to 3.
        micro_batch_size: The number of samples of one rank's forward pass.
        gradient_accumulation_steps: The number of forward passes in one optimizer step.
        gradient_clipping: The largest norm of the whole gradient; 0 does not clip.
        precision: The precision of products.
        device: The type of device.
        optimizer: The name of the optimizer.
        offload_optimizer: Where the optimizer's state is kept: `none` is on the device.
        offload_parameters: Where stage 3 keeps its parts of the weights between their uses.
        nvme_path: The folder for what is on NVMe; None if nothing is.
        overlap_communication: Whether gradients are reduced while the backward pass goes on.
        deepspeed: Further keys of DeepSpeed's configuration, checked by
            `cluster.deepspeed_keys.check_keys`.
    """

    world_size: int
    zero_stage: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    gradient_clipping: float
    precision: Precision
    device: str
    optimizer: str = DEFAULT_OPTIMIZER
    offload_optimizer: OffloadPlace = "none"
    offload_parameters: OffloadPlace = "none"
    nvme_path: str | None = None
    overlap_communication: bool = False
    deepspeed: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def while_built(self) -> "Strategy":
        """Return the strategy while the model is built: what is on NVMe later is in memory."""
        is_moved_later = self.offload_parameters == "nvme"
        return dataclasses.replace(self, offload_parameters="cpu") if is_moved_later else self

    def to_deepspeed(self, num_parameters: int, largest_part: int = 1) -> dict[str, Any]:
        """Return DeepSpeed's configuration.

        Args:
            num_parameters: The number of the model's parameters, which sets the communication
                buckets.
            largest_part: The elements of a rank's largest part of a weight, which sets the buffers
                of weights on NVMe.
        """
        zero: dict[str, Any] = {"stage": self.zero_stage}
        if self.zero_stage:
            buckets = OVERLAPPED_BUCKETS if self.overlap_communication else 1
            bucket = self._bucket(num_parameters / buckets)
            zero |= {
                "overlap_comm": self.overlap_communication,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": self._bucket(num_parameters),
            }
        if self.zero_stage == 3:
            # Step all parameters at once, so that an optimizer sums the norms of tensors at once.
            # With NVMe no optimizer sums norms, and only what is stepped is in memory.
            most = NVME_GROUP_ELEMENTS if self.nvme_path else num_parameters
            zero["sub_group_size"] = min(num_parameters, most)
        if self.offload_optimizer != "none":
            zero["offload_optimizer"] = self._offload(self.offload_optimizer)
        if self.offload_parameters != "none":
            zero["offload_param"] = self._offload(self.offload_parameters)
        if self.offload_parameters == "nvme":
            zero["offload_param"] |= {
                "buffer_count": PARAMETER_BUFFERS,
                "buffer_size": largest_part,
                "max_in_cpu": 0,
            }
            # A weight leaves its buffer after each use, and none is gathered before its module.
            zero |= {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
        own = {
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "gradient_clipping": self.gradient_clipping,
            "zero_optimization": zero,
            # DeepSpeed lists few optimizers; which ones ZeRO may step, `cluster.optimizers` says.
            "zero_allow_untested_optimizer": True,
            # Offloaded state is stepped by torch's optimizer, which needs no compiler.
            "zero_force_ds_cpu_optimizer": False,
            "torch_autocast": {
                "enabled": self.precision in AUTOCAST_DTYPES,
                "dtype": "float16" if self.precision == "fp16" else "bfloat16",
                # Communicate weights and gradients in float32. DeepSpeed's default is bfloat16 for
                # linear layers; then a run resumed at stage 3 differs from an uninterrupted one.
                "lower_precision_safe_modules": [],
            },
            "steps_per_print": 2**31,
            # It waits for the device in every step.
            "timers": {"throughput": {"enabled": False}},
        }
        return merged(own, self.deepspeed)

    def nvme_buffer_bytes(self, num_parameters: int, largest_part: int = 0) -> int:
        """Return the bytes of locked memory through which a rank reads and writes NVMe.

        A single tensor that is larger than a group takes more.

        Args:
            num_parameters: The number of the model's parameters.
            largest_part: The elements of a rank's largest part of a weight.
        """
        zero = self.to_deepspeed(num_parameters)["zero_optimization"]
        group = min(zero["sub_group_size"], math.ceil(num_parameters / self.world_size))
        elements = 0
        if self.offload_optimizer == "nvme":
            elements += zero["offload_optimizer"]["buffer_count"] * group
        if self.offload_parameters == "nvme":
            elements += PARAMETER_BUFFERS * largest_part + group
        return 4 * elements

    @property
    def nvme_file_bytes(self) -> int:
        """The bytes in files on NVMe for each weight: its moments and two float32 values."""
        optimizer = 12 if self.offload_optimizer == "nvme" else 0
        return optimizer + (4 if self.offload_parameters == "nvme" else 0)

    def _bucket(self, elements: float) -> int:
        # Buckets must be aligned; every multiple of 1,024 elements is.
        return min(math.ceil(elements / 1024) * 1024, MAX_BUCKET_ELEMENTS)

    def _offload(self, place: OffloadPlace) -> dict[str, Any]:
        on_nvme: dict[str, Any] = {}
        if place == "nvme":
            on_nvme = {"nvme_path": self.nvme_path, "buffer_count": NVME_BUFFERS}
        return {"device": place, "pin_memory": self.device == "cuda", **on_nvme}


def read_strategy(engine: Any, asked: Strategy | None = None) -> Strategy:
    """Read the strategy that an engine follows.

    Args:
        engine: The engine.
        asked: The strategy that was asked for. Its further keys of DeepSpeed's configuration are
            read from the engine, too.
    """
    dtype = engine.torch_autocast_dtype() if engine.torch_autocast_enabled() else None
    precisions: dict[Any, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    zero_optimizer = engine.optimizer
    base = getattr(zero_optimizer, "optimizer", zero_optimizer)
    zero = engine._config.zero_config
    offloads = (zero.offload_optimizer, zero.offload_param)
    paths = [str(each.nvme_path) for each in offloads if each and each.device == "nvme"]
    return Strategy(
        world_size=engine.dp_world_size,
        zero_stage=engine.zero_optimization_stage(),
        micro_batch_size=engine.train_micro_batch_size_per_gpu(),
        gradient_accumulation_steps=engine.gradient_accumulation_steps(),
        gradient_clipping=engine.gradient_clipping(),
        precision=precisions.get(dtype, "float32"),
        device=torch.device(engine.device).type,
        optimizer=name_of(base),
        offload_optimizer=_place(zero.offload_optimizer),
        offload_parameters=_place(zero.offload_param),
        nvme_path=paths[0] if paths else None,
        overlap_communication=bool(zero.stage and zero.overlap_comm),
        deepspeed=read_back(engine._config, asked.deepspeed) if asked else {},
    )


def _place(offload: Any) -> OffloadPlace:
    return "none" if offload is None else offload.device


def check_strategy(engine: Any, asked: Strategy) -> None:
    """Stop a run whose engine differs from the requested strategy.

    Raises:
        ClusterError: The engine differs; the message names every difference.
    """
    found = as_dict(read_strategy(engine, asked))
    differences = [
        f"{name} is {found[name]}, {value} was asked for"
        for name, value in as_dict(asked).items()
        if found[name] != value
    ]
    if differences:
        raise ClusterError(f"DeepSpeed's engine differs: {'; '.join(differences)}")


def as_dict(strategy: Strategy) -> dict[str, Any]:
    """Return the fields of a strategy by name."""
    fields = {each.name: getattr(strategy, each.name) for each in dataclasses.fields(strategy)}
    return {**fields, "deepspeed": dict(strategy.deepspeed)}
