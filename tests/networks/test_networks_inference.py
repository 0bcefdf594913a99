"""Copies of a network for inference, and recorded graphs, with a stand-in for CUDA that replays what it recorded."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from ddpm.networks import NetworkConfig, UNet, inference
from ddpm.networks.inference import CudaGraphed, InferenceNetworks, first_non_finite, weights_state

CONFIG = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[4], groups=4)


class Graph:
    """Stand-in for a CUDA graph: replaying computes the recorded call again, into the recorded output."""

    recording: "Graph | None" = None

    def replay(self):
        self.output.copy_(self.compute())


class record:
    def __init__(self, graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.graph = graph

    def __enter__(self):
        Graph.recording = self.graph

    def __exit__(self, *_):
        Graph.recording = None


class Sums(nn.Module):
    """x + t + labels, and how often it was computed; works in a recording as kernels do."""

    def __init__(self):
        super().__init__()
        self.calls: list[str] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        def compute() -> Tensor:
            h = x + t[:, None]
            return h if labels is None else h + 10 * labels[:, None]

        self.calls.append("warm" if Graph.recording is None else "recorded")
        output = compute()
        if Graph.recording is not None:
            Graph.recording.compute, Graph.recording.output = compute, output
        return output


@pytest.fixture
def cuda(monkeypatch):
    """Names of torch.cuda that a recording uses."""

    class Stream:
        def wait_stream(self, other):
            assert isinstance(other, Stream)

    for name, stand_in in {
        "is_current_stream_capturing": lambda: Graph.recording is not None,
        "device": lambda _: nullcontext(),
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda _: nullcontext(),
        "CUDAGraph": Graph,
        "graph": record,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)


def ramp(rows: int, start: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    x = start + torch.arange(rows * 3.0).reshape(rows, 3)
    return x, 0.5 + torch.arange(float(rows)), torch.arange(rows) % 3


@torch.no_grad()
def test_a_replay_answers_for_the_new_inputs(cuda):
    network = Sums()
    graphed = CudaGraphed(network)
    answers = []
    for start in (0.0, 100.0, -7.0):
        x, t, labels = ramp(4, start)
        answers.append((graphed(x, t, labels), x + t[:, None] + 10 * labels[:, None]))
        answers.append((graphed(x, t + 1), x + t[:, None] + 1))
    for found, expected in answers:  # each keeps its own memory
        assert torch.equal(found, expected)
    assert network.calls == ["warm", "warm", "recorded"] * 2  # with labels, and without


@torch.no_grad()
def test_a_graph_is_recorded_per_shape_and_format_and_the_least_used_is_dropped(cuda):
    network = Sums()
    graphed = CudaGraphed(network)
    for rows in (1, 2, 3, 4):
        graphed(*ramp(rows))
    graphed(*ramp(1))  # used again: 2 is now the oldest
    assert network.calls.count("recorded") == inference.SHAPES == 4
    graphed(*ramp(5))
    graphed(*ramp(1))
    assert network.calls.count("recorded") == 5
    graphed(*ramp(2))
    assert network.calls.count("recorded") == 6
    x, t, labels = ramp(2)
    assert torch.equal(graphed(x.double(), t, labels), x.double() + t[:, None] + 10 * labels[:, None])
    assert network.calls.count("recorded") == 7


def test_what_needs_a_gradient_or_runs_in_a_recording_is_called_as_it_is(cuda):
    network = Sums()
    graphed = CudaGraphed(network)
    x, t, labels = ramp(2)
    graphed(x.requires_grad_(), t, labels).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert network.calls == ["warm"]
    with record(Graph(), None, "thread_local"):
        assert torch.equal(graphed(x.detach(), t, labels), (x + t[:, None] + 10 * labels[:, None]).detach())
    assert network.calls == ["warm", "recorded"]
    with torch.no_grad():
        graphed(x, t, labels)
    assert network.calls[2:] == ["warm", "warm", "recorded"]
    graphed(x.detach(), t, labels)  # nothing to differentiate
    assert len(network.calls) == 5


# --- copies


def test_a_copy_is_kept_until_a_weight_changes():
    network = UNet(CONFIG, (8, 8), 1, 1).eval()
    copies = InferenceNetworks(network)
    first = copies.get(torch.bfloat16)
    assert first is copies.get(torch.bfloat16)
    assert first is not network
    assert {p.dtype for p in first.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert first.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    exact = copies.get(torch.float32)
    assert exact is not first
    assert copies.get(torch.bfloat16) is first  # each format has its own
    for change in (
        lambda: network.conv_in.bias.data.add_(1.0),
        lambda: network.conv_out.weight.data.mul_(2.0),
        lambda: setattr(network, "conv_in", type(network.conv_in)(1, 8, 3, padding=1)),
    ):
        before = copies.get(torch.float32)
        with torch.no_grad():
            change()
            next(network.parameters()).add_(0.0)
        after = copies.get(torch.float32)
        assert after is not before
        for name, value in network.state_dict().items():
            assert torch.equal(after.state_dict()[name], value)
        assert copies.get(torch.bfloat16) is not first


def test_compiled_copies_are_others(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *, dynamic: compiled.append((self, dynamic)))
    copies = InferenceNetworks(UNet(CONFIG, (8, 8), 1, 1).eval())
    plain = copies.get(torch.float32)
    assert not compiled
    copies.compiled = True
    other = copies.get(torch.float32)
    assert [(module is other, dynamic) for module, dynamic in compiled] == [(True, False)]
    assert other is not plain
    copies.compiled = False
    assert copies.get(torch.float32) is plain


def test_the_state_of_the_weights_follows_every_way_to_change_them():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    states = [weights_state(network)]
    assert weights_state(network) == states[0]
    with torch.no_grad():
        network[0].weight.add_(1)
        states.append(weights_state(network))
        network[1].running_mean.add_(1)
        states.append(weights_state(network))
        network[0].bias.data = torch.zeros(2)
        states.append(weights_state(network))
        network[0].weight = nn.Parameter(network[0].weight.clone())
        states.append(weights_state(network))
    assert len(set(states)) == 5
    with torch.inference_mode():
        inferred = nn.Linear(2, 2)
    assert weights_state(inferred) == weights_state(inferred)


def test_the_first_tensor_that_is_not_finite_is_named():
    good, nan, infinite = torch.ones(3), torch.tensor([1.0, float("nan")]), torch.tensor([-float("inf")])
    assert first_non_finite({"a": good, "b": torch.tensor([3])}) is None
    assert first_non_finite({"a": good, "b": nan, "c": infinite}) == "b"
    assert first_non_finite({"c": infinite, "b": nan}) == "c"
