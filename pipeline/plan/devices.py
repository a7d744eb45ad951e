"""What is known of the devices that one can rent."""

from dataclasses import dataclass

import psutil

from cluster.device_peaks import peak_tflops
from pipeline.errors import UserError

GIB = 2**30
CPU_TFLOPS_PER_CORE = 0.09
"""Products of float32 on one core with AVX2, as measured on an AMD EPYC: 0.185 on two cores."""
CPU_BANDWIDTH = 20.0
CUDA_CONTEXT_GIB = 0.75
"""What the CUDA context, NCCL and the workspaces of cuBLAS take beside tensors."""
PROCESS_GIB = 0.75
"""What a training's process takes beside tensors: Python, torch, DeepSpeed, Ray and MLflow."""


@dataclass(frozen=True)
class Device:
    """One device that trains.

    Attributes:
        name: Its name on the command line.
        is_gpu: Whether it is a GPU.
        memory: Its memory, in bytes.
        tflops: Its peak at the training's precision, dense, in 10¹² FLOPs a second.
        float32_tflops: Its peak in float32.
        bandwidth: How fast it reads its memory, in 10⁹ bytes a second.
        link: How fast it sends to another one of the same machine, in 10⁹ bytes a second.
        overhead: The bytes that are taken beside tensors.
        has_bf16: Whether it multiplies bfloat16 at its full speed.
        has_fp8: Whether it multiplies fp8.
    """

    name: str
    is_gpu: bool
    memory: int
    tflops: float
    float32_tflops: float
    bandwidth: float
    link: float
    overhead: int
    has_bf16: bool = True
    has_fp8: bool = True


@dataclass(frozen=True)
class _Sheet:
    """A GPU's data sheet: its name in `cluster.device_peaks`, GiB as the driver reports them, and
    the bandwidths of its memory and of its link in 10⁹ bytes a second (one direction)."""

    name: str
    gib: float
    bandwidth: float
    link: float


# Memory is what nvidia-smi shows, which is less than the sheet's. Bandwidths are from NVIDIA's data
# sheets of each GPU; a link is NVLink where the board has one, and else PCIe (16 lanes).
GPUS: dict[str, _Sheet] = {
    "b200": _Sheet("B200", 179.0, 8000, 900),
    "h200": _Sheet("H200", 140.4, 4800, 450),
    "h100": _Sheet("H100", 79.6, 3350, 450),
    "h100-pcie": _Sheet("H100 PCIe", 79.6, 2000, 64),
    "h100-nvl": _Sheet("H100 NVL", 93.6, 3900, 300),
    "a100-80": _Sheet("A100", 80.0, 2039, 300),
    "a100-40": _Sheet("A100", 39.6, 1555, 300),
    "l40s": _Sheet("L40S", 45.0, 864, 32),
    "l40": _Sheet("L40", 45.0, 864, 32),
    "l4": _Sheet("L4", 22.5, 300, 32),
    "a40": _Sheet("A40", 45.0, 696, 32),
    "a30": _Sheet("A30", 24.0, 933, 32),
    "a10": _Sheet("A10", 22.5, 600, 32),
    "a10g": _Sheet("A10G", 22.5, 600, 32),
    "a6000": _Sheet("RTX A6000", 48.0, 768, 32),
    "v100-32": _Sheet("V100-SXM2", 31.7, 900, 150),
    "v100-16": _Sheet("V100-SXM2", 15.8, 900, 150),
    "t4": _Sheet("T4", 15.0, 320, 16),
    "rtx4090": _Sheet("RTX 4090", 24.0, 1008, 32),
    "rtx3090": _Sheet("RTX 3090", 24.0, 936, 32),
}
NAMES = ("cpu", *GPUS)


def device_named(
    name: str,
    precision: str,
    *,
    cores: int = 1,
    memory_gib: float | None = None,
    tflops: float | None = None,
) -> Device:
    """Return a device.

    Args:
        name: A name from `NAMES`, or any other if `memory_gib` and `tflops` are given.
        precision: The precision of products: `float32`, `bf16` or `fp16`.
        cores: The cores of each worker, for a CPU.
        memory_gib: Its memory, instead of what is known, in GiB.
        tflops: Its peak, instead of what is known, in 10¹² FLOPs a second.

    Raises:
        UserError: The name is not known, and a number is missing.
    """
    if name == "cpu":
        own = CPU_TFLOPS_PER_CORE * cores
        memory = psutil.virtual_memory().total if memory_gib is None else int(memory_gib * GIB)
        peak = tflops or own
        overhead = int(PROCESS_GIB * GIB)
        return Device(
            name,
            False,
            memory,
            peak,
            peak,
            CPU_BANDWIDTH,
            CPU_BANDWIDTH / 4,
            overhead,
            has_fp8=False,
        )
    overhead = int(CUDA_CONTEXT_GIB * GIB)
    sheet = GPUS.get(name)
    if sheet is None:
        if memory_gib is None or tflops is None:
            raise UserError(
                f"--gpu {name}: is not known; give --gpu-memory and --gpu-tflops, or one of "
                f"{', '.join(NAMES)}"
            )
        # Most GPUs read 10 bytes in the time of some 3,000 FLOPs at half precision.
        return Device(
            name, True, int(memory_gib * GIB), tflops, tflops / 8, 3.4 * tflops, 32, overhead
        )
    known = peak_tflops(sheet.name, precision) or peak_tflops(sheet.name, "fp16")
    float32 = peak_tflops(sheet.name, "float32")
    assert known is not None and float32 is not None
    has_bf16 = peak_tflops(sheet.name, "bf16") is not None
    has_fp8 = peak_tflops(sheet.name, "fp8") is not None
    gib = sheet.gib if memory_gib is None else memory_gib
    return Device(
        name,
        True,
        int(gib * GIB),
        tflops or known,
        float32,
        sheet.bandwidth,
        sheet.link,
        overhead,
        has_bf16,
        has_fp8,
    )
