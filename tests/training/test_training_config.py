"""Configurations: presets, overrides, files, error messages and notes."""

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm.cli.train import parse_words
from ddpm.common.errors import UserError
from ddpm.networks.unet import UNet
from ddpm.training.config import Config, config_notes, load_config, preset_about, preset_names
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
    *("lsun_bedroom256", "lsun_church256", "gpu64", "gpu128"),
}


def test_preset_names_lists_every_preset():
    assert set(preset_names()) == PRESETS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_build_a_network_and_a_schedule(name):
    config = load_config(name)
    with torch.device("meta"):
        UNet(config.network, config.data.size, config.data.channels, config.data.channels, 11)
    assert len(config.diffusion.build_schedule()) == config.diffusion.timesteps
    assert config.training.warmup < config.training.steps
    assert 20 < len(preset_about(name)) < 120


def test_cifar10_preset_has_the_values_of_the_paper():
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
def test_presets_of_256_pixels_have_the_values_of_the_paper(name):
    config = load_config(name)
    with torch.device("meta"):
        network = UNet(config.network, config.data.size, 3, 3, None)
    assert sum(p.numel() for p in network.parameters()) == 113_673_219
    assert config.network.dropout == 0
    assert (config.training.learning_rate, config.training.batch_size, config.training.ema_warmup) == (2e-5, 64, False)
    assert config.data.random_flip == (name != "lsun_bedroom256")


def test_load_config_reads_overrides_as_yaml(tiny_yaml):
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


def test_parse_words_ends_an_open_bracket_at_the_next_flag():
    _, overrides = parse_words(["--data.source", "photos[1", "--training.steps", "7"])
    assert overrides == {"data.source": "photos[1", "training.steps": "7"}


def test_to_yaml_is_read_back_to_an_equal_configuration(tmp_path):
    for name in ("cifar10", "fashion_mnist"):
        config = load_config(name)
        (tmp_path / "config.yaml").write_text(config.to_yaml())
        assert load_config(tmp_path / "config.yaml") == config
        assert load_config(tmp_path) == config  # a run directory stands for its configuration


@pytest.mark.parametrize("name", ["2024", "2024-05-01", "on", "photos #1", "[a]", "'quoted'"])
def test_load_config_takes_any_text_as_the_data_source(tiny_yaml, name):
    config = load_config(tiny_yaml, {"data.source": name})
    assert config.data.source == name
    assert yaml.safe_load(config.to_yaml())["data"]["source"] == name


@pytest.mark.parametrize(
    ("preset", "overrides", "said"),
    [
        ("digit", {}, r"no preset 'digit'; did you mean digits\?"),
        ("zzz", {}, "there are celebahq256, cifar10"),
        ("nowhere/x.yaml", {}, "no configuration file nowhere/x.yaml"),
        ("digits", {"training.step": "5"}, r"training has no field 'step'; did you mean steps\?"),
        ("digits", {"trainig.steps": "5"}, r"no section 'trainig'; did you mean training\?"),
        ("digits", {"training": "5"}, "names a section"),
        ("digits", {"training.steps": "0"}, r"^training\.steps must be a whole number, ≥ 1, not 0$"),
        ("digits", {"training.steps": "many"}, r"^training\.steps must be a whole number, ≥ 1, not 'many'$"),
        ("digits", {"training.steps": "1.5"}, r"^training\.steps must be a whole number, ≥ 1, not 1\.5$"),
        ("digits", {"training.steps": "1e-3"}, r"^training\.steps must be a whole number, ≥ 1, not 0\.001$"),
        ("digits", {"training.grad_clip": "None"}, r"not 'None'; in YAML, None is null$"),
        ("digits", {"network.heads": "none"}, r"or null, ≥ 1, not 'none'; in YAML, none is null$"),
        ("digits", {"training.ema_decay": "None"}, r"^training\.ema_decay must be a number, ≥ 0, < 1, not 'None'$"),
        ("digits", {"training.grad_clip": "-1"}, r"^training\.grad_clip must be a number or null, > 0, not -1$"),
        ("digits", {"training.compile": "3"}, r"^training\.compile must be auto or true or false, not 3$"),
        ("digits", {"data.random_flip": "3"}, r"^data\.random_flip must be true or false, not 3$"),
        ("digits", {"data.channels": "5"}, r"^data\.channels must be a whole number, from 1 to 4, not 5$"),
        ("digits", {"data.image_size": "[8]"}, r"^data\.image_size must be a whole number from 8 to 4096 or list of 2"),
        ("digits", {"network.channel_mult": "[a]"}, r"^network\.channel_mult must be a list of numbers"),
        ("digits", {"network.channel_mult": "[]"}, r"at least 1 of them, not \[\]$"),
        ("digits", {"diffusion.betas": "[0.1, 2]"}, r"^diffusion\.betas must be a list of numbers > 0, ≤ 1 or null"),
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
def test_load_config_explains_an_error_in_one_line(preset, overrides, said):
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
def test_load_config_reports_a_broken_file_in_one_line(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "training: {steps: 5}\ndata: {source: digits}\ntraining: {warmup: 1}",
            "training appears twice, in lines 1 and 3",
        ),
        ("data:\n  source: digits\n  labels: true\n  source: mnist", "source appears twice, in lines 2 and 4"),
        ("data: {source: digits}\nnetwork: {groups: 2, groups: 4}", "groups appears twice, in lines 2 and 2"),
    ],
)
def test_load_config_refuses_a_key_that_appears_twice(tmp_path, text, said):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^{path} is not valid YAML: {said}$"):
        load_config(path)


@pytest.mark.parametrize(
    "text", ["data: 3", "training: 5\ndata: {source: digits}", "data: {source: digits}\nnetwork: [1]"]
)
def test_load_config_says_that_a_section_holds_fields(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(
        UserError, match=r"^(data|training|network) must hold fields and their values, not (3|5|\[1\])$"
    ):
        load_config(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_load_config_reads_a_file_by_its_byte_order_mark(tmp_path, encoding):
    text = load_config("digits", {"data.source": "Übung"}).to_yaml().replace("\n", "\r\n")
    path = tmp_path / "config.yaml"
    path.write_bytes(("\ufeff" if encoding.endswith("e") else "").encode(encoding) + text.encode(encoding))
    assert load_config(path).data.source == "Übung"


def test_load_config_tells_where_yaml_is_wrong_without_its_librarys_words(tmp_path):
    (tmp_path / "config.yaml").write_text("training: {steps: 5}\n---\ntraining: {steps: 7}\n")
    with pytest.raises(UserError, match="expected a single document") as caught:
        load_config(tmp_path / "config.yaml")
    assert "line 2" in str(caught.value)
    assert "unicode" not in str(caught.value)


@pytest.mark.parametrize("text", ["1000", "1e3", "1E3", "1e+3", "1.0e3", "1.0e+3", "1_000", "+1e3", "1000.0"])
def test_load_config_reads_whole_numbers_as_people_write_them(tmp_path, text):
    config = load_config("digits", {"training.steps": text, "network.channel_mult": f"[1, {text}]"})
    assert config.training.steps == 1000
    assert config.network.channel_mult == [1, 1000]
    path = tmp_path / "config.yaml"
    path.write_text(f"data: {{source: '1e3'}}\ntraining: {{steps: {text}}}")
    assert load_config(path).training.steps == 1000
    assert load_config(path).data.source == "1e3"


def test_config_notes_names_a_warm_up_longer_than_the_run():
    """The rate that the note names is the one that the optimizer reaches."""
    config = load_config("cifar10", {"training.steps": 1000})
    (note,) = config_notes(config)
    assert note == (
        "training.warmup (5,000) is longer than the run (1,000 steps): the learning rate only reaches 4e-05 of 0.0002"
    )
    assert learning_rate(config.training, 999) == pytest.approx(4e-5)
    assert config_notes(load_config("cifar10", {"training.steps": 5000})) == []


@pytest.mark.parametrize(("timesteps", "left"), [(50, "60%"), (100, "36%"), (200, "13%")])
def test_config_notes_says_how_much_of_the_image_is_left_at_T(timesteps, left):
    """ᾱ_T of the linear schedule, Π (1 - β_t), computed here with plain numbers."""
    product = 1.0
    for index in range(timesteps):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * index / (timesteps - 1))
    assert f"{product:.0%}" == left
    (note,) = config_notes(load_config("cifar10", {"diffusion.timesteps": timesteps}))
    assert note.startswith(f"x_T keeps {left} of the image's variance")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_config_notes_is_empty_for_presets(name):
    assert config_notes(load_config(name)) == []


def test_load_config_refuses_files_of_another_kind(tmp_path):
    (tmp_path / "photo.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "huge.yaml").write_bytes(b"#" * (1 << 21))
    for name in ("photo.yaml", "huge.yaml"):
        with pytest.raises(UserError):
            load_config(tmp_path / name)


@given(name=st.text(max_size=30), value=st.text(max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_load_config_accepts_or_refuses_any_override_in_one_line(name, value):
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
def test_load_config_accepts_or_refuses_any_tree_in_one_line(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump({"data": {"source": "digits"}, "training": tree, "network": tree}))
    try:
        load_config(path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("process", "diffusion", {"timesteps": 100}),
        ("diffusion.timestep_draw", "diffusion.timestep_sampler", "stratified"),
        ("training.decay", "training.lr_schedule", "cosine"),
        ("training.clip", "training.grad_clip", 1.0),
        ("training.ema", "training.ema_decay", 0.99),
        ("training.keep", "training.keep_checkpoints", 3),
        ("training.track", "training.loggers", ["wandb"]),
        ("training.skip_at_most", "training.max_bad_steps", 5),
    ],
)
def test_a_field_by_its_former_name_is_answered_with_its_present_one(tmp_path, old, new, value):
    """The names of version 0.1, in a file and on the command line; the present one takes the same value."""

    def tree_of(name):
        section, _, field = name.partition(".")
        return {"data": {"source": "digits"}, section: {field: value} if field else value}

    path = tmp_path / "old.yaml"
    for name, error in ((old, rf"{old} is now called {new}$"), (new, None)):
        path.write_text(yaml.safe_dump(tree_of(name)))
        words = {f"{name}.timesteps": 100} if isinstance(value, dict) else {name: value}
        if error:
            with pytest.raises(UserError, match=error):
                load_config(path)
            with pytest.raises(UserError, match=rf"^{error}"):
                load_config("digits", words)
        else:
            for found in (load_config(path), load_config("digits", words)):
                dumped = found.model_dump()
                for part in name.split("."):
                    dumped = dumped[part]
                assert (dumped["timesteps"] == 100) if isinstance(value, dict) else (dumped == value)
