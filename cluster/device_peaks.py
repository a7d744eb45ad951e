"""The peak speed of GPUs, which the use of a device (MFU) is a share of."""

import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PeakTflops:
    """The peak of one device in 10¹² FLOPs a second, for dense products without sparsity.

    Attributes:
        half: Of bfloat16 and float16 with sums in float32.
        tf32: Of TF32; None if the device has none.
        float32: Of float32.
        bf16: Whether the device multiplies bfloat16 at that speed.
        fp8: Whether the device multiplies fp8.
    """

    half: float
    tf32: float | None
    float32: float
    bf16: bool = True
    fp8: bool = True


_OTHER = re.compile(r"\b(Laptop|Max-Q|MIG|Ti|4090 D)\b")
"""What makes a name that of a slower GPU, or of a part of one."""
_HOPPER_SXM = PeakTflops(989.4, 494.7, 66.9)
_AMPERE_100 = PeakTflops(312.0, 156.0, 19.5, fp8=False)

# The first name that is in the device's name, as whole words, counts; so longer names come before
# their parts. The numbers are from NVIDIA's data sheets and architecture white papers of each GPU
# (Blackwell: HGX and GB200 data sheets; Hopper: H100, H100 NVL, H200 and H200 NVL; Ada: L4, L40,
# L40S and the Ada white paper; Ampere: A100, A30, A40, A10 and the GA102 white paper; V100; T4) and
# from AMD's data sheet of the MI300X. Where a sheet gives the value with sparsity, half of it is
# here.
PEAKS: dict[str, PeakTflops] = {
    "GB200": PeakTflops(2500.0, 1250.0, 80.0),
    "B200": PeakTflops(2250.0, 1125.0, 75.0),
    "GH200": _HOPPER_SXM,
    "H200 NVL": PeakTflops(835.5, 417.5, 60.0),
    "H200": _HOPPER_SXM,
    "H100 NVL": PeakTflops(835.5, 417.5, 60.0),
    "H100 PCIe": PeakTflops(756.0, 378.0, 51.2),
    "H100": _HOPPER_SXM,
    "L40S": PeakTflops(362.0, 183.0, 91.6),
    "L40": PeakTflops(181.0, 90.5, 90.5),
    "L4": PeakTflops(121.0, 60.0, 30.3),
    "RTX 6000 Ada": PeakTflops(364.2, 182.1, 91.1),
    "RTX 4090": PeakTflops(165.2, 82.6, 82.6),
    "A100": _AMPERE_100,
    "A800": _AMPERE_100,
    "RTX A6000": PeakTflops(154.8, 77.4, 38.7, fp8=False),
    "A40": PeakTflops(149.7, 74.8, 37.4, fp8=False),
    "A30": PeakTflops(165.0, 82.0, 10.3, fp8=False),
    "A10G": PeakTflops(70.0, 35.0, 35.0, fp8=False),
    "A10": PeakTflops(125.0, 62.5, 31.2, fp8=False),
    "RTX 3090": PeakTflops(71.0, 35.6, 35.6, fp8=False),
    "V100-SXM2": PeakTflops(125.0, None, 15.7, bf16=False, fp8=False),
    "V100-PCIE": PeakTflops(112.0, None, 14.0, bf16=False, fp8=False),
    "T4": PeakTflops(65.0, None, 8.1, bf16=False, fp8=False),
    "MI300X": PeakTflops(1307.4, 653.7, 163.4),
}
"""The peaks of GPUs, by a part of the name that `torch.cuda.get_device_name` gives."""


def peak_tflops(device_name: str, precision: str, *, tf32: bool = False) -> float | None:
    """Return the peak of a GPU in 10¹² FLOPs a second, or None if it is not known.

    Args:
        device_name: The name that `torch.cuda.get_device_name` gives.
        precision: The precision of products: `fp8`, `bf16`, `fp16` or `float32`. Of a device with
            fp8, its peak in bfloat16 is returned: most products are in that.
        tf32: Whether products of float32 are computed in TF32.
    """
    if _OTHER.search(device_name):
        return None
    named = (peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", device_name))
    found = next(named, None)
    if found is None or (precision == "bf16" and not found.bf16):
        return None
    if precision == "fp8":
        return found.half if found.fp8 else None
    if precision in ("bf16", "fp16"):
        return found.half
    return found.tf32 if tf32 and found.tf32 is not None else found.float32


def peak_of(device: torch.device, precision: str) -> float | None:
    """Return the peak of a device of this machine, as `peak_tflops` does. A CPU has None."""
    if device.type != "cuda":
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return peak_tflops(torch.cuda.get_device_name(device), precision, tf32=tf32)
