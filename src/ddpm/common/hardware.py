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

    That is bf16 on a CUDA GPU (fp16 if it is older than Ampere), float32 on MPS, and on a CPU bf16 if it multiplies in
    it; others emulate it and take several times as long.
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
    return torch.bfloat16 if device.type == "cpu" and cpu_prefers_bf16() else torch.float32


def precision_name(dtype: torch.dtype) -> Precision:
    """Return the name of a number format: the inverse of `compute_dtype`."""
    return next(name for name in ("bf16", "fp16", "fp32") if DTYPES[name] == dtype)


def cpu_prefers_bf16() -> bool:
    """Return whether this CPU is to compute in bf16.

    The choice changes the bits of every result, so it must be the same in each process, also if the machine is busy
    and the clock errs. The processor's instructions say what to expect, and only a clear measurement overrules them.
    """
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    has_instructions = any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return bf16_speedup() > (1 / 1.5 if has_instructions else 1.5)


@functools.cache
def bf16_speedup() -> float:
    """Return how many times as fast as in float32 this CPU convolves in bf16. Measured once, in about 0.05 s.

    It is about 2 with instructions for bf16, and 0.2 to 0.4 without them.
    """
    best = {torch.bfloat16: float("inf"), torch.float32: float("inf")}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other as soon as another process takes a core
    with torch.inference_mode():
        for dtype in [*best] * 20:  # in turns, and the best of each: another process may take the core for a while
            order = torch.channels_last if dtype == torch.bfloat16 else torch.contiguous_format
            x = torch.ones(4, 64, 16, 16, dtype=dtype).contiguous(memory_format=order)
            kernel = torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=order)
            begun = time.perf_counter()
            F.conv2d(x, kernel, padding=1)
            best[dtype] = min(best[dtype], time.perf_counter() - begun)
    torch.set_num_threads(threads)
    return best[torch.float32] / best[torch.bfloat16]
