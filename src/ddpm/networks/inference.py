"""Networks ready for inference: cast, compiled or recorded as a CUDA graph once, and cached; their cost in FLOPs."""

import copy
import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm.networks.unet import ROWS, UNet

SHAPES = 4  # recorded graphs that are kept; each holds the memory of its activations
SMALL_BATCHES = (1, 2, 4, 8)  # images in a forward pass that may give the bits of a larger one

_turn = threading.Lock()  # a process records one graph at a time, and a graph's tensors serve one call at a time


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class CudaGraphed(nn.Module):
    """Record a network's forward pass as a CUDA graph, once per input shape, and replay it.

    The network must be in eval mode on the GPU, and its weights must stay where they are. If gradients are wanted, or
    during another recording, it is called as it is.
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
        with _turn, torch.cuda.device(x_t.device):  # streams belong to the current GPU, which may be another
            recorded = self._recording(inputs)
            for static, tensor in zip(recorded.inputs, inputs, strict=True):
                static.copy_(tensor)
            recorded.graph.replay()
            return recorded.output.clone()

    def _recording(self, inputs: tuple[Tensor, ...]) -> _Recorded:
        """Return the graph for these input shapes; record it if needed (the least recently used one is dropped)."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._recorded:
            self._recorded[key] = self._record(inputs)
            if len(self._recorded) > SHAPES:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        return self._recorded[key]

    @torch.inference_mode(False)  # a graph recorded in inference mode could not be replayed outside it
    @torch.no_grad()
    def _record(self, inputs: tuple[Tensor, ...]) -> _Recorded:
        static = tuple(tensor.clone() for tensor in inputs)
        side = torch.cuda.Stream()  # warm-up: kernels choose algorithms and allocate, off the default stream
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.network(*static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads, such as the one that prepares training batches, may use the GPU meanwhile
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            output = self.network(*static)
        return _Recorded(graph, static, output)


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, or None if all numbers are finite."""
    finite = {name: torch.isfinite(tensor).all() for name, tensor in tensors.items()}  # queued before the first wait
    return next((name for name, flag in finite.items() if not flag), None)


def weights_state(network: nn.Module) -> tuple:
    """Return a value that changes when a weight is written to, replaced or moved."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


class InferenceNetworks:
    """Copies of a network, one per number format, made again when its weights change.

    `compiled`: whether copies go through `torch.compile`. The U-Net of this package is replayed as a CUDA graph on a
    GPU; any other network is called as it is, since it may synchronise with the host.
    """

    def __init__(self, network: nn.Module):
        self.network, self.compiled = network, False
        self._copies: dict[tuple[torch.dtype, bool], nn.Module] = {}
        self._state: tuple = ()
        self._smallest: dict[tuple, bool] = {}

    @torch.inference_mode(False)  # a copy made in inference mode could not be used outside it
    def get(self, dtype: torch.dtype) -> nn.Module:
        """Return the network with its weights in `dtype`, channels last."""
        state = weights_state(self.network)
        if state != self._state:
            self._copies.clear()
            self._smallest.clear()
            self._state = state
        key = (dtype, self.compiled)
        if key not in self._copies:
            network: nn.Module = copy.deepcopy(self.network).to(dtype).to(memory_format=torch.channels_last)
            if self.compiled:
                network.compile(dynamic=False)
            graphed = isinstance(network, UNet) and next(network.parameters()).device.type == "cuda"
            self._copies[key] = CudaGraphed(network) if graphed else network
        return self._copies[key]

    def smallest_batch(self, dtype: torch.dtype, images: int, largest: int, rows: int = 1) -> int:
        """Return the least number of images >= `images` whose forward pass gives the bits of one of `largest` images.

        A kernel may add in another order if its input has another shape. So the same images go through both shapes
        once, and every layer is compared. Only done on a CPU, where small batches are much cheaper.

        Args:
            rows: of the network's batch per image; 2 if guidance doubles it.
        """
        network = self.get(dtype)
        if not isinstance(network, UNet) or self.compiled or next(network.parameters()).device.type != "cpu":
            return largest
        reference: list[Tensor] = []
        for size in SMALL_BATCHES:
            if images <= size < largest:
                key = (dtype, torch.get_num_threads(), rows * size, rows * largest)
                if key not in self._smallest:
                    reference = reference or layer_outputs(network, dtype, rows * largest)
                    found = layer_outputs(network, dtype, rows * size)
                    self._smallest[key] = all(
                        torch.equal(ours, theirs[: len(ours)]) for ours, theirs in zip(found, reference, strict=True)
                    )
                if self._smallest[key]:
                    return size
        return largest


@torch.inference_mode()
def layer_outputs(network: UNet, dtype: torch.dtype, rows: int) -> list[Tensor]:
    """Return what each layer makes of the first `rows` of fixed random images."""
    outputs: list[Tensor] = []
    layers = [module for module in network.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output)) for layer in layers]
    shape = (network.in_channels, *network.image_size)
    x_t = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(row)) for row in range(rows)])
    labels = None if network.num_classes is None else torch.arange(rows) % network.num_classes
    try:
        network(x_t.to(dtype), torch.full((rows,), 500.0), labels)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def count_flops(network: UNet) -> int:
    """Count the operations of one forward pass for one image of the network's size: 2 per multiply-add.

    Convolutions, linear layers and the two matrix products of attention count. A training step costs three times as
    much. The network is counted as its paper defines it, whatever shortcut computes it; nothing is computed.
    """
    shadow = copy.deepcopy(network).to("meta").eval().requires_grad_(False)
    x_t = torch.empty(ROWS, shadow.in_channels, *shadow.image_size, device="meta")  # so that no layer pads its input
    labels = None if shadow.num_classes is None else torch.zeros(ROWS, dtype=torch.int64, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(x_t, torch.zeros(ROWS, device="meta"), labels)
    return counter.get_total_flops() // ROWS
