"""Further keys of DeepSpeed's configuration, as a user gives them in `training.deepspeed`.

A key is passed to DeepSpeed, or it is refused: because a field of ours says the same, because the
checkpoints or the exactness of a training would not hold, or because DeepSpeed has no such key.
Names and types are checked with DeepSpeed's own models. After the engine is made, its values are
read back (`cluster.deepspeed_values`).

DeepSpeed is imported only when there is something to check: it takes seconds.
"""

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any

_OURS = "set {} instead"
_CHECKPOINTS = "checkpoints are not written by DeepSpeed here"
_NOT_EXACT = "a resumed training would differ from an uninterrupted one"
_NO_EFFECT = "has no effect here"
_UNWRITTEN = "a checkpoint would read files on NVMe that are still being written"
_OPTIMIZER = _OURS.format("training.optimizer and its fields")
_PRECISION = _OURS.format("training.precision")
_BATCH = _OURS.format("training.batch_size and training.gradient_accumulation_steps")
_OFFLOAD = _OURS.format("training.offload")

REFUSED: dict[str, str] = {
    "train_batch_size": _BATCH,
    "train_micro_batch_size_per_gpu": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "managed_gradient_accumulation": _BATCH,
    "gradient_clipping": _OURS.format("training.gradient_clipping"),
    "gradient_allreduce_op": "the loss is a mean over all ranks, so gradients must be averaged",
    "optimizer": _OPTIMIZER,
    "zero_allow_untested_optimizer": _OPTIMIZER,
    "zero_force_ds_cpu_optimizer": _OPTIMIZER,
    "scheduler": _OURS.format("training.schedule"),
    "fp16": _PRECISION,
    "bf16": _PRECISION,
    "bfloat16": _PRECISION,
    "torch_autocast": _PRECISION,
    "amp": _PRECISION,
    "data_types": f"{_PRECISION}: weights and gradients are float32",
    "activation_checkpointing": _OURS.format("training.activation_checkpointing"),
    "compile": _OURS.format("training.compile"),
    "checkpoint": _CHECKPOINTS,
    "datastates_ckpt": _CHECKPOINTS,
    "data_efficiency": f"{_NO_EFFECT}: the data are not read by DeepSpeed",
    "dataloader_drop_last": f"{_NO_EFFECT}: the data are not read by DeepSpeed",
    "autotuning": f"{_NO_EFFECT}: trainings are not started by DeepSpeed's launcher",
    "hybrid_engine": f"{_NO_EFFECT}: it is for reinforcement learning",
    "pipeline": f"{_NO_EFFECT}: no model here is a pipeline",
    "tensor_parallel": f"{_NO_EFFECT}: training is data-parallel",
    "expert_parallel": f"{_NO_EFFECT}: no model here has experts",
    "use_data_before_expert_parallelism": f"{_NO_EFFECT}: no model here has experts",
    "sequence_parallel_size": f"{_NO_EFFECT}: training is data-parallel",
    "seq_parallel_communication_data_type": f"{_NO_EFFECT}: training is data-parallel",
    "weight_quantization": f"{_NO_EFFECT}: it is for inference",
    "vocabulary_size": f"{_NO_EFFECT}: DeepSpeed only warns of it",
    "disable_allgather": f"{_NO_EFFECT}: DeepSpeed does not use it",
}
"""The keys of DeepSpeed's configuration that are refused, and why."""

ZERO_REFUSED: dict[str, str] = {
    "stage": _OURS.format("training.zero_stage"),
    "overlap_comm": _OURS.format("training.overlap_communication"),
    "cpu_offload": _OFFLOAD,
    "cpu_offload_param": _OFFLOAD,
    "cpu_offload_use_pin_memory": _OFFLOAD,
    "elastic_checkpoint": _CHECKPOINTS,
    "load_from_fp32_weights": _CHECKPOINTS,
    "pipeline_loading_checkpoint": _CHECKPOINTS,
    "stage3_gather_16bit_weights_on_model_save": _CHECKPOINTS,
    "stage3_gather_fp16_weights_on_model_save": _CHECKPOINTS,
    "legacy_stage1": "DeepSpeed has removed it",
    "round_robin_gradients": "weights could not be told apart in a checkpoint: DeepSpeed gathers "
    "them in another order than it steps them",
    "compute_grad_norm": "the norm is needed to find gradients that are not finite",
    "zenflow": f"it steps the optimizer late, so {_NOT_EXACT}",
    "zero_quantized_weights": f"it rounds weights, so {_NOT_EXACT}",
    "zero_quantized_nontrainable_weights": f"it rounds weights, so {_NOT_EXACT}",
    "zero_quantized_gradients": f"it rounds gradients to integers, so {_NOT_EXACT}",
    "zero_hpz_partition_size": "checkpoints hold one part of each weight a rank",
    "save_muon_momentum_buffer_in_memory": "it is for DeepSpeed's own Muon",
}
"""The keys of its section `zero_optimization` that are refused, and why."""

OFFLOAD_REFUSED: dict[str, str] = {
    "device": _OFFLOAD,
    "nvme_path": _OFFLOAD,
    "ratio": _OPTIMIZER + ": DeepSpeed's own Adam is needed for it",
    "super_offload": _OPTIMIZER + ": DeepSpeed's own Adam is needed for it",
    "cpuadam_cores_perc": _OPTIMIZER + ": DeepSpeed's own Adam is needed for it",
    "pipeline_read": _UNWRITTEN,
    "pipeline_write": _UNWRITTEN,
    "buffer_count": f"{_OFFLOAD}: Adam needs 4 buffers, and weights have 32",
    "buffer_size": f"{_OFFLOAD}: a buffer holds the largest weight",
    "max_in_cpu": f"{_OFFLOAD}: parameters=cpu keeps all weights in memory",
    "fast_init": f"{_NO_EFFECT}: states are made here",
}
"""The keys of its sections `offload_optimizer` and `offload_param` that are refused, and why."""

OFFLOAD_SECTIONS = {"offload_optimizer": "optimizer", "offload_param": "parameters"}
"""The sections of `zero_optimization` that offload, and the field of `training.offload`."""
ROUNDING = ("zero_optimization", "prescale_gradients", "gradient_predivide_factor")
"""The keys that change weights only by rounding."""
LOW_PRECISION = ("communication_data_type",)
"""The keys that change weights by more. All other keys that are passed on change none."""
ZERO_3_ONLY = ("stage3_", "sub_group_size", "leaf_module", "memory_efficient_linear", "override_")
ZERO_1_2_ONLY = ("ignore_unused_parameters", "parameter_alignment",
                 "use_multi_rank_bucket_allreduce", "allgather_")  # fmt: skip


def check_keys(
    given: Mapping[str, Any],
    *,
    zero_stage: int,
    offloaded: Collection[str] = (),
    uses_nvme: bool = False,
) -> None:
    """Check further keys of DeepSpeed's configuration.

    Args:
        given: The keys, nested as in DeepSpeed's configuration.
        zero_stage: The ZeRO stage.
        offloaded: What is offloaded: `optimizer`, `parameters`.
        uses_nvme: Whether something is offloaded to NVMe.

    Raises:
        ValueError: A key is refused or unknown, or its value is not allowed. The text names it.
    """
    if not given:
        return
    for key in given:
        _refuse(key, key, REFUSED)
    if "aio" in given and not uses_nvme:
        raise ValueError(f"aio: {_NO_EFFECT} unless training.offload uses nvme")
    if isinstance(given.get("aio"), Mapping) and "use_gds" in given["aio"]:
        raise ValueError("aio.use_gds: needs GPUDirect Storage, which is not supported here")
    zero = given.get("zero_optimization", {})
    if isinstance(zero, Mapping):
        _check_zero(zero, zero_stage, offloaded)
    _check_types(given)


def _check_zero(zero: Mapping[str, Any], zero_stage: int, offloaded: Collection[str]) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    aliases = {n: each.alias or n for n, each in DeepSpeedZeroConfig.model_fields.items()}
    for key, value in zero.items():
        path, name = f"zero_optimization.{key}", aliases.get(key, key)
        _refuse(path, name, ZERO_REFUSED)
        if name not in aliases.values():
            continue  # unknown
        other = ZERO_3_ONLY if zero_stage < 3 else ZERO_1_2_ONLY
        if zero_stage == 0 or name.startswith(other):
            raise ValueError(f"{path}: {_NO_EFFECT} at training.zero_stage={zero_stage}")
        if name in OFFLOAD_SECTIONS:
            if OFFLOAD_SECTIONS[name] not in offloaded:
                where = f"training.offload.{OFFLOAD_SECTIONS[name]}"
                raise ValueError(f"{path}: {_NO_EFFECT} without {where}")
            for inner in value if isinstance(value, Mapping) else ():
                _refuse(f"{path}.{inner}", inner, OFFLOAD_REFUSED)


def _refuse(path: str, key: str, reasons: Mapping[str, str]) -> None:
    if key in reasons:
        raise ValueError(f"{path}: {reasons[key]}")


def _check_types(given: Mapping[str, Any]) -> None:
    """Check names and types with DeepSpeed's models, and with its names where it has no model."""
    import deepspeed
    from pydantic import ValidationError

    models = _models()
    try:
        for key in given:
            if key not in models:
                raise ValueError(
                    f"{key}: DeepSpeed {deepspeed.__version__} has no such key"
                    f"{_near(key, [*models, *REFUSED])}"
                )
            models[key](given[key])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(map(str, (key, *first["loc"])))
        if first["type"] == "extra_forbidden":
            message = f"DeepSpeed {deepspeed.__version__} has no such key"
        else:
            message = f"is {first['input']!r}; {first['msg']}"
        raise ValueError(f"{path}: {message}") from None


def _near(key: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _models() -> dict[str, Callable[[Any], Any]]:
    """Return what checks the value of each key that is passed on."""
    from typing import Literal

    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import DeepSpeedMonitorConfig
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig
    from pydantic import (
        BaseModel,
        ConfigDict,
        PositiveFloat,
        PositiveInt,
        TypeAdapter,
        create_model,
    )

    def section(model: Any) -> Callable[[Any], Any]:
        def check(value: Any) -> Any:
            mapping = TypeAdapter(dict[str, Any]).validate_python(value)
            # "auto" is for other launchers; DeepSpeed's models drop it unless they are strict.
            return model(**({"strict": True} | mapping))

        return check

    def named(name: str, defaults: Mapping[str, Any]) -> Callable[[Any], Any]:
        fields: dict[str, Any] = {
            key: (Any if default is None else type(default), default)
            for key, default in defaults.items()
        }
        config = ConfigDict(extra="forbid", strict=True)
        return TypeAdapter(create_model(name, __config__=config, **fields)).validate_python

    def scalar(kind: Any) -> Callable[[Any], Any]:
        return TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python

    class Timers(BaseModel):
        model_config = ConfigDict(extra="forbid")
        throughput: DeepSpeedThroughputTimerConfig

    monitors = DeepSpeedMonitorConfig.model_fields
    flops_profiler = vars(DeepSpeedFlopsProfilerConfig({}))
    return {
        "zero_optimization": section(DeepSpeedZeroConfig),
        "aio": named("aio", AIO_DEFAULT_DICT),
        "communication_data_type": scalar(Literal["fp16", "bf16", "fp32"]),
        "prescale_gradients": scalar(bool),
        "gradient_predivide_factor": scalar(PositiveFloat),
        "steps_per_print": scalar(PositiveInt),
        "wall_clock_breakdown": scalar(bool),
        "memory_breakdown": scalar(bool),
        "dump_state": scalar(bool),
        "disable_python_gc": scalar(bool),
        "log_level": scalar(Literal["debug", "info", "warning", "error", "critical"]),
        "flops_profiler": named("flops_profiler", flops_profiler),
        "comms_logger": section(CommsLoggerConfig),
        "timers": TypeAdapter(Timers).validate_python,
        **{name: section(field.annotation) for name, field in monitors.items()},
    }


def keys_of_weights(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the given keys that change weights by rounding, and those that change them by more."""
    rounding, others = (
        {key: value for key, value in given.items() if key in keys}
        for keys in (ROUNDING, LOW_PRECISION)
    )
    return rounding, others
