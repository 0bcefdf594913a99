"""Feature networks by name: uint8 images in, one vector an image out.

`inception`: the network of every published FID. `builtin`: the classifier that comes with the package. A path: any
TorchScript file that takes float32 N x 3 x 299 x 299 in [-1, 1) and answers N x D.
"""

import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.errors import UserError, require
from ddpm.evaluation.builtin import WEIGHTS, builtin_classifier
from ddpm.evaluation.classifier import FEATURES, prepare
from ddpm.evaluation.engine import Engine, compile_network
from ddpm.evaluation.resize import tf1_bilinear
from ddpm.hardware import default_device

SIDE, POOL = 299, 2048
WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's conversion of TensorFlow's graph
TORCHSCRIPT_FILE = "inception-2015-12-05-pool3.pt"  # the same network up to its pool features
TORCHSCRIPT_HASH = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"


@dataclass(frozen=True)
class FeatureNetwork:
    """What turns uint8 images (N, C, H, W), C 1 or 3, into float32 features (N, dimensions) and logits (N, classes).

    name: as the user wrote it; standard: whether its Fréchet distance is the FID of publications;
    fingerprint: hash of the weights; transform: what is done to an image first; engine: what computes.
    """

    name: str
    standard: bool
    dimensions: int
    classes: int
    fingerprint: str
    transform: str
    engine: str
    compute: Callable[[Tensor], np.ndarray]

    def __call__(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        if images.shape[1] not in (1, 3):
            raise UserError(f"features need grey or colour images, not {images.shape[1]} channels")
        answer = self.compute(images)
        return answer[:, : self.dimensions], answer[:, self.dimensions :]

    @property
    def distance_name(self) -> str:
        """What its Fréchet distance is called, so that nobody takes another network's for the published FID."""
        return "FID" if self.standard else f"Fréchet distance ({self.name} features)"


def load_features(name: str | Path, device: torch.device | None = None) -> FeatureNetwork:
    """`inception`, `builtin`, or the path of a TorchScript file, or its name in $DDPM_DATA/inception."""
    device = device or default_device()
    if name == "builtin":
        return _builtin(device)
    if name == "inception":
        return _inception(device)
    path = Path(name).expanduser()
    if found := path if path.is_file() else _at_hand(str(name)):
        return _torchscript(found, device)
    raise UserError(f"no feature network {str(name)!r}: give inception, builtin, or the path of a TorchScript file")


def inception_input(images: Tensor) -> Tensor:
    """uint8 (N, 1 or 3, H, W) -> float32 (N, 3, 299, 299) in [-1, 1), as TensorFlow's graph does it."""
    x = tf1_bilinear(images.float(), SIDE, SIDE)
    return x.sub_(128).div_(128).expand(-1, 3, -1, -1)


def _builtin(device: torch.device) -> FeatureNetwork:
    model, _ = builtin_classifier()
    model.to(device)

    @torch.inference_mode()
    def compute(images: Tensor) -> np.ndarray:
        return model.features(prepare(images.to(device))).cpu().numpy()

    return FeatureNetwork(
        name="builtin",
        standard=False,
        dimensions=FEATURES,
        classes=0,
        fingerprint=_file_hash(WEIGHTS),
        transform="bilinear 32, x/127.5-1",
        engine="torch",
        compute=compute,
    )


def _inception(device: torch.device) -> FeatureNetwork:
    """torch-fidelity's network, which has logits; the TorchScript file under $DDPM_DATA where only that is there."""
    cached = Path(torch.hub.get_dir(), "checkpoints", WEIGHTS_FILE)
    if not cached.exists() and (at_hand := _at_hand(TORCHSCRIPT_FILE)):
        return _torchscript(at_hand, device, name="inception")
    module = require("torch_fidelity.feature_extractor_inceptionv3", "eval")
    if not cached.exists():
        _download(module.URL_INCEPTION_V3, cached)
    extractor = module.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(cached))
    engine = compile_network(WithLogits(extractor), (3, SIDE, SIDE), device)
    return _on_299(engine, device, "inception", True, POOL, extractor.fc.out_features, _file_hash(cached))


class WithLogits(nn.Module):
    """torch-fidelity's Inception from prepared images: (N, 2048) pool features and (N, 1008) logits without bias."""

    def __init__(self, extractor: nn.Module):
        super().__init__()
        *layers, head = extractor.children()
        self.trunk, self.head = nn.Sequential(*layers), head

    def forward(self, x: Tensor) -> Tensor:
        pool = self.trunk(x).flatten(1)
        return torch.cat([pool, pool @ self.head.weight.T], dim=1)


def _at_hand(name: str) -> Path | None:
    """The file of this name under $DDPM_DATA, where it is there."""
    path = Path(os.environ.get("DDPM_DATA", ""), "inception", name)
    return path if "DDPM_DATA" in os.environ and path.is_file() else None


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (URLError, OSError) as error:
        raise UserError(
            f"the Inception network could not be downloaded ({error}): put {WEIGHTS_FILE} from {url} into "
            f"{path.parent}, or give --features the path of {TORCHSCRIPT_FILE}"
        ) from error


def _torchscript(path: Path, device: torch.device, name: str | None = None) -> FeatureNetwork:
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated, and is what feature networks are passed around as
            warnings.simplefilter("ignore", FutureWarning)
            script = torch.jit.load(path, map_location=device).eval()
        with torch.inference_mode():
            answer = script(torch.zeros(2, 3, SIDE, SIDE, device=device))
    except (RuntimeError, ValueError, torch.jit.Error) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{path} is no TorchScript file that takes float32 N x 3 x {SIDE} x {SIDE} in [-1, 1): {reason}"
        ) from error
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 2:
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UserError(f"{path} answers two images with {shape}; features are N x D")
    digest = _file_hash(path)
    engine = compile_network(script, (3, SIDE, SIDE), device)
    return _on_299(engine, device, name or path.stem, digest == TORCHSCRIPT_HASH, answer.shape[1], 0, digest)


def _on_299(
    engine: Engine, device: torch.device, name: str, standard: bool, dimensions: int, classes: int, digest: str
) -> FeatureNetwork:
    return FeatureNetwork(
        name=name,
        standard=standard,
        dimensions=dimensions,
        classes=classes,
        fingerprint=digest,
        transform=f"TF1 bilinear {SIDE}, (x-128)/128",
        engine=engine.name,
        compute=lambda images: engine(inception_input(images.to(device))),
    )


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
