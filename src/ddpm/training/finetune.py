"""The initial network of a run: from the seed, or with `--init` from a trained model."""

import torch
from torch import Tensor

from ddpm.common.errors import UserError
from ddpm.common.randomness import derive_seed
from ddpm.data.datasets import ImageDataset, matched_by_number
from ddpm.diffusion.config import DiffusionConfig
from ddpm.model import Model
from ddpm.networks.config import NetworkConfig
from ddpm.networks.unet import UNet
from ddpm.training.config import Config

CLASS_ROWS = "class_embedding.weight"
TIME_BIAS = "time_embedding.linear_2.bias"
DIFFUSION_FIELDS = ("prediction", "variance")
TRAINING_FIELDS = ("dropout", "gradient_checkpointing")  # change how a network is trained, not what it computes


def build_network(config: Config, dataset: ImageDataset) -> tuple[UNet, int | None]:
    """Return the network, initialised from the seed, and its null class (the last row) if classes are dropped."""
    classes = len(dataset.class_names) if dataset.class_names is not None else None
    null_label = classes if classes is not None and config.training.class_drop > 0 else None
    rows = None if classes is None else classes + (null_label is not None)
    channels = config.data.channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.training.seed, "weights"))
        outputs = channels * (2 if config.diffusion.build().learns_variance else 1)
        return UNet(config.network, config.data.size, channels, outputs, rows), null_label


def adopt(config: Config, model: Model) -> Config:
    """Return the configuration with the model's network and diffusion; the loss stays as configured.

    Weights fit only the architecture and the diffusion that they were trained with. Attention stays at the same levels,
    which have another resolution if the image size differs.

    Raises UserError if the model cannot be fine-tuned with this configuration.
    """
    if not isinstance(model.network, UNet):
        raise UserError("only models with this package's own network can be fine-tuned")
    channels = model.image_shape[0]
    if channels != config.data.channels:
        raise UserError(f"the given model samples images of {channels} channels: set data.channels {channels}")
    trained: NetworkConfig = model.network.config
    attended = trained.attention_levels(model.network.image_size)
    sides = [min(size) for size in trained.level_sizes(config.data.size)]
    attention = [side for side, attends in zip(sides, attended, strict=True) if attends]
    own = {name: getattr(config.network, name) for name in TRAINING_FIELDS}
    network = trained.model_copy(update={"attention": attention, **own})
    return config.model_copy(update={"network": network, "diffusion": diffusion_of(config.diffusion, model)})


def diffusion_of(config: DiffusionConfig, model: Model) -> DiffusionConfig:
    """Return the model's schedule, prediction and variance with the configured loss, which must suit the variance."""
    learned = model.diffusion.learns_variance
    if learned and config.loss not in ("vlb", "hybrid"):
        options = "--diffusion.loss hybrid --diffusion.variance learned_range"
        raise UserError(f"loss {config.loss} cannot train the given model's learned variance: {options}")
    if config.loss == "hybrid" and not learned:
        options = "--diffusion.loss simple --diffusion.variance fixed_large"
        raise UserError(f"loss hybrid trains a variance, and the given model's is fixed: {options}")
    fields = config.model_dump(exclude={"schedule", "timesteps", "beta_start", "beta_end", "zero_terminal_snr"})
    betas = model.diffusion.schedule.betas
    fields |= {"prediction": model.diffusion.prediction, "variance": model.diffusion.variance}
    if len(config.build_schedule().betas) == len(betas) and torch.equal(config.build_schedule().betas, betas):
        return config.model_copy(update={name: fields[name] for name in DIFFUSION_FIELDS})
    return DiffusionConfig(**(fields | {"betas": betas.tolist()}))


def copy_weights(network: UNet, model: Model, class_names: list[str] | None) -> int:
    """Copy the model's weights into `network`; return how many of its classes the model has.

    The first prediction of the network is then the model's. A class that the model does not know starts as its null
    class, or as the mean of its classes if it has none. A network without classes starts as the model's null class. If
    the model has no classes, all classes start alike.
    """
    weights = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    known = weights.pop(CLASS_ROWS, None)
    base = None if known is None else base_row(known, model)
    shared = shared_classes(class_names or [], model.class_names or [])
    if network.class_embedding is not None:
        rows = torch.zeros_like(network.class_embedding.weight)
        if known is not None and base is not None:
            rows[:] = base
            for own, given in shared.items():
                rows[own] = known[given]
        weights[CLASS_ROWS] = rows
    elif base is not None:  # a class is added to the time embedding's last layer, so its row is a bias there
        weights[TIME_BIAS] = weights[TIME_BIAS] + base
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"the given model's weights do not fit this configuration: {first}") from None
    return len(shared)


def shared_classes(own: list[str], given: list[str]) -> dict[int, int]:
    """Match classes by name, or by number if one side has only numbers: own number -> given number."""
    by_name = {index: given.index(name) for index, name in enumerate(own) if name in given}
    if not by_name and matched_by_number(own, given):
        return {index: index for index in range(len(own))}
    return by_name


def base_row(rows: Tensor, model: Model) -> Tensor:
    """Return the embedding row that means no particular class."""
    return rows[model.null_label] if model.null_label is not None else rows.mean(0)
