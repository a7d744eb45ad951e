"""The peaks of GPUs that MFU is a share of."""

import pytest

from cluster.device_peaks import peak_tflops


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989.4),
        ("NVIDIA H100 80GB HBM3", "float32", False, 66.9),
        ("NVIDIA H100 80GB HBM3", "float32", True, 494.7),
        ("NVIDIA H100 PCIe", "bf16", False, 756.0),
        ("NVIDIA H200", "fp16", False, 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", True, 312.0),
        ("NVIDIA L40S", "bf16", False, 362.0),
        ("NVIDIA L4", "bf16", False, 121.0),
        ("NVIDIA A10G", "bf16", False, 70.0),
        ("Tesla T4", "fp16", False, 65.0),
        ("Tesla T4", "float32", True, 8.1),
        ("Tesla T4", "bf16", False, None),
        ("NVIDIA A1000", "bf16", False, None),
        ("NVIDIA GeForce RTX 4090", "bf16", False, 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", False, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", False, None),
        ("Tesla V100-SXM2-16GB", "fp16", False, 125.0),
        ("a GPU of tomorrow", "bf16", False, None),
    ],
)
def test_the_longest_name_counts_and_unknown_gpus_have_no_peak(
    name: str, precision: str, tf32: bool, peak: float | None
) -> None:
    assert peak_tflops(name, precision, tf32=tf32) == peak
