"""Networks ready for inference: cast, compiled or recorded as a CUDA graph once, and cached; their cost in FLOPs."""

import copy
import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddpm.networks.unet import Attention, Conv, Linear, UNet

SHAPES = 4  # recorded graphs kept, each with the memory of its activations

_turn = threading.Lock()  # a process records one graph at a time, and a graph's tensors serve one call at a time


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class CudaGraphed(nn.Module):
    """Record a network's forward pass as a CUDA graph, once per input shape, and replay it.

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


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, or None if all numbers are finite."""
    return next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)


def weights_state(network: nn.Module) -> tuple:
    """Equal for as long as no weight was written to, replaced or moved; what was made from the weights is then good."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


class InferenceNetworks:
    """A network's copies, one a number format. They are made anew when its weights have changed.

    `compiled` says whether they go through `torch.compile`; on a CUDA card they are recorded as graphs.
    """

    def __init__(self, network: nn.Module):
        self.network, self.compiled = network, False
        self._copies: dict[tuple[torch.dtype, bool], nn.Module] = {}
        self._state: tuple = ()

    @torch.inference_mode(False)  # a copy made inside it could never again be asked outside
    def of(self, dtype: torch.dtype) -> nn.Module:
        """The network with its weights in `dtype`, channels last."""
        state = weights_state(self.network)
        if state != self._state:
            self._copies.clear()
            self._state = state
        key = (dtype, self.compiled)
        if key not in self._copies:
            network: nn.Module = copy.deepcopy(self.network).to(dtype).to(memory_format=torch.channels_last)
            if self.compiled:
                network.compile(dynamic=False)
            on_card = next(network.parameters()).device.type == "cuda"
            self._copies[key] = CudaGraphed(network) if on_card else network
        return self._copies[key]


def count_flops(network: UNet) -> int:
    """Operations of one forward pass for one image of the network's size: 2 a multiply-add, counting convolutions,
    linear layers and the two matrix products of attention. A training step costs three times as much.

    It counts the network as its paper writes it, whatever shortcut computes it; nothing is computed.
    """
    total = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, Conv):
            total += 2 * output.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        elif isinstance(layer, Linear):
            total += 2 * output.numel() * layer.in_features
        elif isinstance(layer, Attention):
            channels, tokens = output.shape[1], output.shape[2] * output.shape[3]
            total += 2 * 2 * tokens * tokens * channels

    shadow = copy.deepcopy(network).to("meta").eval()
    for layer in shadow.modules():
        layer.register_forward_hook(add)
    x_t = torch.empty(1, shadow.in_channels, *shadow.image_size, device="meta")
    labels = None if shadow.num_classes is None else torch.zeros(1, dtype=torch.int64, device="meta")
    with torch.no_grad():
        shadow(x_t, torch.zeros(1, device="meta"), labels)
    return total
