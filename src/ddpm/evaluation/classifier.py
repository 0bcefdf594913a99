"""A small image classifier: it reads digits, lends its features, and the classification accuracy score trains it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

SIDE = 32  # every image is brought to SIDE x SIDE
FEATURES = 64


def prepare(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W), C 1 or 3 -> float32 (N, 3, 32, 32) in [-1, 1]; grey becomes three equal channels."""
    x = images.float() / 127.5 - 1
    if x.shape[-2:] != (SIDE, SIDE):
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


class Residual(nn.Module):
    """x + f(x), two 3x3 convolutions (He et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Classifier(nn.Module):
    """120,000 weights. `features` (N, 64) is what the last layer sees; `forward` gives logits (N, num_classes)."""

    def __init__(self, num_classes: int):
        super().__init__()

        def convolution(channels_in: int, channels_out: int) -> nn.Sequential:
            conv = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())

        self.trunk = nn.Sequential(
            convolution(3, 32), Residual(32), convolution(32, FEATURES), Residual(FEATURES), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(x.contiguous(memory_format=torch.channels_last)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def train_classifier(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    epochs: int = 8,
    batch_size: int = 128,
    learning_rate: float = 4e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> Classifier:
    """Train on uint8 images (N, C, H, W) and their classes (N,); shifts by up to two pixels are the only augmentation.

    AdamW on a one-cycle rate; the same seed gives the same classifier on the same machine. `progress` names a bar.
    """
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(num_classes).to(device).to(memory_format=torch.channels_last)
    steps = -(-len(images) // batch_size) * epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2))
    bar = tqdm(total=steps, desc=progress, unit="step", disable=progress is None)
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=order).split(batch_size):
            if len(index) == 1:
                continue  # batch normalisation needs two
            x = _shifted(prepare(images[index]), order).to(device)
            loss = F.cross_entropy(model(x), labels[index].to(device), label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate.step()
            bar.update()
    bar.close()
    return model.eval()


def _shifted(x: Tensor, generator: torch.Generator, reach: int = 2) -> Tensor:
    dy, dx = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    return F.pad(x, (reach,) * 4, mode="replicate")[..., dy : dy + SIDE, dx : dx + SIDE]


@torch.inference_mode()
def predict(model: Classifier, images: Tensor, batch_size: int = 500) -> Tensor:
    """Classes (N,) that the classifier reads in uint8 images (N, C, H, W)."""
    device = next(model.parameters()).device
    return torch.cat([model(prepare(chunk).to(device)).argmax(1).cpu() for chunk in images.split(batch_size)])


def accuracy(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of images whose class is read rightly."""
    return (predict(model, images) == labels).double().mean().item()
