"""Configurations: presets, overrides, and what is said of wrong ones."""

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm.cli.train import parse_words
from ddpm.common.errors import UserError
from ddpm.networks.unet import UNet
from ddpm.training.config import Config, TrainingConfig, load_config, preset_about, preset_names
from ddpm.training.optimizer import learning_rate

PRESETS = {
    *(
        "digits",
        "mnist",
        "fashion_mnist",
        "cifar10",
        "cifar10_fast",
        "cifar10_small",
        "folder32",
        "folder64",
        "celebahq256",
    ),
    *("lsun_bedroom256", "lsun_church256", "flowers", "animals10", "anime32", "anime64", "anime128"),
    "wikiart_impressionists",
}


def test_preset_names_lists_all_presets():
    assert set(preset_names()) == PRESETS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_builds_a_network_and_a_diffusion(name):
    config = load_config(name)
    with torch.device("meta"):
        UNet(config.network, config.data.size, config.data.channels, config.data.channels, 11)
    assert len(config.diffusion.build_schedule()) == config.diffusion.timesteps
    assert config.training.warmup < config.training.steps
    assert 20 < len(preset_about(name)) < 120


def test_cifar10_preset_is_the_papers_configuration():
    """Ho et al. 2020, appendix B and their code."""
    config = load_config("cifar10")
    with torch.device("meta"):
        network = UNet(config.network, config.data.size, 3, 3, None)
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    assert config.network.dropout == 0.1
    assert config.data.random_flip
    assert not config.data.labels
    process, training = config.diffusion, config.training
    assert (process.schedule, process.timesteps, process.beta_start, process.beta_end) == ("linear", 1000, 1e-4, 0.02)
    assert (process.prediction, process.variance, process.loss) == ("epsilon", "fixed_large", "simple")
    assert (process.weighting, process.timestep_sampler) == ("none", "uniform")
    assert (training.steps, training.batch_size, training.learning_rate, training.warmup) == (800_000, 128, 2e-4, 5000)
    assert (training.ema_decay, training.ema_warmup, training.grad_clip, training.lr_schedule) == (
        0.9999,
        False,
        1.0,
        "constant",
    )


@pytest.mark.parametrize("name", ["celebahq256", "lsun_bedroom256", "lsun_church256"])
def test_256_pixel_presets_are_the_papers_configuration(name):
    config = load_config(name)
    with torch.device("meta"):
        network = UNet(config.network, config.data.size, 3, 3, None)
    assert sum(p.numel() for p in network.parameters()) == 113_673_219
    assert config.network.dropout == 0
    assert (config.training.learning_rate, config.training.batch_size, config.training.ema_warmup) == (2e-5, 64, False)
    assert config.data.random_flip == (name != "lsun_bedroom256")


def test_overrides_are_read_as_yaml(tiny_yaml):
    words = ["--training.steps", "7", "--network.attention", "[4,", "8]", "--data.random_flip=false"]
    words += ["--training.grad_clip", "null", "--training.learning_rate", "1e-4", "--diffusion.prediction", "v"]
    positional, overrides = parse_words([str(tiny_yaml), *words])
    config = load_config(positional[0], overrides)
    assert config.training.steps == 7
    assert config.network.attention == [4, 8]
    assert config.data.random_flip is False
    assert config.training.grad_clip is None
    assert config.training.learning_rate == 1e-4
    assert config.diffusion.prediction == "v"


def test_parse_words_does_not_take_a_flag_into_an_open_bracket():
    _, overrides = parse_words(["--data.source", "photos[1", "--training.steps", "7"])
    assert overrides == {"data.source": "photos[1", "training.steps": "7"}


def test_config_survives_its_own_yaml(tmp_path):
    for name in ("cifar10", "wikiart_impressionists"):
        config = load_config(name)
        (tmp_path / "config.yaml").write_text(config.to_yaml())
        assert load_config(tmp_path / "config.yaml") == config
        assert load_config(tmp_path) == config  # a run directory stands for its configuration


@pytest.mark.parametrize("name", ["2024", "2024-05-01", "on", "photos #1", "[a]", "'quoted'"])
def test_data_source_is_taken_literally(tiny_yaml, name):
    config = load_config(tiny_yaml, {"data.source": name})
    assert config.data.source == name
    assert yaml.safe_load(config.to_yaml())["data"]["source"] == name


@pytest.mark.parametrize(
    ("preset", "overrides", "said"),
    [
        ("digit", {}, r"no preset 'digit'; did you mean digits\?"),
        ("zzz", {}, "there are animals10, anime128"),
        ("nowhere/x.yaml", {}, "no configuration file nowhere/x.yaml"),
        ("digits", {"training.step": "5"}, r"training has no field 'step'; did you mean steps\?"),
        ("digits", {"trainig.steps": "5"}, r"no section 'trainig'; did you mean training\?"),
        ("digits", {"training": "5"}, "names a section"),
        ("digits", {"training.steps": "0"}, r"training\.steps: .*greater than or equal to 1.*not 0"),
        ("digits", {"training.steps": "many"}, r"training\.steps: .*integer.*not 'many'"),
        ("digits", {"training.steps": "[1"}, "is not valid YAML"),
        ("digits", {"diffusion.schedule": "cosin"}, r"diffusion\.schedule cannot be 'cosin'; did you mean cosine\?"),
        ("digits", {"training.precision": "half"}, r"training\.precision cannot be 'half'; there are auto, bf16"),
        ("digits", {"training.loggers": "[tensorbord]"}, r"did you mean tensorboard\?"),
        ("digits", {"training.micro_batch": "0"}, r"training\.micro_batch"),
        ("digits", {"diffusion.timesteps": "1"}, r"diffusion\.timesteps"),
        ("digits", {"network.dropout": "1.5"}, r"network\.dropout"),
        ("digits", {"data.image_size": "4"}, r"data\.image_size"),
    ],
)
def test_wrong_values_are_explained_in_one_line(preset, overrides, said):
    with pytest.raises(UserError, match=said) as error:
        load_config(preset, overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        "data: 3",
        "data: {source: digits}\ntraining: {steps: 2020-99-99}",
        "a: &a [x, x]\nb: [*a, *a]",
        "{[]: 1}",
        "!!python/object/apply:os.system ['touch /tmp/owned']",
        "data: {source: digits}\nnetwork: {channels: 10}",
        "\x00\x01",
        "[" * 3000,
        "data: {source: digits}\nprocess: {betas: [0.1, .nan]}",
    ],
)
def test_broken_configuration_file_is_refused(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "photo.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "huge.yaml").write_bytes(b"#" * (1 << 21))
    for name in ("photo.yaml", "huge.yaml"):
        with pytest.raises(UserError):
            load_config(tmp_path / name)


@given(name=st.text(max_size=30), value=st.text(max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_override_is_accepted_or_refused_in_one_line(name, value):
    for key in (name, f"training.{name}", "network.channel_mult", "diffusion.betas", "training.loggers"):
        try:
            assert isinstance(load_config("digits", {key: value}), Config)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_tree_is_accepted_or_refused(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump({"data": {"source": "digits"}, "training": tree, "network": tree}))
    try:
        load_config(path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_learning_rate_rises_then_falls():
    config = TrainingConfig(steps=100, warmup=10, learning_rate=1.0)
    assert [learning_rate(config, step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert {learning_rate(config, step) for step in range(10, 100)} == {1.0}
    for decay, middle in (("linear", 0.5), ("cosine", 0.5)):
        config = TrainingConfig(steps=100, warmup=10, learning_rate=1.0, lr_schedule=decay)
        rates = [learning_rate(config, step) for step in range(10, 100)]
        assert rates == sorted(rates, reverse=True)
        assert rates[0] == 1
        assert rates[45] == pytest.approx(middle)
        assert 0 < rates[-1] < 0.02
    quarter = learning_rate(TrainingConfig(steps=110, warmup=10, learning_rate=1.0, lr_schedule="cosine"), 10 + 25)
    assert quarter == pytest.approx((1 + 2**-0.5) / 2)
