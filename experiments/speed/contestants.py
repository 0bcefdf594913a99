"""Networks to time, and one training step and one sampling run of each library, as its documentation shows them."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from ema_pytorch import EMA
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ddpm.common.hardware import compute_dtype
from ddpm.interop.diffusers_config import to_unet2d
from ddpm.networks import NetworkConfig, UNet
from ddpm.training.compute import reproducible_kernels
from ddpm.training.config import Config
from ddpm.training.trainer import Trainer
from experiments.lib import parameter_count

IMAGES = 256  # random images of the training set
DIFFUSERS, DIFFUSERS_BEST = "Diffusers, as documented", "Diffusers, bf16 channels-last"
MANY_IMAGES = 50_000  # so many samples that compiling the network pays on a GPU


@dataclass(frozen=True)
class Problem:
    """Network, its images and the batch sizes to time it with.

    `peer_dim` and `peer_mults` describe denoising-diffusion-pytorch's own network for such images. It cannot be made
    equal to ours.
    """

    title: str
    config: NetworkConfig
    image_size: tuple[int, int]
    channels: int
    training_batch: int
    sampling_batch: int
    peer_dim: int
    peer_mults: tuple[int, ...]

    @property
    def batches(self) -> dict[str, int]:
        """Batch size of each phase, `train` and `sample`."""
        return {"train": self.training_batch, "sample": self.sampling_batch}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, *self.image_size)

    def network(self) -> UNet:
        """Our network for these images, without classes."""
        return UNet(self.config, self.image_size, self.channels, self.channels)


PROBLEMS = {
    "cifar10": Problem("the paper's CIFAR-10 U-Net", NetworkConfig(dropout=0.1), (32, 32), 3, 16, 16, 64, (1, 2, 4, 8)),
    "small28": Problem(
        "a small 28×28 U-Net (32-64-128, 2 blocks)",
        NetworkConfig(channels=32, channel_mult=[1, 2, 4], attention=[7]),
        (28, 28),
        1,
        128,
        64,
        32,
        (1, 2, 4),
    ),
    "toy": Problem(
        "a toy, to try the benchmark itself",
        NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[4], groups=4, dropout=0.1),
        (8, 8),
        1,
        2,
        2,
        8,
        (1, 2),
    ),
}
# batches that fill a data-centre GPU
PROBLEMS["cifar10_gpu"] = replace(PROBLEMS["cifar10"], training_batch=256, sampling_batch=256)


class Contestant:
    """Library with one network, ready to be timed.

    train(): one optimisation step on `problem.training_batch` images, including loading and weight averaging.
    sample(steps): sample `problem.sampling_batch` images.
    """

    name: str
    network: nn.Module
    train: Callable[[], None]
    sample: Callable[[int], Any]


class Ours(Contestant):
    """This package: the code that `ddpm train` and `ddpm sample` run."""

    name = "ddpm"

    def __init__(self, problem: Problem, device: torch.device):
        config = {
            "data": {"source": _stored_images(problem), "image_size": problem.image_size, "channels": problem.channels},
            "network": problem.config.model_dump(),
            "training": {"batch_size": problem.training_batch, "micro_batch": problem.training_batch, "loggers": []},
        }
        self.trainer = Trainer(Config(**config), Path(tempfile.mkdtemp()))  # type: ignore[arg-type]
        self.network, self.batches = self.trainer.network, self.trainer.batches.steps(0)
        self.batch_size, self.device = problem.sampling_batch, device

    def train(self) -> None:
        self.network.train()
        with reproducible_kernels(self.device):
            self.trainer.step(next(self.batches)).read()

    def sample(self, steps: int, sampler: str = "ancestral") -> Tensor:
        if not hasattr(self, "model"):
            self.model = self.trainer.model()
            self.model.compile_if_worthwhile(MANY_IMAGES)
        return self.model.sample(self.batch_size, steps=steps, sampler=sampler, batch_size=self.batch_size)


class Diffusers(Contestant):
    """Loop of Diffusers' `train_unconditional.py`, and its `DDPMPipeline`, on the same network as ours.

    Accelerate's wrappers are left out: in one process they do nothing.

    Args:
        weights: initial weights; None for Diffusers' own initialisation.
        best: use bf16 and channels-last, the fastest options a user can set; if false, run as documented.
    """

    def __init__(
        self, problem: Problem, device: torch.device, weights: dict[str, Tensor] | None = None, *, best: bool = False
    ):
        self.name = DIFFUSERS_BEST if best else DIFFUSERS
        self.device, self.best, self.problem, self.halved = device, best, problem, None
        self.network = UNet2DModel.from_config(to_unet2d(problem.network())).to(device)
        if weights is not None:
            self.network.load_state_dict(weights)
        if best:
            self.network.to(memory_format=torch.channels_last)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
        self.average = EMAModel(self.network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.average.to(device)
        self.batches = _forever(_loader(problem))

    def train(self) -> None:
        self.network.train()
        clean = next(self.batches)[0].to(self.device)
        noise = torch.randn_like(clean)
        timesteps = torch.randint(0, 1000, (len(clean),), device=self.device).long()
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        if self.best:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.best):
            predicted = self.network(noisy, timesteps).sample
        loss = F.mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.step(self.network.parameters())
        loss.detach().item()

    @torch.no_grad()
    def sample(self, steps: int) -> Any:
        if self.best:
            return self._sample_in_bf16(steps)
        pipeline = DDPMPipeline(self.network.eval(), self.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(self.problem.sampling_batch, num_inference_steps=steps, output_type="np").images

    def _sample_in_bf16(self, steps: int) -> Tensor:
        """Run the pipeline's loop here: the pipeline itself cannot return images computed in bf16."""
        if self.halved is None:
            self.halved = copy.deepcopy(self.network).eval().to(memory_format=torch.channels_last).bfloat16()
        shape = (self.problem.sampling_batch, *self.problem.image_shape)
        image = torch.randn(shape, device=self.device).contiguous(memory_format=torch.channels_last)
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            image = self.scheduler.step(self.halved(image.bfloat16(), t).sample.float(), t, image).prev_sample
        return image


class Lucidrains(Contestant):
    """`denoising_diffusion_pytorch`: its own network, and the steps of its `Trainer`."""

    name = "denoising-diffusion-pytorch"

    def __init__(self, problem: Problem, device: torch.device):
        self.device, self.problem = device, problem
        self.network = Unet(dim=problem.peer_dim, dim_mults=problem.peer_mults, channels=problem.channels)
        self.diffusion = GaussianDiffusion(self.network, image_size=problem.image_size[0], timesteps=1000).to(device)
        self.optimizer = torch.optim.Adam(self.diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
        self.average = EMA(self.diffusion, beta=0.995, update_every=10)
        self.batches = _forever(_loader(problem, low=0.0))

    def train(self) -> None:
        self.diffusion.train()
        loss = self.diffusion(next(self.batches)[0].to(self.device))
        loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.diffusion.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update()

    @torch.inference_mode()
    def sample(self, steps: int) -> Tensor:
        """Run the first `steps` of its 1,000 ancestral steps."""
        self.diffusion.eval()
        shape = (self.problem.sampling_batch, *self.problem.image_shape)
        image = torch.randn(shape, device=self.device)
        for t in range(999, 999 - steps, -1):
            image, _ = self.diffusion.p_sample(image, t)
        return image


def alone(name: str, problem: Problem, device: torch.device) -> Contestant:
    """Build one contestant, with nothing of the others in memory."""
    if name in (DIFFUSERS, DIFFUSERS_BEST):
        return Diffusers(problem, device, best=name == DIFFUSERS_BEST)
    return {Ours.name: Ours, Lucidrains.name: Lucidrains}[name](problem, device)


def line_up(problem: Problem, device: torch.device) -> list[Contestant]:
    """Build all contestants. The networks that should be equal get equal weights, and their outputs are compared.

    A CPU that emulates bf16 would take minutes for a step of Diffusers in it, so this one is left out there.
    """
    ours = Ours(problem, device)
    randomise(ours.network)
    weights = {name: tensor.clone() for name, tensor in ours.network.state_dict().items()}
    settings = (False,) if compute_dtype("auto", device) == torch.float32 else (False, True)
    theirs = [Diffusers(problem, device, weights, best=best) for best in settings]
    for other in theirs:
        check_equal(ours.network, other.network, problem, device)
    return [ours, *theirs, Lucidrains(problem, device)]


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Give every weight matrix random values, so that equal outputs mean equal networks."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)


@torch.no_grad()
def check_equal(ours: nn.Module, theirs: nn.Module, problem: Problem, device: torch.device) -> None:
    """Raise RuntimeError if two networks differ in size, or in their float32 output by more than 1e-4 (relative)."""
    sizes = [parameter_count(network) for network in (ours, theirs)]
    if sizes[0] != sizes[1]:
        raise RuntimeError(f"not the same network: {sizes[0]:,} and {sizes[1]:,} parameters")
    x = torch.randn(2, *problem.image_shape, device=device)
    t = torch.tensor([10.0, 900.0], device=device)
    # TF32 would round too much; compiling would take time for a shape that is never timed
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), torch.compiler.set_stance("force_eager"):
        our_output, their_output = ours.eval()(x, t), theirs.eval()(x, t).sample
    error = float((our_output - their_output).norm() / their_output.norm())
    if error > 1e-4:
        raise RuntimeError(f"not the same network: outputs differ by {error:.1e} (relative)")


def _images(problem: Problem) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (max(IMAGES, problem.training_batch), *problem.image_shape)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _stored_images(problem: Problem) -> str:
    path = Path(tempfile.mkdtemp()) / "images.npz"
    np.savez(path, _images(problem).permute(0, 2, 3, 1).numpy())
    return str(path)


def _loader(problem: Problem, low: float = -1.0) -> DataLoader:
    """Load the same images from memory, scaled to [low, 1]."""
    images = _images(problem) / 255 * (1 - low) + low
    return DataLoader(TensorDataset(images), batch_size=problem.training_batch, shuffle=True, drop_last=True)


def _forever(loader: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader
