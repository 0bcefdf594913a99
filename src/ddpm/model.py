"""Model: a trained network with its diffusion process, labels and provenance. Load it, sample from it, save it."""

import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.common.errors import UserError, nearest
from ddpm.common.files import content_key, is_run, user_path
from ddpm.common.hardware import Precision, compute_dtype, default_device, precision_name
from ddpm.common.names import BUNDLED_NAMES
from ddpm.common.pixels import final_images
from ddpm.common.randomness import ImageNoise
from ddpm.data.config import Preprocessing, data_section, preprocessing_of
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.interop import diffusers as diffusers_format
from ddpm.interop import hub
from ddpm.interop.diffusers import Student
from ddpm.interop.layouts import model_folder
from ddpm.networks.inference import InferenceNetworks, count_flops, first_non_finite, weights_state
from ddpm.networks.unet import UNet
from ddpm.samplers import DEFAULT_SAMPLER, DEFAULT_STEPS, SamplerSpec, find_sampler
from ddpm.samplers.algorithms import Step
from ddpm.samplers.denoiser import Clip, Denoiser
from ddpm.samplers.grid import Spacing

BUNDLED = {name: Path(__file__).parent / "assets" / f"{name}_model" for name in BUNDLED_NAMES}

SAMPLING_CODE_VERSION = 2  # raise it if samplers or networks change their output: cached samples are then not used
COMPILE_FLOPS = 1e16  # operations from which compiling, half a minute, saves time on a CUDA GPU

Labels = int | str | Sequence[int | str] | None


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample. None means the default of the model or of the sampler; `resolved` fills it in.

    Args:
        sampler: a name in `ddpm.samplers.SAMPLERS`; default: a student's own, "dpm++sde" for any other model.
        steps: 1 to T; default: a student's own, for any other model 20, or T if that is less.
        spacing: see `timestep_grid`; default: the sampler's own.
        labels: classes that the images take in turn, see `Model.resolve_labels`; default: all classes.
        guidance: weight W of classifier-free guidance; 1 is off, 0 is unconditional.
        guidance_interval: lowest and highest noise level at which guidance acts; see `Denoiser`.
        guidance_rescale: φ in [0, 1] of Lin et al. 2024; see `Denoiser`.
        clip: "static", "dynamic" or None; see `Denoiser`.
        eta: only for ddim: 0 is deterministic, 1 adds as much noise as ancestral sampling.
        seed: any whole number. Image i of a seed is always the same image.
        batch_size: images per forward pass; default: `Model.default_batch_size`.
        precision: number format of the network; "fp32" for comparisons across machines.
    """

    sampler: str | None = None
    steps: int | None = None
    spacing: Spacing | None = None
    labels: Labels = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    clip: Clip = "static"
    eta: float | None = None
    seed: int = 0
    batch_size: int | None = None
    precision: Precision = "auto"

    @classmethod
    def of(cls, options: "SamplingOptions | None" = None, /, **changes: Any) -> "SamplingOptions":
        """Return `options` (or the defaults) with some fields changed; UserError names the nearest field."""
        known = [field.name for field in fields(cls)]
        for name in changes:
            if name not in known:
                raise UserError(f"sampling has no option {name!r}; {nearest(name, known)}")
        return replace(options or cls(), **changes)

    def resolved(self, model: "Model") -> "SamplingOptions":
        """Return the same options with every default filled in for `model`.

        Raises UserError if an option is unknown, out of range or not possible with this model. Resolved options are
        the cache key of samples and the text of the model card.
        """
        name = self.sampler or (model.student.sampler if model.student else DEFAULT_SAMPLER)
        sampler = find_sampler(name)
        given: dict[str, Any] = {} if self.eta is None else {"eta": self.eta}
        sampler.check(given)
        size = model.default_batch_size if self.batch_size is None else self.batch_size
        if size < 1:
            raise UserError(f"the batch size must be at least 1, not {size}")
        labels = model.resolve_labels(self.labels)
        options = replace(
            self,
            sampler=name,
            steps=model.usual_steps() if self.steps is None else self.steps,
            spacing=self.spacing or sampler.spacing,
            labels=labels,
            batch_size=size,
            precision=precision_name(model.compute_dtype(self.precision)),
            **{**sampler.options, **given},
        )
        sampler.timesteps(model.diffusion.schedule, options.steps or 0, options.spacing)
        model.denoiser(None if labels is None else torch.tensor(labels), options=options)
        return options

    @property
    def spec(self) -> SamplerSpec:
        """The sampler; UserError if there is none of this name."""
        return find_sampler(self.sampler or DEFAULT_SAMPLER)

    @property
    def sampler_options(self) -> dict[str, float]:
        """The options that only this sampler takes, e.g. {"eta": 0.0}."""
        return {name: getattr(self, name) for name in self.spec.options}

    def timesteps(self, model: "Model") -> list[float]:
        """Return the timesteps of a run; the options must be resolved."""
        assert self.steps is not None
        return self.spec.timesteps(model.diffusion.schedule, self.steps, self.spacing)

    def labels_of(self, indices: Iterable[int]) -> Tensor | None:
        """Return the class of each image, int64 (N,), or None; the options must be resolved."""
        if self.labels is None:
            return None
        assert isinstance(self.labels, list)
        return torch.tensor([self.labels[index % len(self.labels)] for index in indices], dtype=torch.int64)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that are set, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None or name == "clip"}


class Model:
    """A trained network and everything that is needed to sample from it.

    Args:
        network: the U-Net of this package, or any module (x_t (N, C, H, W), t (N,), labels (N,) or None) ->
            prediction, (N, C, H, W), or (N, 2C, H, W) if the variance is learned. It is not copied; it is set to eval
            mode. A module that is not this package's gets whole timesteps t as int64.
        diffusion: schedule, prediction, variance.
        image_shape: (C, H, W).
        class_names: one name per class for a class-conditional network, else None.
        null_label: the label that means "no class" if classes were dropped in training, else None.
        student: for a distilled network, the steps and the sampler that it was made for.
        provenance: data, configuration, metrics, as JSON values; saved in ddpm.json.
    """

    def __init__(
        self,
        network: nn.Module,
        diffusion: GaussianDiffusion,
        *,
        image_shape: tuple[int, int, int],
        class_names: Sequence[str] | None = None,
        null_label: int | None = None,
        student: Student | None = None,
        provenance: dict[str, Any] | None = None,
    ):
        self.network = network.eval().requires_grad_(False)
        self.diffusion = diffusion
        self.image_shape = image_shape
        self.class_names = list(class_names) if class_names is not None else None
        self.null_label = null_label
        self.student = student
        self.provenance = provenance or {}
        self._copies = InferenceNetworks(self.network)
        self._weights_hash: tuple[tuple, str] | None = None

    @property
    def num_classes(self) -> int | None:
        """Number of classes, without the null class; None for an unconditional model."""
        return None if self.class_names is None else len(self.class_names)

    @property
    def device(self) -> torch.device:
        """The device of the weights; the CPU if the network has none."""
        tensor = next(itertools.chain(self.network.parameters(), self.network.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def compute_dtype(self, precision: Precision) -> torch.dtype:
        """Return the number format of a forward pass; "auto" is float32 for networks not of this package."""
        foreign = not isinstance(self.network, UNet)
        return torch.float32 if foreign and precision == "auto" else compute_dtype(precision, self.device)

    def to(self, device: torch.device | str) -> "Model":
        """Move the network; returns the model."""
        self.network.to(device)
        return self

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are brought to the model's shape: as in its training, if that is known."""
        return preprocessing_of(data_section(self.provenance))

    @property
    def weights_hash(self) -> str:
        """Twelve hexadecimal digits that identify the weights."""
        state = weights_state(self.network)
        if self._weights_hash is None or self._weights_hash[0] != state:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.network.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            self._weights_hash = state, digest.hexdigest()[:12]
        return self._weights_hash[1]

    @property
    def cache_key(self) -> dict[str, str]:
        """What samples depend on besides the options: weights, definition (schedule, network, code version), device."""
        diffusion, network = self.diffusion, self.network
        words = [SAMPLING_CODE_VERSION, diffusion.schedule.betas.tolist(), diffusion.prediction, diffusion.variance]
        words.append(self.null_label)
        config = getattr(network, "config", f"{type(network).__module__}.{network!r}")
        _, height, width = self.image_shape
        if height != width or not getattr(config, "attention", None):  # attention sizes imply the size of square images
            words.append(self.image_shape)
        definition = content_key({"words": words, "network": str(config)})[:8]
        return {"weights": self.weights_hash, "definition": definition, "device": self.device.type}

    @property
    def default_batch_size(self) -> int:
        """Images per forward pass: 16 of 32×32 on a CPU, 16 times as many on a GPU, fewer if images are larger."""
        _, height, width = self.image_shape
        per_device = 16 if self.device.type == "cpu" else 256
        return max(1, min(per_device, per_device * 1024 // (height * width)))

    def usual_steps(self, steps: int = DEFAULT_STEPS) -> int:
        """Return the steps to sample in if none are asked for: a student's own, else `steps`, or T if that is less."""
        return self.student.steps if self.student else min(steps, len(self.diffusion.schedule))

    def denoiser(
        self, labels: Tensor | None = None, *, options: SamplingOptions | None = None, **changes: Any
    ) -> Denoiser:
        """Return the model as a `Denoiser`, the one interface that samplers, restoration and editing use.

        Args:
            labels: class of each image (N,) that will be denoised. Without labels, a class-conditional model predicts
                for its null class.
            options: its guidance with interval and rescale, clip, batch_size and precision are used; the batch size
                stays None (the batch as it comes) unless it is given.
            changes: fields of `SamplingOptions` that replace those of `options`.
        """
        options = SamplingOptions.of(options, **changes)
        dtype, guidance = self.compute_dtype(options.precision), options.guidance
        network: nn.Module = self._copies.get(dtype)
        if labels is None and self.class_names is not None:
            if self.null_label is None:
                raise UserError("this model was trained with classes and without dropping them: it needs labels")
            network = _Unlabelled(network, self.null_label)
            guidance = 1.0 if guidance == 0 else guidance  # this network already predicts for the null class
        size = options.batch_size
        return Denoiser(
            network,
            self.diffusion,
            labels=None if labels is None else labels.to(self.device),
            null_label=self.null_label,
            guidance=guidance,
            guidance_interval=options.guidance_interval,
            guidance_rescale=options.guidance_rescale,
            clip=options.clip,
            batch_size=size,
            smallest_batch=None if size is None else lambda n, rows: self._copies.smallest_batch(dtype, n, size, rows),
            dtype=dtype,
            integer_t=not isinstance(self.network, UNet),
        )

    def compile_if_worthwhile(self, num_images: int, steps: int = DEFAULT_STEPS) -> None:
        """On a CUDA device, compile the network if that saves more time than it costs.

        A compiled network rounds differently. So pass the size of the whole set, also when it is sampled in parts.
        """
        network, on_gpu = self.network, self.device.type == "cuda"
        self._copies.compiled = (
            on_gpu and isinstance(network, UNet) and num_images * steps * count_flops(network) >= COMPILE_FLOPS
        )

    def sample(
        self,
        num: int = 16,
        options: SamplingOptions | None = None,
        *,
        callback: Callable[[Step], None] | None = None,
        **changes: Any,
    ) -> Tensor:
        """Sample images 0 … num-1 of a seed: float32 (num, C, H, W) in [-1, 1] on the CPU. See `sample_batches`."""
        if num < 1:
            raise UserError(f"the number of images must be at least 1, not {num}")
        batches = self.sample_batches(range(num), options, callback=callback, **changes)
        return torch.cat([images for _, images in batches])

    def sample_batches(
        self,
        indices: Sequence[int],
        options: SamplingOptions | None = None,
        *,
        callback: Callable[[Step], None] | None = None,
        **changes: Any,
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Sample the images `indices` of a seed; yield (indices, images) of each batch, with images as `sample` does.

        Image i does not depend on the other images that are sampled: it has its own noise, and every forward pass has
        one padded shape of `batch_size` images. Equal shapes give equal bits; another shape moves float32 by less than
        1/255.

        Args:
            options: see `SamplingOptions`; `changes` are fields that replace those of `options`.
            callback: called with a `Step` after every sampling step of every batch.

        Raises UserError if an option is wrong or an image is not finite.
        """
        options = SamplingOptions.of(options, **changes).resolved(self)
        assert options.batch_size is not None
        timesteps = options.timesteps(self)
        for block in blocks(indices, options.batch_size):
            denoiser = self.denoiser(options.labels_of(block), options=options)
            noise = ImageNoise.of_seed(options.seed, block, self.image_shape, device=self.device)
            images = options.spec(
                denoiser, noise(), timesteps, noise=noise, callback=callback, **options.sampler_options
            )
            yield block, self.finish(images)

    def finish(self, images: Tensor) -> Tensor:
        """Return sampled images as the user gets them; see `final_images`. UserError if a value is not finite."""
        return final_images(images, self.why_not_finite)

    def why_not_finite(self) -> str:
        """Return the message for images that are not finite: it names the first broken weight, if there is one."""
        broken = first_non_finite(self.network.state_dict())
        reason = f"the weights are not finite, first in {broken}" if broken else "try --precision fp32"
        return f"the model predicts numbers that are not finite: {reason}"

    def resolve_labels(self, labels: Labels) -> list[int] | None:
        """Return the classes that images take in turn, from one class, several, or None for all of them.

        Text is first taken for the name of a class, which may hold a comma or be "all"; then for "all", or for classes
        between commas. Raises UserError if a class is unknown, or if the model has no classes.
        """
        if self.class_names is None:
            if labels is not None:
                raise UserError("this model was trained without classes: it takes no labels")
            return None
        if isinstance(labels, str) and labels not in self.class_names:
            labels = None if labels == "all" else [word.strip() for word in labels.split(",") if word.strip()]
        if labels is None:
            return list(range(len(self.class_names)))
        if isinstance(labels, str) or not isinstance(labels, Iterable) or getattr(labels, "ndim", 1) == 0:
            return [_label_index(labels, self.class_names)]
        chosen = list(labels)
        if not chosen:
            raise UserError("no class is named: give a class, several, or all")
        return [_label_index(label, self.class_names) for label in chosen]

    def labels_per_image(self, labels: Labels, count: int) -> Tensor | None:
        """Return one class per image, int64 (count,), from one class for all or a list of `count`; None stays None.

        For images that are given, as in restoration and editing. Raises UserError if the numbers do not match.
        """
        if labels is None:
            return None
        classes = self.resolve_labels(labels) or []
        if len(classes) not in (1, count):
            raise UserError(f"{len(classes)} labels for {count} images: give one for all, or one per image")
        return torch.tensor(classes * (count if len(classes) == 1 else 1))

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write a Diffusers pipeline folder, in place of a model folder that is there.

        Args:
            dtype: number format of the stored weights, e.g. torch.float16; default: the network's own.

        Raises UserError if the network is not this package's U-Net, or if the folder holds something else.
        """
        if not isinstance(self.network, UNet):
            raise UserError(
                f"a {type(self.network).__name__} has no model folder format, only the U-Net of this package has: "
                "save its state_dict() with safetensors instead"
            )
        extra: dict[str, Any] = {"class_names": self.class_names, "null_label": self.null_label}
        if self.student:
            extra["student"] = self.student.model_dump()
        extra["provenance"] = self.provenance
        diffusers_format.save_folder(
            folder, self.network, self.diffusion, image_shape=self.image_shape, extra=extra, dtype=dtype
        )


def _label_index(label: Any, class_names: list[str]) -> int:
    """Return the number of a class given by name or by number; text is first taken for a name."""
    if isinstance(label, str) and label in class_names:
        return class_names.index(label)
    try:
        index = operator.index(int(label) if isinstance(label, str) and label.isdecimal() else label)
    except TypeError:  # other words, and numbers that are not whole
        index = -1
    if 0 <= index < len(class_names):
        return index
    names = ", ".join(class_names[:12]) + (", …" if len(class_names) > 12 else "")
    raise UserError(f"no class {label!r}; the model knows 0 to {len(class_names) - 1} ({names})")


class _Unlabelled(nn.Module):
    """A class-conditional network called without labels: every image gets the null class."""

    def __init__(self, network: nn.Module, null_label: int):
        super().__init__()
        self.network, self.null_label = network, null_label

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.network(x_t, t, torch.full((len(x_t),), self.null_label, device=x_t.device))


def blocks(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    """Split `indices` where index // size changes, so that an image keeps its place in the batch."""
    block: list[int] = []
    for index in indices:
        if block and (index // size != block[0] // size):
            yield block
            block = []
        block.append(index)
    if block:
        yield block


def load(name: str | Path, *, device: torch.device | str | None = None) -> Model:
    """Load a model: a bundled one (`BUNDLED`), a run directory, a Diffusers folder, or a Hub id ("user/name").

    Also opens a checkpoint (RUN/checkpoints/NNNNNN, or a checkpoint of Diffusers' training scripts): its averaged
    weights. A folder with the name of a bundled model is "./digits". Default device: the best one available.

    Raises UserError, in one line, if there is no such model, or if its files are damaged or cannot be expressed here.
    """
    parts = diffusers_format.load_folder(find_model(name))
    known = {key: parts.extra.get(key) for key in ("class_names", "null_label", "provenance")}
    rows = parts.network.num_classes if known["class_names"] is None else None
    if rows:
        known["class_names"] = [str(label) for label in range(rows)]
    model = Model(parts.network, parts.diffusion, image_shape=parts.image_shape, student=parts.student, **known)
    return model.to(device or default_device())


def find_model(name: str | Path) -> Path:
    """Return the folder of the model called `name`; downloads it if it is a Hub id."""
    if isinstance(name, str) and name in BUNDLED:
        return BUNDLED[name]
    path = user_path(name)
    if path.exists():
        return model_folder(path)
    if hub.looks_like_id(str(name)):
        return hub.download(str(name))
    if is_run("runs" / path):
        raise UserError(f"no model at {name}; did you mean {'runs' / path}?")
    raise UserError(
        f"no model at {name}: give a run directory, a Diffusers folder, a Hub id (user/name), "
        f"{' or '.join(map(repr, BUNDLED))}"
    )
