"""DeepSpeed engines: their configuration, and what they turned out to be.

On CPUs and GPUs alike the optimizer is torch's AdamW, weights and optimizer state are float32, and
bf16 is autocast. DeepSpeed's own `bf16` mode is not used: at ZeRO stage 0 it takes one hidden
step before the first (Adam's counter starts at 1), and a resumed run would lose its master weights.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from cluster.errors import ClusterError

Precision = Literal["float32", "bf16"]
# One bucket holds every gradient of a small model; a large model's pass through it in turn.
MAX_BUCKET_ELEMENTS = 200_000 * 1024
TORCH_LINEAR = torch.nn.functional.linear


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a model is trained in parallel: asked for, or read back from an engine."""

    world_size: int
    zero_stage: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    gradient_clipping: float
    precision: Precision
    device: str
    optimizer: str = "AdamW"

    def to_deepspeed(self, num_parameters: int) -> dict[str, Any]:
        """DeepSpeed's configuration; `num_parameters` sizes its communication buckets."""
        # DeepSpeed wants buckets aligned; any multiple of 1,024 is.
        bucket = min(math.ceil(num_parameters / 1024) * 1024, MAX_BUCKET_ELEMENTS)
        zero: dict[str, Any] = {"stage": self.zero_stage}
        if self.zero_stage:
            # Weights shared by several layers get their gradient in several parts, which
            # overlapping communication would send too early (DeepSpeed issue 684).
            zero |= {
                "overlap_comm": False,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
            }
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "gradient_clipping": self.gradient_clipping,
            "zero_optimization": zero,
            "torch_autocast": {
                "enabled": self.precision == "bf16",
                "dtype": "bfloat16",
                # Weights and gradients travel in float32. With DeepSpeed's choice, bfloat16 for the
                # linear layers, a run resumed at stage 3 drifts from an uninterrupted one.
                "lower_precision_safe_modules": [],
            },
            "steps_per_print": 2**31,
        }


def initialize_engine(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    strategy: Strategy,
    gathered_whole: Sequence[type[torch.nn.Module]] = (),
) -> Any:
    """A DeepSpeed engine around `model`, checked against the strategy that was asked for.

    torch.distributed must be initialized.

    Args:
        gathered_whole: classes whose forward uses weights of their submodules without calling
            these; stage 3 gathers all weights of such a module before its forward and backward.

    Raises:
        ClusterError: the engine does not do what `strategy` says.
    """
    import deepspeed

    # Otherwise every CPU worker compiles a shared-memory kernel before the first step.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=strategy.to_deepspeed(num_parameters)
    )
    check_strategy(engine, strategy)
    if strategy.zero_stage == 3:
        for module in model.modules():
            if isinstance(module, tuple(gathered_whole)):
                for parameter in module.parameters():
                    deepspeed.zero.register_external_parameter(module, parameter)
    return engine


def leave_process_group() -> None:
    """End torch.distributed and what DeepSpeed keeps of it, so that this process can begin anew."""
    import deepspeed.comm

    deepspeed.comm.destroy_process_group()
    # Stage 3 puts its own in torch's place and leaves it there; it rounds otherwise.
    torch.nn.functional.linear = TORCH_LINEAR


def read_strategy(engine: Any) -> Strategy:
    """What the engine says of itself."""
    autocast = engine.torch_autocast_enabled()
    low_precision = autocast and engine.torch_autocast_dtype() is torch.bfloat16
    zero_optimizer = engine.optimizer
    base = getattr(zero_optimizer, "optimizer", zero_optimizer)
    return Strategy(
        world_size=engine.dp_world_size,
        zero_stage=engine.zero_optimization_stage(),
        micro_batch_size=engine.train_micro_batch_size_per_gpu(),
        gradient_accumulation_steps=engine.gradient_accumulation_steps(),
        gradient_clipping=engine.gradient_clipping(),
        precision="bf16" if low_precision else "float32",
        device=torch.device(engine.device).type,
        optimizer=type(base).__name__,
    )


def check_strategy(engine: Any, asked: Strategy) -> None:
    """Stop a run whose engine is not what its configuration asked for.

    Raises:
        ClusterError: names every difference.
    """
    found = dataclasses.asdict(read_strategy(engine))
    differences = [
        f"{name} is {found[name]}, {value} was asked for"
        for name, value in dataclasses.asdict(asked).items()
        if found[name] != value
    ]
    if differences:
        raise ClusterError(f"DeepSpeed's engine differs: {'; '.join(differences)}")
