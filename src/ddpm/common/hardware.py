"""What the machine can do: the device to run on and the number format to compute in."""

import os

import torch

from ddpm.common.errors import UserError
from ddpm.common.names import Precision

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def default_device() -> torch.device:
    """Return the CUDA GPU of this process, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the number format of the network's forward pass; "auto" is bf16 if the hardware multiplies in it.

    CUDA GPUs older than Ampere get fp16, CPUs without bf16 instructions (emulating them is slower) and MPS fp32.
    "fp32" on a CUDA GPU also turns off TF32 for this process: by default PyTorch lets convolutions round their inputs
    to its 10 bits (float32 has 23).
    """
    if precision != "auto":
        if precision not in DTYPES:
            raise UserError(f"no precision named {precision!r}; there are auto, bf16, fp16 and fp32")
        if precision == "fp32" and device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
        return DTYPES[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else torch.float32


def precision_name(dtype: torch.dtype) -> Precision:
    """Return the name of a number format: the inverse of `compute_dtype`."""
    return next(name for name in ("bf16", "fp16", "fp32") if DTYPES[name] == dtype)


def cpu_has_bf16() -> bool:
    """Return whether this CPU has bf16 dot products (AVX-512 BF16 or AMX)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)
