"""What the machine can do: the device to run on and the number format to compute in."""

import functools
import os
import time

import torch
import torch.nn.functional as F

from ddpm.common.errors import UserError
from ddpm.common.names import Precision

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def default_device() -> torch.device:
    """Return the CUDA GPU of this process, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the number format of the network's forward pass; "auto" is the fastest that the network bears.

    That is bf16 on a CUDA GPU (fp16 if it is older than Ampere), float32 on MPS, and on a CPU bf16 if it measures as
    faster than float32: some multiply in it, others emulate it and take several times as long.
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
    return torch.bfloat16 if device.type == "cpu" and bf16_speedup() > 1 else torch.float32


def precision_name(dtype: torch.dtype) -> Precision:
    """Return the name of a number format: the inverse of `compute_dtype`."""
    return next(name for name in ("bf16", "fp16", "fp32") if DTYPES[name] == dtype)


@functools.cache
def bf16_speedup() -> float:
    """Return how many times as fast as in float32 this CPU convolves in bf16. Measured once, in less than 0.1 s.

    It is about 2 with instructions for bf16, and 0.2 to 0.4 without them. So the choice is the same each time.
    """
    best = {torch.bfloat16: float("inf"), torch.float32: float("inf")}
    with torch.inference_mode():
        for dtype in [*best] * 5:  # in turns, and the best of each: another process may take the core for a while
            order = torch.channels_last if dtype == torch.bfloat16 else torch.contiguous_format
            x = torch.ones(8, 64, 16, 16, dtype=dtype).contiguous(memory_format=order)
            kernel = torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=order)
            begun = time.perf_counter()
            F.conv2d(x, kernel, padding=1)
            best[dtype] = min(best[dtype], time.perf_counter() - begun)
    return best[torch.float32] / best[torch.bfloat16]
