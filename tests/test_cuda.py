"""What only a CUDA card can show: graphs, compilation, and a restart that is exact there too."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ddpm.data import open_dataset
from ddpm.data.config import DataConfig
from ddpm.diffusion.timestep_samplers import UniformSampler
from ddpm.networks import NetworkConfig, UNet
from ddpm.networks.inference import SHAPES, CudaGraphed
from ddpm.restoration import Inpainting, as_deepinv, restore
from ddpm.training import load_config, train
from ddpm.training.batches import BatchSource, place_dataset
from ddpm.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
CUDA = torch.device("cuda")


@pytest.fixture
def exact_floats():
    """float32 that is float32: convolutions take TF32 by default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def configuration(tmp_path: Path):
    """configuration(steps=3, …) -> a run of 16×16 colour images of two classes."""
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images, np.arange(40) % 2)

    def make(**training):
        text = f"""
data:     {{source: {tmp_path / "data.npz"}, image_size: 16, channels: 3, labels: true, random_flip: true}}
diffusion: {{timesteps: 100}}
network:  {{channels: 32, channel_mult: [1, 2], blocks: 1, attention: [8], groups: 8, dropout: 0.2}}
training: {{steps: 6, batch_size: 8, learning_rate: 1.0e-3, warmup: 2, checkpoint_every: 3, preview_every: 3,
           preview_images: 4, preview_steps: 2, log_every: 1, loggers: []}}
"""
        (tmp_path / "run.yaml").write_text(text)
        return load_config(tmp_path / "run.yaml", {f"training.{name}": value for name, value in training.items()})

    return make


def test_the_network_answers_as_on_the_cpu(exact_floats) -> None:
    config = NetworkConfig(channels=32, channel_mult=[1, 2], blocks=1, attention=[8], groups=8)
    network = UNet(config, (16, 16), 3, 3, 4).eval()
    x, t, labels = torch.randn(3, 3, 16, 16), torch.tensor([0.0, 10.5, 999.0]), torch.tensor([0, 3, 1])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        expected = network(x, t, labels)
        network.to(CUDA)
        found = network(x.to(CUDA), t.to(CUDA), labels.to(CUDA)).cpu()
        half = network(x.to(CUDA, torch.bfloat16), t.to(CUDA), labels.to(CUDA)).cpu().float()
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert (half - expected).norm() < 3e-2 * expected.norm()


def test_a_graph_gives_the_bits_of_its_network(conditional_model) -> None:
    """For new values in old shapes, for more shapes than are kept, and for a shape that was dropped."""
    network = conditional_model.to(CUDA).network
    graphed = CudaGraphed(network)
    for size in [*range(1, SHAPES + 3), 1]:
        for _ in range(2):
            x, t = torch.randn(size, 1, 8, 8, device=CUDA), torch.rand(size, device=CUDA) * 40
            labels = torch.arange(size, device=CUDA) % 4
            with torch.no_grad():
                assert torch.equal(graphed(x, t, labels), network(x, t, labels))


def test_a_graph_serves_many_threads(conditional_model) -> None:
    """Each gets the answer to its own question, though all ask with the same recorded tensors."""
    network = conditional_model.to(CUDA).network
    graphed = CudaGraphed(network)

    def wrong(seed: int) -> int:
        generator, found = torch.Generator(CUDA).manual_seed(seed), 0
        for _ in range(200):
            x, t = torch.randn(2, 1, 8, 8, device=CUDA, generator=generator), torch.full((2,), 3.0, device=CUDA)
            with torch.no_grad():
                found += not torch.equal(graphed(x, t, t.long()), network(x, t, t.long()))
        return found

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(wrong, range(4))) == [0] * 4


def test_a_model_that_was_asked_in_inference_mode_answers_outside(conditional_model) -> None:
    options = {"steps": 3, "num": 2, "labels": [0, 1]}
    conditional_model.to(CUDA)
    with torch.inference_mode():
        expected = conditional_model.sample(**options)
    assert torch.equal(conditional_model.sample(**options), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second card")
def test_another_card_than_the_current_one_draws_alike(conditional_model) -> None:
    options = {"steps": 6, "num": 4, "precision": "fp32", "batch_size": 4}
    expected = conditional_model.to("cuda:0").sample(**options)
    assert torch.cuda.current_device() == 0
    assert torch.equal(conditional_model.to("cuda:1").sample(**options), expected)


def test_a_graph_passes_gradients(model) -> None:
    model.to(CUDA)
    x = torch.randn(2, 1, 8, 8, device=CUDA, requires_grad=True)
    CudaGraphed(model.network)(x, torch.tensor([3.0, 30.0], device=CUDA)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_samples_are_those_of_the_cpu(conditional_model, guidance: float) -> None:
    options = {"steps": 6, "labels": [0, 2], "guidance": guidance, "precision": "fp32", "batch_size": 4}
    expected = conditional_model.sample(6, **options)
    found = conditional_model.to(CUDA).sample(6, **options)
    assert (found - expected).abs().max() < 2 / 255
    assert torch.equal(found[:2], conditional_model.sample(2, **options))


def test_a_restoration_leaves_the_operator_where_it_is(exact_floats, model) -> None:
    operator = Inpainting((1, 8, 8), torch.arange(8).expand(8, 8) < 4)
    y = operator.H(torch.rand(2, 1, 8, 8))
    expected = restore(model, y, operator, steps=3, precision="fp32").samples
    found = restore(model.to(CUDA), y, operator, steps=3, precision="fp32").samples
    assert not operator.known.is_cuda
    assert (found - expected).abs().max() < 2 / 255


@pytest.mark.parametrize("sigma", [0.1, torch.tensor([0.1, 0.2])])
def test_deepinvs_denoiser_answers_where_it_is_asked(exact_floats, model, sigma) -> None:
    pytest.importorskip("deepinv")
    x = torch.rand(2, 1, 8, 8)
    expected = as_deepinv(model, precision="fp32")(x, sigma)
    found = as_deepinv(model.to(CUDA), precision="fp32")(x, sigma)
    assert (found - expected).abs().max() < 1e-3


def test_the_data_stay_on_the_card(configuration) -> None:
    config: DataConfig = configuration().data
    dataset = open_dataset(config)
    place_dataset(dataset, torch.device(CUDA))
    options = {"batch_size": 8, "seed": 0, "random_flip": True}
    images, labels = BatchSource(dataset, UniformSampler(10), **options).images(0, range(8))
    assert dataset.images.is_cuda
    assert images.is_cuda
    elsewhere, same = BatchSource(open_dataset(config), UniformSampler(10), **options).images(0, range(8))
    assert torch.allclose(images.cpu(), elsewhere, atol=1e-6)  # a card divides by multiplying
    assert torch.equal(labels.cpu(), same)


def test_a_card_is_charged_for_the_data_that_lie_on_it(configuration, tmp_path: Path, monkeypatch) -> None:
    fixed = []
    for share in (0.0, 0.25):
        monkeypatch.setattr("ddpm.training.batches.DATASET_FRACTION", share)
        run = Trainer(configuration(), tmp_path / "run")
        fixed.append(run.memory.fixed)
    assert fixed[1] - fixed[0] == 40 * 16 * 16 * 3


@pytest.mark.parametrize("compiled", [False, True])
def test_a_restart_is_exact(configuration, tmp_path: Path, compiled: bool) -> None:
    config = configuration(compile=compiled)
    undisturbed = train(config, tmp_path / "undisturbed")
    run = train(config, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "000006")
    train(config, run, resume=True)
    one, other = (load_file(folder / "model/unet/diffusion_pytorch_model.safetensors") for folder in (undisturbed, run))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_compiled_training_learns_the_same(configuration, tmp_path: Path) -> None:
    """The same losses, to what half precision rounds."""
    losses = {}
    for compiled in (False, True):
        run = train(configuration(compile=compiled), tmp_path / str(compiled))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses[compiled] = torch.tensor([line["loss"] for line in lines if "loss" in line])
    assert len(losses[True]) == 6
    assert torch.allclose(losses[False], losses[True], rtol=2e-2)
