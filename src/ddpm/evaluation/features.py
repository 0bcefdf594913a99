"""Feature networks: uint8 images in, one feature vector per image out.

`inception` is the network behind every published FID. `builtin` is the classifier in this package. A path names any
TorchScript file that maps float32 (N, 3, 299, 299) in [-1, 1) to (N, D). Features of a whole set are extracted in
chunks, which are cached on disk and divided among processes.
"""

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.common.errors import UserError, require
from ddpm.common.files import atomic_path, sha256, sync, user_path
from ddpm.common.hardware import default_device
from ddpm.evaluation.cache import Chunks
from ddpm.evaluation.classifier import FEATURES, WEIGHTS, builtin_classifier, normalise
from ddpm.evaluation.distances import Moments, load_moments, moments_of
from ddpm.evaluation.image_sets import ImageSet


def tf1_bilinear(images: Tensor, height: int, width: int) -> Tensor:
    """Resize float32 images (N, C, H, W) as TensorFlow 1 does.

    Output pixel i reads source position i·in/out; past the edge it reads the last pixel. The order of operations is
    TensorFlow's too (`resize_bilinear_op.cc`): rows first, then columns. Any other order rounds differently.
    """
    rows = _interpolated(images, 3, width)
    return _interpolated(rows, 2, height)


def _interpolated(images: Tensor, axis: int, size: int) -> Tensor:
    """Compute first + (second - first)·weight along one axis, mostly in place, since this runs for every image."""
    first, second, weight = _taps(images.shape[axis], size, images.device)
    near, far = images.index_select(axis, first), images.index_select(axis, second)
    return far.sub_(near).mul_(weight if axis == 3 else weight[:, None]).add_(near)


def _taps(size_in: int, size_out: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return both neighbours of every output pixel, and the weight of the second."""
    scale = torch.tensor(size_in / size_out, dtype=torch.float32, device=device)
    position = torch.arange(size_out, dtype=torch.float32, device=device) * scale
    first = position.long()
    return first, (first + 1).clamp(max=size_in - 1), position - first


@dataclass(frozen=True)
class FeatureRunner:
    """A network ready to run: float32 tensor (N, ...) to float32 array (N, D). `name`: the library that runs it."""

    name: str
    run: Callable[[Tensor], np.ndarray]

    def __call__(self, batch: Tensor) -> np.ndarray:
        return self.run(batch)


def compile_network(network: nn.Module, shape: Sequence[int], device: torch.device) -> FeatureRunner:
    """Compile a network of one input (N, *shape): by OpenVINO on a CPU if it is installed, else by PyTorch.

    Always in float32: bf16 moves the features by 4%.
    """
    if device.type == "cpu":
        try:
            return _openvino(network, shape)
        except ImportError:
            pass
        except Exception as error:  # each layer of OpenVINO raises its own kind of error
            kind = type(error).__name__  # the message is pages long
            warnings.warn(
                f"OpenVINO cannot compute this network ({kind}): using PyTorch, which is slower", stacklevel=2
            )
    return _torch(network, device)


def _openvino(network: nn.Module, shape: Sequence[int]) -> FeatureRunner:
    openvino = _library()
    with warnings.catch_warnings():  # the tracer warns of PyTorch's own deprecations
        warnings.simplefilter("ignore")
        model = openvino.convert_model(network, example_input=torch.zeros(1, *shape), input=[-1, *shape])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = _core().compile_model(model, "CPU", settings)
    return FeatureRunner("openvino", lambda batch: compiled(np.ascontiguousarray(batch.numpy()))[0].copy())


@functools.cache
def _core() -> Any:
    """Return the only OpenVINO core of this process.

    Each core installs its own signal stack and restores the previous one when it is destroyed. With two cores, the
    second one restores a stack that the first has freed, and the next Ctrl-C crashes.
    """
    return _library().Core()


def _library() -> Any:
    """Import OpenVINO without openvino-telemetry, which reports every conversion to Google Analytics, forks this
    process and writes into the home folder. OpenVINO works without it."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail
    import openvino

    return openvino


def _torch(network: nn.Module, device: torch.device) -> FeatureRunner:
    network = network.to(device).to(memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def run(batch: Tensor) -> np.ndarray:
        batch = batch.to(device).contiguous(memory_format=torch.channels_last)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return network(batch).float().cpu().numpy()

    return FeatureRunner("torch", run)


SIDE, POOL = 299, 2048
WEIGHTS_FILE = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's conversion of TensorFlow's graph
TORCHSCRIPT_FILE = "inception-2015-12-05-pool3.pt"  # the same network up to its pool features
TORCHSCRIPT_HASH = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"


@dataclass(frozen=True)
class FeatureNetwork:
    """A function from uint8 images (N, C, H, W), C 1 or 3, to float32 features (N, dimensions) and logits (N, classes).

    name: as the user wrote it; standard: whether its Fréchet distance is the FID of publications; fingerprint: hash of
    the weights; transform: the preprocessing of an image, in words; engine: the library that runs it.
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
        """The title of its Fréchet distance. Only that of the standard network is called FID."""
        return "FID" if self.standard else f"Fréchet distance ({self.name} features)"


def load_features(name: str | Path, device: torch.device | None = None) -> FeatureNetwork:
    """Load `inception`, `builtin`, or a TorchScript file, given by its path or by its name in $DDPM_DATA/inception.

    Raises UserError if there is no such network, or if the file is not a feature network.
    """
    device = device or default_device()
    if name == "builtin":
        return _builtin(device)
    if name == "inception":
        return _inception(device)
    path = user_path(name)
    if found := path if path.is_file() else _local_file(str(name)):
        return _torchscript(found, device)
    raise UserError(f"no feature network {str(name)!r}: give inception, builtin, or the path of a TorchScript file")


def inception_input(images: Tensor) -> Tensor:
    """Convert uint8 (N, 1 or 3, H, W) to float32 (N, 3, 299, 299) in [-1, 1), as TensorFlow's graph does."""
    x = tf1_bilinear(images.float(), SIDE, SIDE)
    return x.sub_(128).div_(128).expand(-1, 3, -1, -1)


def _builtin(device: torch.device) -> FeatureNetwork:
    model, _ = builtin_classifier()
    model.to(device)

    @torch.inference_mode()
    def compute(images: Tensor) -> np.ndarray:
        return model.features(normalise(images.to(device))).cpu().numpy()

    return FeatureNetwork(
        name="builtin",
        standard=False,
        dimensions=FEATURES,
        classes=0,
        fingerprint=sha256(WEIGHTS),
        transform="bilinear 32, x/127.5-1",
        engine="torch",
        compute=compute,
    )


def _inception(device: torch.device) -> FeatureNetwork:
    """Load torch-fidelity's network, which has logits; or the TorchScript file in $DDPM_DATA if only that exists."""
    cached = Path(torch.hub.get_dir(), "checkpoints", WEIGHTS_FILE)
    if not cached.exists() and (found := _local_file(TORCHSCRIPT_FILE)):
        return _torchscript(found, device, name="inception")
    module = require("torch_fidelity.feature_extractor_inceptionv3", "eval")
    if not cached.exists():
        _download(module.URL_INCEPTION_V3, cached)
    extractor = module.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(cached))
    runner = compile_network(WithLogits(extractor), (3, SIDE, SIDE), device)
    return _on_299(runner, device, "inception", True, POOL, extractor.fc.out_features, sha256(cached))


class WithLogits(nn.Module):
    """torch-fidelity's Inception after preprocessing: (N, 2048) pool features and (N, 1008) logits without bias."""

    def __init__(self, extractor: nn.Module):
        super().__init__()
        *layers, head = extractor.children()
        self.trunk, self.head = nn.Sequential(*layers), head

    def forward(self, x: Tensor) -> Tensor:
        pool = self.trunk(x).flatten(1)
        return torch.cat([pool, pool @ self.head.weight.T], dim=1)


def _local_file(name: str) -> Path | None:
    """Return the file of this name in $DDPM_DATA/inception, or None."""
    path = user_path(os.environ.get("DDPM_DATA", "")) / "inception" / name
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
        with warnings.catch_warnings():  # TorchScript is deprecated, but feature networks are published in it
            warnings.simplefilter("ignore", FutureWarning)
            script = torch.jit.load(path, map_location=device).eval()
        with torch.inference_mode():
            answer = script(torch.zeros(2, 3, SIDE, SIDE, device=device))
    except (RuntimeError, ValueError, torch.jit.Error) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{path} is not a TorchScript file that takes float32 N x 3 x {SIDE} x {SIDE} in [-1, 1): {reason}"
        ) from error
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 2:
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UserError(f"{path} maps two images to {shape}; features are N x D")
    digest = sha256(path)
    runner = compile_network(script, (3, SIDE, SIDE), device)
    return _on_299(runner, device, name or path.stem, digest == TORCHSCRIPT_HASH, answer.shape[1], 0, digest)


def _on_299(
    runner: FeatureRunner, device: torch.device, name: str, standard: bool, dimensions: int, classes: int, digest: str
) -> FeatureNetwork:
    return FeatureNetwork(
        name=name,
        standard=standard,
        dimensions=dimensions,
        classes=classes,
        fingerprint=digest,
        transform=f"TF1 bilinear {SIDE}, (x-128)/128",
        engine=runner.name,
        compute=lambda images: runner(inception_input(images.to(device))),
    )


BATCH = 32


class Columns:
    """Some columns of `Chunks`, read from disk on demand."""

    def __init__(self, chunks: Chunks, columns: slice):
        self.chunks, self.columns = chunks, columns

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, rows) -> np.ndarray:
        return self.chunks.take(rows, self.columns)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


@dataclass(frozen=True)
class Features:
    """The features (n, D), logits (n, K) and channel means (n, C; in levels of 0..255) of a set, all on disk."""

    chunks: Chunks
    features: Columns
    logits: Columns
    channel_means: Columns
    dimensions: int

    def moments(self) -> Moments:
        """Return the statistics of the features. They are computed once and stored in the same folder."""
        path = self.chunks.folder / f"moments-{len(self.chunks)}.npz"
        with suppress(FileNotFoundError, ValueError, EOFError, BadZipFile, UserError):  # missing or damaged
            return load_moments(path)
        moments = moments_of(block[:, : self.dimensions] for block in self.chunks.blocks())
        with atomic_path(path) as beside:
            moments.save(beside)
            sync(beside)
        return load_moments(path)


def extract(images: ImageSet, network: FeatureNetwork, progress: bool = True) -> Features:
    """Return the features of all `images`. Chunks in the cache are not computed again.

    Every process must call it. Each computes its share, and all wait for each other.

    Raises UserError if a feature is not finite.
    """
    settings = {"images": images.fingerprint, "network": network.fingerprint, "transform": network.transform}
    chunks = Chunks("features", settings, len(images), images.chunk)

    def extracted(rows: range) -> Iterator[np.ndarray]:
        for first in range(rows.start, rows.stop, BATCH):
            batch = images[first : min(first + BATCH, rows.stop)]
            found = np.hstack([*network(batch), batch.double().mean((2, 3)).numpy()]).astype(np.float32)
            if not np.isfinite(found).all():
                row = first + int(np.flatnonzero(~np.isfinite(found).all(1))[0])
                what = f"the {network.name} features of image {row} of {images.title}"
                raise UserError(f"{what} are not finite: use another --features")
            yield found

    chunks.fill(extracted, images.title, progress)
    d, k = network.dimensions, network.dimensions + network.classes
    features, logits, means = (Columns(chunks, part) for part in (slice(0, d), slice(d, k), slice(k, None)))
    return Features(chunks, features, logits, means, d)
