"""The network that a run begins with: new from the seed, and with `--init` with the weights of a trained model."""

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
PROCESS_FIELDS = ("prediction", "variance")
TRAINING_FIELDS = ("dropout", "gradient_checkpointing")  # of a network: they change how it learns, not what it computes


def build_network(config: Config, dataset: ImageDataset) -> tuple[UNet, int | None]:
    """The network, initialised from the seed, and its null class (the last row) where classes are dropped."""
    classes = len(dataset.class_names) if dataset.class_names is not None else None
    null_label = classes if classes is not None and config.training.class_drop > 0 else None
    rows = None if classes is None else classes + (null_label is not None)
    channels = config.data.channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.training.seed, "weights"))
        outputs = channels * (2 if config.diffusion.build().learns_variance else 1)
        return UNet(config.network, config.data.size, channels, outputs, rows), null_label


def adopt(config: Config, model: Model) -> Config:
    """The configuration with the model's network and process in place of its own.

    A trained network means something only in its own architecture and process; the objective stays as configured.
    Attention stays at its levels, which at another image size have another resolution.
    """
    if not isinstance(model.network, UNet):
        raise UserError("only a model of this package's network can be trained on")
    channels = model.image_shape[0]
    if channels != config.data.channels:
        raise UserError(f"the given model draws images of {channels} channels: set data.channels {channels}")
    trained: NetworkConfig = model.network.config
    attended = trained.attention_levels(model.network.image_size)
    sides = [min(size) for size in trained.level_sizes(config.data.size)]
    attention = [side for side, attends in zip(sides, attended, strict=True) if attends]
    own = {name: getattr(config.network, name) for name in TRAINING_FIELDS}
    network = trained.model_copy(update={"attention": attention, **own})
    return config.model_copy(update={"network": network, "diffusion": diffusion_of(config.diffusion, model)})


def diffusion_of(config: DiffusionConfig, model: Model) -> DiffusionConfig:
    """The model's schedule, prediction and variance with the configured objective, which must suit the variance."""
    learned = model.diffusion.learns_variance
    if learned and config.loss not in ("vlb", "hybrid"):
        way_out = "--diffusion.loss hybrid --diffusion.variance learned_range"
        raise UserError(f"loss {config.loss} cannot train the given model's learned variance: {way_out}")
    if config.loss == "hybrid" and not learned:
        way_out = "--diffusion.loss simple --diffusion.variance fixed_large"
        raise UserError(f"loss hybrid trains a variance, and the given model's is fixed: {way_out}")
    fields = config.model_dump(exclude={"schedule", "timesteps", "beta_start", "beta_end", "zero_terminal_snr"})
    betas = model.diffusion.schedule.betas
    fields |= {"prediction": model.diffusion.prediction, "variance": model.diffusion.variance}
    if len(config.build_schedule().betas) == len(betas) and torch.equal(config.build_schedule().betas, betas):
        return config.model_copy(update={name: fields[name] for name in PROCESS_FIELDS})
    return DiffusionConfig(**(fields | {"betas": betas.tolist()}))


def copy_weights(network: UNet, model: Model, class_names: list[str] | None, null_label: int | None) -> int:
    """Give `network` the model's weights, so that its first prediction is the model's; returns how many classes it has
    from there.

    A class the model does not know starts as its null class (or, without one, as the mean of its classes); a network
    without classes takes the model's null class as its only one; a network with classes starts from an unconditional
    model with all of them alike.
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
            if null_label is not None:
                rows[null_label] = base
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
    """The classes that both have, number here -> number there: by name, or by number where one has but numbers."""
    by_name = {index: given.index(name) for index, name in enumerate(own) if name in given}
    if not by_name and matched_by_number(own, given):
        return {index: index for index in range(len(own))}
    return by_name


def base_row(rows: Tensor, model: Model) -> Tensor:
    """What stands for no class in particular."""
    return rows[model.null_label] if model.null_label is not None else rows.mean(0)
