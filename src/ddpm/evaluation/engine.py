"""What computes a frozen network: OpenVINO on a CPU where it is installed, which is twice as fast, else PyTorch."""

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Engine:
    """float32 (N, ...) -> float32 (N, D) on the CPU."""

    name: str
    run: Callable[[Tensor], np.ndarray]

    def __call__(self, batch: Tensor) -> np.ndarray:
        return self.run(batch)


def compile_network(network: nn.Module, shape: Sequence[int], device: torch.device) -> Engine:
    """The fastest engine for a network of one input (N, *shape). Always float32: bf16 moves the features by 4%."""
    if device.type == "cpu":
        try:
            return _openvino(network, shape)
        except ImportError:
            pass
        except Exception as error:  # what it cannot convert raises a kind of each of its layers
            kind = type(error).__name__  # its message is pages of OpenVINO's own source files
            warnings.warn(f"OpenVINO cannot compute this network ({kind}): PyTorch does, more slowly", stacklevel=2)
    return _torch(network, device)


def _openvino(network: nn.Module, shape: Sequence[int]) -> Engine:
    openvino = _library()
    with warnings.catch_warnings():  # of the tracer, about PyTorch's own deprecations
        warnings.simplefilter("ignore")
        model = openvino.convert_model(network, example_input=torch.zeros(1, *shape), input=[-1, *shape])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = _core().compile_model(model, "CPU", settings)
    return Engine("openvino", lambda batch: compiled(np.ascontiguousarray(batch.numpy()))[0].copy())


@functools.cache
def _core() -> Any:
    """The one OpenVINO core of this process.

    Each core gives its thread another stack for signals. Of two, the one that goes last puts back the stack that the
    first has freed already, and the next Ctrl-C would be a segmentation fault.
    """
    return _library().Core()


def _library() -> Any:
    """OpenVINO without openvino-telemetry, which would tell Google Analytics of every conversion, fork this process
    for it and write into the home folder. Where that package is not to be had, OpenVINO does without."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # this is how an import is refused
    import openvino

    return openvino


def _torch(network: nn.Module, device: torch.device) -> Engine:
    network = network.to(device).to(memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def run(batch: Tensor) -> np.ndarray:
        batch = batch.to(device).contiguous(memory_format=torch.channels_last)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return network(batch).float().cpu().numpy()

    return Engine("torch", run)
