"""DeepSpeed engines: configure them, and check the result.

On CPUs and GPUs, the optimizer is torch's (`cluster.optimizers`), weights and optimizer state are
float32, and bf16 is autocast. DeepSpeed's own `bf16` mode is not used. At ZeRO stage 0 it takes one
hidden step before the first (Adam's counter starts at 1), and a resumed run would lose its master
weights.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from cluster.errors import ClusterError
from cluster.optimizers import DEFAULT_OPTIMIZER, name_of, spec_of
from cluster.tensor_slices import slices_of, tensor_length, whole_squared_norms

Precision = Literal["float32", "bf16"]
# One bucket fits all gradients of a small model. A large model uses it several times per step.
MAX_BUCKET_ELEMENTS = 200_000 * 1024
TORCH_LINEAR = torch.nn.functional.linear


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a model is trained in parallel, as requested or as read from an engine."""

    world_size: int
    zero_stage: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    gradient_clipping: float
    precision: Precision
    device: str
    optimizer: str = DEFAULT_OPTIMIZER

    def to_deepspeed(self, num_parameters: int) -> dict[str, Any]:
        """Return DeepSpeed's configuration. `num_parameters` sets the communication buckets."""
        # Buckets must be aligned; every multiple of 1,024 elements is.
        bucket = min(math.ceil(num_parameters / 1024) * 1024, MAX_BUCKET_ELEMENTS)
        zero: dict[str, Any] = {"stage": self.zero_stage}
        if self.zero_stage:
            # A weight shared by several layers gets its gradient in several parts. Overlapping
            # communication would send the gradient before the last part (DeepSpeed issue 684).
            zero |= {
                "overlap_comm": False,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": bucket,
            }
        if self.zero_stage == 3:
            # Step all parameters at once, so that an optimizer sums the norms of tensors at once.
            zero["sub_group_size"] = num_parameters
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "gradient_clipping": self.gradient_clipping,
            "zero_optimization": zero,
            # DeepSpeed lists few optimizers; which ones ZeRO may step, `cluster.optimizers` says.
            "zero_allow_untested_optimizer": True,
            "torch_autocast": {
                "enabled": self.precision == "bf16",
                "dtype": "bfloat16",
                # Communicate weights and gradients in float32. DeepSpeed's default is bfloat16 for
                # linear layers; then a run resumed at stage 3 differs from an uninterrupted one.
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
    """Create a DeepSpeed engine around `model` and check it against the requested strategy.

    torch.distributed must be initialized.

    Args:
        model: The model.
        optimizer: The optimizer of the model's parameters.
        strategy: The requested strategy.
        gathered_whole: Classes whose forward uses weights of their submodules without calling
            them. Stage 3 gathers all weights of such a module before its forward and backward.

    Raises:
        ClusterError: The engine does not follow `strategy`, ZeRO cannot step the optimizer, or this
            DeepSpeed lays out the slices of tensors in an unknown way.
    """
    import deepspeed

    reads = spec_of(optimizer).reads
    if strategy.zero_stage and reads == "tensors":
        raise ClusterError(
            f"training.zero_stage is {strategy.zero_stage}, whose slices {strategy.optimizer} "
            "cannot step; set it to 0"
        )
    sliced: Any = optimizer if strategy.zero_stage and reads == "norms" else None
    squares = whole_squared_norms(sliced.tensors) if sliced else None

    prepare_deepspeed()
    num_parameters = sum(map(tensor_length, model.parameters()))
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=strategy.to_deepspeed(num_parameters)
    )
    check_strategy(engine, strategy)
    if squares is not None:
        sliced.use_slices(slices_of(engine, sliced.tensors, squares))
    if strategy.zero_stage == 3:
        for module in model.modules():
            if isinstance(module, tuple(gathered_whole)):
                for parameter in module.parameters():
                    deepspeed.zero.register_external_parameter(module, parameter)
    return engine


def prepare_deepspeed() -> None:
    """Let DeepSpeed use the process group of torch.distributed, which must be initialized."""
    import deepspeed

    # Otherwise every CPU worker compiles a shared-memory kernel before the first step.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())


def leave_process_group() -> None:
    """End torch.distributed and DeepSpeed's copy of it, so that this process can start again."""
    import deepspeed.comm

    deepspeed.comm.destroy_process_group()
    # Stage 3 replaces this function and does not restore it. Its version rounds differently.
    torch.nn.functional.linear = TORCH_LINEAR


def read_strategy(engine: Any) -> Strategy:
    """Read the strategy that an engine reports."""
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
        optimizer=name_of(base),
    )


def check_strategy(engine: Any, asked: Strategy) -> None:
    """Stop a run whose engine differs from the requested strategy.

    Raises:
        ClusterError: The engine differs; the message names every difference.
    """
    found = dataclasses.asdict(read_strategy(engine))
    differences = [
        f"{name} is {found[name]}, {value} was asked for"
        for name, value in dataclasses.asdict(asked).items()
        if found[name] != value
    ]
    if differences:
        raise ClusterError(f"DeepSpeed's engine differs: {'; '.join(differences)}")
