"""A network on a CUDA card that is launched whole: a small network's kernels take less time than launching them."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SHAPES = 4  # recorded graphs kept, each with the memory of its activations

_turn = threading.Lock()  # a process records one graph at a time, and a graph's tensors serve one call at a time


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class CudaGraphed(nn.Module):
    """Records a network's forward pass as a CUDA graph, once for every shape that it is asked for, and replays it.

    The network must be in eval mode on the card, and its weights must stay where they are. No gradients: with any of
    them wanted, or during another recording, it is called as it is.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self._recorded: OrderedDict[tuple, _Recorded] = OrderedDict()

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Like the network: x_t (N, C, H, W), t (N,), labels (N,) or None."""
        if (torch.is_grad_enabled() and x_t.requires_grad) or torch.cuda.is_current_stream_capturing():
            return self.network(x_t, t, labels)
        inputs = (x_t, t) if labels is None else (x_t, t, labels)
        with _turn, torch.cuda.device(x_t.device):  # streams are those of the current card, which may be another
            recorded = self._recording(inputs)
            for static, tensor in zip(recorded.inputs, inputs, strict=True):
                static.copy_(tensor)
            recorded.graph.replay()
            return recorded.output.clone()

    def _recording(self, inputs: tuple[Tensor, ...]) -> _Recorded:
        """That of the inputs' shapes; the one that was asked for the longest ago makes way for a new one."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._recorded:
            self._recorded[key] = self._record(inputs)
            if len(self._recorded) > SHAPES:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        return self._recorded[key]

    @torch.inference_mode(False)  # what is recorded inside it could not be replayed outside
    @torch.no_grad()
    def _record(self, inputs: tuple[Tensor, ...]) -> _Recorded:
        static = tuple(tensor.clone() for tensor in inputs)
        side = torch.cuda.Stream()  # kernels choose and allocate what they need before, and not on the default stream
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.network(*static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads, such as the one that draws training batches, may go on using the card meanwhile
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            output = self.network(*static)
        return _Recorded(graph, static, output)
