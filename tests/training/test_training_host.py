"""A training step never waits for the device: tensors without values go through it, and reading one is an error."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm.diffusion.config import DiffusionConfig
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet
from ddpm.training.batches import Batch
from ddpm.training.optimizer import EMA, Muon, Optimizer, muon_parameters
from ddpm.training.step import Learner, train_step

IMAGES, MICRO_BATCH = 3, 2
NETWORK = NetworkConfig(channels=8, channel_mult=[1, 2], blocks=1, attention=[4], groups=4, dropout=0.2)
FORMATS = [torch.float32, torch.bfloat16, torch.float16]
CONFIGS = [
    DiffusionConfig(),
    DiffusionConfig(prediction="v", weighting="min_snr"),
    DiffusionConfig(variance="learned_range", loss="hybrid"),
    DiffusionConfig(variance="learned_range", loss="vlb"),
]


class Copies(TorchDispatchMode):
    """Collects the copies from one device to another."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [each for each in args if isinstance(each, torch.Tensor) and each.ndim]
        if isinstance(result, torch.Tensor):
            self.found += [(t.device.type, result.device.type) for t in tensors if t.device.type != result.device.type]
        return result


def learner_and_batch(
    device: str, dtype: torch.dtype, config: DiffusionConfig, muon: bool = False
) -> tuple[Learner, Batch]:
    """A learner and a batch with classes; call it inside a `FakeTensorMode`, where no GPU is needed for "cuda"."""
    with torch.device(device):
        outputs = 6 if config.variance == "learned_range" else 3
        network = UNet(NETWORK, (8, 8), in_channels=3, out_channels=outputs, num_classes=2)
        x_0, whole = torch.randn(IMAGES, 3, 8, 8), torch.ones(IMAGES, dtype=torch.int64)
    by_muon = Muon(muon_parameters(network), 0.1, torch.bfloat16) if muon else None
    optimizer = Optimizer(network, 1.0, dtype == torch.float16, by_muon)
    with no_dispatch():  # the schedule has values
        diffusion, loss = config.build(), config.build_loss()
    learner = Learner(network, network, diffusion, loss, optimizer, EMA(network), dtype, IMAGES, MICRO_BATCH)
    return learner, Batch(x_0, whole, whole, whole.float(), torch.randn_like(x_0), whole)


@pytest.mark.parametrize("muon", [False, True], ids=["adam", "muon"])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_a_step_reads_no_value(dtype, muon):
    config = DiffusionConfig(variance="learned_range", loss="hybrid")
    with FakeTensorMode(allow_non_fake_inputs=True):
        learner, batch = learner_and_batch("cpu", dtype, config, muon)
        result = train_step(learner, batch, 1e-3)
        assert result.losses.shape == (IMAGES,)
        with pytest.raises(DataDependentOutputException):  # so a reading within the step would have been seen
            float(result.numbers[0])


@pytest.mark.parametrize("config", CONFIGS, ids=["simple", "min_snr", "hybrid", "vlb"])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_the_losses_on_a_gpu_read_and_copy_nothing(dtype, config):
    """Only the first step puts the schedule on the GPU. The backward pass needs a real GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        learner, batch = learner_and_batch("cuda", dtype, config)
        learner.losses(learner.network, batch)
        with Copies() as copies:
            losses = learner.losses(learner.network, batch)
            assert losses.device.type == "cuda"
            assert copies.found == []
            losses.cpu()
        assert copies.found == [("cuda", "cpu")]
