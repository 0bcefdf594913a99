"""Kernels that give the same bits every time, which an exact restart on a CUDA card needs."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def reproducible_kernels(device: torch.device) -> Iterator[None]:
    """While inside, CUDA sums in a fixed order; CPUs always do. What was set before comes back after."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the process first multiplies matrices
    before, settings = torch.get_deterministic_debug_mode(), _settings()
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # nothing here reads what it has not written
    cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)  # flash attention has a backward pass in a fixed order
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        settings.fill_uninitialized_memory = fills
        torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)


def _settings() -> Any:
    """A module whose one attribute is a property, which type checkers do not see."""
    return torch.utils.deterministic
