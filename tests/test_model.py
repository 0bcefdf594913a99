"""Model: what is drawn depends on (seed, index, class) alone, and what is saved comes back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model

import ddpm
from ddpm.common.errors import UserError
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.model import blocks
from ddpm.networks import inference
from ddpm.networks.unet import UNet

STOCHASTIC = {"sampler": "ancestral", "steps": 6, "precision": "fp32"}


def test_an_image_is_the_same_whatever_is_drawn_with_it(conditional_model):
    many = conditional_model.sample(11, batch_size=4, **STOCHASTIC)
    few = conditional_model.sample(3, batch_size=4, **STOCHASTIC)
    assert torch.equal(many[:3], few)
    alone = dict(zip((7, 10), next_images(conditional_model, [7, 10]), strict=True))
    assert torch.equal(alone[7], many[7])
    assert torch.equal(alone[10], many[10])


def next_images(model, indices):
    return torch.cat([images for _, images in model.sample_batches(indices, batch_size=4, **STOCHASTIC)])


def test_another_batch_size_moves_float32_by_less_than_a_pixel_level(conditional_model):
    a = conditional_model.sample(6, batch_size=6, **STOCHASTIC)
    b = conditional_model.sample(6, batch_size=2, **STOCHASTIC)
    assert (a - b).abs().max() < 2 / 255


def test_seeds_and_indices_give_different_images(model):
    images = torch.cat([model.sample(2, seed=seed, **STOCHASTIC) for seed in (0, 1)]).flatten(1)
    assert (torch.cdist(images, images) + torch.eye(4) > 0.1).all()


def test_classes_take_turns(conditional_model):
    one = conditional_model.sample(4, labels=1, batch_size=4, **STOCHASTIC)
    turns = conditional_model.sample(4, batch_size=4, **STOCHASTIC)
    named = conditional_model.sample(4, labels=["class 1"], batch_size=4, **STOCHASTIC)
    assert torch.equal(one, named)
    assert torch.equal(turns[1], one[1])
    assert not torch.equal(turns[0], one[0])


def test_a_class_named_by_a_number_goes_by_its_name(conditional_model):
    conditional_model.class_names = ["1", "2", "007"]
    for labels, found in ((["1", "2", "007"], [0, 1, 2]), ([1], [1]), ("0", [0]), (np.int64(2), [2])):
        assert conditional_model.resolve_labels(labels) == found
    assert conditional_model.resolve_labels(torch.arange(3)) == [0, 1, 2]
    with pytest.raises(UserError, match="no class '7'"):
        conditional_model.resolve_labels("7")
    with pytest.raises(UserError, match="no class is named"):
        conditional_model.resolve_labels([])


@pytest.mark.parametrize("labels", [1.0, [1.0], [None], "1.0", np.float64(1)])
def test_what_names_no_class_is_refused(conditional_model, labels):
    with pytest.raises(UserError, match="no class"):
        conditional_model.resolve_labels(labels)


@pytest.mark.parametrize("label", [torch.tensor(1), np.array(1), np.int64(1), True])
def test_one_class_in_whatever_form(conditional_model, label):
    assert conditional_model.resolve_labels(label) == [1]


def test_weights_that_were_changed_in_place_draw_other_images(model):
    """As by a training loop of one's own, or load_state_dict."""
    before, name = model.sample(2, **STOCHASTIC), model.weights_hash
    with torch.no_grad():
        model.network.conv_in.weight.mul_(2)
    changed = model.sample(2, **STOCHASTIC)
    assert not torch.equal(changed, before)
    assert model.weights_hash != name
    with torch.no_grad():
        model.network.conv_in.weight.div_(2)
    assert torch.equal(model.sample(2, **STOCHASTIC), before)
    assert model.weights_hash == name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_that_was_asked_in_inference_mode_answers_outside(model, precision):
    """Nothing is kept from inside that a gradient, or a later call, could not use."""
    options = {**STOCHASTIC, "precision": precision}
    with torch.inference_mode():
        expected = model.sample(2, **options)
    assert torch.equal(model.sample(2, **options), expected)
    x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    model.denoiser(precision=precision)(x, 10.0).x_0.sum().backward()
    assert x.grad is not None


def test_a_model_made_in_inference_mode_draws_as_any_other():
    options = {"num": 1, "steps": 2, "precision": "fp32"}
    with torch.inference_mode():
        inside = ddpm.load("digits", device="cpu")
        found = inside.sample(**options)
    assert torch.equal(found, ddpm.load("digits", device="cpu").sample(**options))
    assert torch.equal(inside.sample(**options), found)


def test_text_names_a_class_first_even_with_a_comma_and_then_several(conditional_model):
    assert conditional_model.resolve_labels("all") == [0, 1, 2]
    assert conditional_model.resolve_labels(" class 2,0, class 1,") == [2, 0, 1]
    conditional_model.class_names = ["tench", "tench, Tinca tinca", "all"]
    for text, found in (("tench, Tinca tinca", [1]), ("all", [2]), ("tench,1", [0, 1]), (["all", 0], [2, 0])):
        assert conditional_model.resolve_labels(text) == found
    for text, said in (("tench, Tinca", "no class 'Tinca'"), (",", "no class is named"), ("", "no class is named")):
        with pytest.raises(UserError, match=said):
            conditional_model.resolve_labels(text)


@pytest.mark.parametrize("labels", [3, -1, "dog", [0, 7]])
def test_a_class_out_of_range_is_named(conditional_model, labels):
    with pytest.raises(UserError, match="the model knows 0 to 2"):
        conditional_model.sample(1, labels=labels)


def test_an_unconditional_model_takes_no_labels(model):
    with pytest.raises(UserError, match="without classes"):
        model.sample(1, labels=0)
    with pytest.raises(UserError, match="guidance"):
        model.sample(1, guidance=2.0)


def test_guidance_zero_is_the_null_class(conditional_model):
    x = torch.randn(2, 1, 8, 8)
    unguided = conditional_model.denoiser(precision="fp32")(x, 20).x_0
    null = conditional_model.denoiser(torch.tensor([0, 1]), guidance=0.0, precision="fp32")(x, 20).x_0
    assert torch.equal(unguided, null)
    assert torch.equal(conditional_model.denoiser(guidance=0.0, precision="fp32")(x, 20).x_0, null)


def test_guidance_without_labels_asks_for_them(conditional_model):
    with pytest.raises(UserError, match="guidance 2 needs labels"):
        conditional_model.denoiser(guidance=2.0)


@pytest.mark.parametrize(
    "asked",
    [{"steps": 51}, {"steps": 0}, {"num": 0}, {"batch_size": 0}, {"sampler": "dpm+"}, {"sampler": "ddim", "eta": 1.5}],
)
def test_impossible_requests_are_user_errors(model, asked):
    with pytest.raises(UserError):
        model.sample(**{"num": 1, **asked})


def test_saved_and_loaded_models_draw_the_same(conditional_model, tmp_path):
    conditional_model.provenance = {"data": {"source": "none"}}
    conditional_model.save(tmp_path / "model")
    for given in (tmp_path, tmp_path / "model"):
        again = ddpm.load(given, device="cpu")
        assert again.class_names == conditional_model.class_names
        assert again.provenance == {"data": {"source": "none"}}
        assert again.weights_hash == conditional_model.weights_hash
        assert torch.equal(again.sample(2, **STOCHASTIC), conditional_model.sample(2, **STOCHASTIC))


def test_saving_in_half_precision_keeps_the_weights_to_its_rounding(model, tmp_path):
    model.save(tmp_path / "half", dtype=torch.float16)
    again = ddpm.load(tmp_path / "half", device="cpu")
    for ours, theirs in zip(model.network.parameters(), again.network.parameters(), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.equal(ours.half().float(), theirs)


def test_a_path_that_is_called_like_a_bundled_model_is_a_path(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("digits")
    for given in ("./digits", Path("./digits")):
        assert ddpm.load(given, device="cpu").image_shape == (1, 8, 8)
    assert ddpm.load("digits", device="cpu").image_shape == (1, 28, 28)


def test_the_home_folder_is_found_by_its_sign(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model.save("~/model")
    assert ddpm.load("~/model", device="cpu").weights_hash == model.weights_hash
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_callback_sees_every_step(model):
    seen = []
    model.sample(1, callback=lambda step: seen.append((step.index, step.t)), **STOCHASTIC)
    assert [index for index, _ in seen] == list(range(6))
    assert seen[0][1] == 49


def test_blocks_cut_where_the_batch_number_changes():
    assert list(blocks([0, 1, 2, 3, 4, 9], 4)) == [[0, 1, 2, 3], [4], [9]]


def test_what_is_no_model_is_named():
    with pytest.raises(UserError, match="no model at nowhere"):
        ddpm.load("nowhere")


def test_a_run_in_runs_is_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/flowers").mkdir(parents=True)
    (tmp_path / "runs/flowers/metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"^no model at flowers; did you mean runs/flowers\?$"):
        ddpm.load("flowers")


CHANGES = {  # of a model with the same weights: the key of its samples is another
    "null_label": lambda model: setattr(model, "null_label", 1),
    "prediction": lambda model: setattr(model, "diffusion", replace(model.diffusion, prediction="v")),
    "variance": lambda model: setattr(model, "diffusion", replace(model.diffusion, variance="fixed_large")),
    "one_beta": lambda model: setattr(model, "diffusion", replace(model.diffusion, schedule=with_another_beta(model))),
    "epsilon": lambda model: setattr(
        model.network, "config", model.network.config.model_copy(update={"norm_eps": 0.1})
    ),
    "device": lambda model: model.to("meta"),
}


def with_another_beta(model):
    betas = model.diffusion.schedule.betas.clone()
    betas[7] *= 1.01
    return NoiseSchedule(betas)


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_of_samples_holds_all_that_they_depend_on(change):
    model, other = tiny_model(classes=3), tiny_model(classes=3)
    model._weights_hash = other._weights_hash = None
    assert model.cache_key == other.cache_key
    weights = other.weights_hash
    CHANGES[change](other)
    other._weights_hash = (inference.weights_state(other.network), weights)  # a meta tensor has no bytes to hash
    assert model.cache_key != other.cache_key


@pytest.mark.parametrize(
    ("shape", "images"), [((1, 8, 8), 16), ((3, 32, 32), 16), ((3, 32, 64), 8), ((1, 512, 512), 1)]
)
def test_the_default_batch_has_fewer_images_if_they_are_larger(model, shape, images):
    model.image_shape = shape
    assert model.default_batch_size == images


def test_guidance_of_few_images_compares_doubled_batches(conditional_model, monkeypatch):
    asked = []

    def smallest_batch(dtype, images, largest, rows):
        asked.append((dtype, images, largest, rows))
        return largest

    monkeypatch.setattr(conditional_model._copies, "smallest_batch", smallest_batch)
    for guidance in (1.0, 0.0, 2.0):
        conditional_model.sample(3, steps=1, guidance=guidance, batch_size=8, precision="bf16")
    assert asked == [(torch.bfloat16, 3, 8, rows) for rows in (1, 1, 2)]


def test_the_precision_is_that_of_the_forward_pass(conditional_model, monkeypatch):
    found = []
    forward = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x_t, *rest: found.append(x_t.dtype) or forward(self, x_t, *rest))
    for precision in ("fp32", "bf16"):
        conditional_model.sample(2, steps=1, batch_size=2, precision=precision)
    assert found == [torch.float32, torch.bfloat16]
