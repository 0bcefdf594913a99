"""The ONNX file against the network, its sampling plan against our samplers, and the example that draws with both."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from export_cases import exportable_model, random_model
from PIL import Image

from ddpm.cli import run
from ddpm.common.errors import RunStopped, UserError
from ddpm.common.randomness import ImageNoise
from ddpm.diffusion.gaussian import GaussianDiffusion
from ddpm.export import onnx_files
from ddpm.export.onnx_files import describe, export_onnx, network_graph, sampling_plan
from ddpm.model import Model, SamplingOptions

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported_model() -> Model:
    return exportable_model()


@pytest.fixture(scope="module")
def exported_folder(exported_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "onnx"
    assert export_onnx(exported_model, folder, SamplingOptions(steps=5, guidance=1.5)) < 1e-5
    return folder


@pytest.fixture(scope="module")
def session(exported_folder):
    return onnxruntime.InferenceSession(exported_folder / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The example that samples with numpy and onnxruntime."""
    spec = importlib.util.spec_from_file_location("onnx_sample", ROOT / "examples" / "onnx_sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_the_file_computes_guidance_for_any_batch(session, exported_model, count, guidance):
    x_t, t = torch.randn(count, 1, 8, 8), torch.linspace(0, 49, count)
    labels = torch.arange(count) % 3
    inputs = {"x_t": x_t.numpy(), "t": t.numpy(), "labels": labels.numpy(), "guidance": np.float32(guidance)}
    (found,) = session.run(None, {name: np.asarray(value) for name, value in inputs.items()})
    of_class = exported_model.network(x_t, t, labels)
    of_null = exported_model.network(x_t, t, torch.full_like(labels, 3))
    expected = (1 - guidance) * of_null + guidance * of_class
    assert np.abs(found - expected.numpy()).max() < 1e-5
    assert (of_class - of_null).abs().max() > 1e-2  # or guidance could not be seen


@pytest.mark.parametrize("classes", [None, 2])
def test_a_learned_variance_is_a_second_output_that_guidance_leaves(classes):
    model = random_model(classes, channels=3, learns_variance=True)
    session = onnxruntime.InferenceSession(network_graph(model), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["prediction", "variance"]
    x_t, t = torch.randn(3, 3, 8, 8), torch.tensor([0.0, 20.5, 49.0])
    labels = None if classes is None else torch.tensor([0, 1, 1])
    inputs = {"x_t": x_t.numpy(), "t": t.numpy()}
    expected = model.network(x_t, t, labels)
    mean = expected[:, :3]
    if labels is not None:
        inputs |= {"labels": labels.numpy(), "guidance": np.array(3, np.float32)}
        of_null = model.network(x_t, t, torch.full_like(labels, classes))[:, :3]
        mean = of_null + 3 * (mean - of_null)
    prediction, variance = session.run(None, inputs)
    assert np.abs(prediction - mean.numpy()).max() < 1e-5
    assert np.abs(variance - expected[:, 3:].numpy()).max() < 1e-5


def test_weights_that_half_precision_holds_take_half_the_room_and_no_path_is_told(exported_folder):
    path = exported_folder / "model.onnx"
    stored = {tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4}
    assert stored == {onnx.TensorProto.FLOAT16}
    assert b"unet.py" not in path.read_bytes()


def test_weights_that_half_precision_misses_by_a_hair_stay_as_they_are():
    model = exportable_model()
    weights = [parameter.detach() for parameter in model.network.parameters() if parameter.ndim == 4]
    for weight in weights:
        weight.add_(2**-27)
    initializers = onnx.load_from_string(network_graph(model)).graph.initializer
    stored = {onnx.numpy_helper.to_array(tensor).tobytes() for tensor in initializers if len(tensor.dims) == 4}
    assert stored == {weight.numpy().tobytes() for weight in weights}


SAMPLERS = [
    {"sampler": "ancestral", "steps": 50},
    {"sampler": "ancestral", "steps": 6},
    {"sampler": "ddim", "steps": 6},
    {"sampler": "ddim", "steps": 6, "eta": 0.5, "spacing": "leading"},
    {"sampler": "dpm++", "steps": 6},
    {"sampler": "dpm++sde", "steps": 6},
    {"sampler": "dpm++sde", "steps": 1},
]


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_the_example_draws_what_our_samplers_draw_from_the_same_noise(options, session, exported_model, example):
    options = SamplingOptions(**options, labels=[2, 0, 1], guidance=1.5, precision="fp32").resolved(exported_model)
    noise = ImageNoise.of_seed(0, range(3), (1, 8, 8))
    plan = describe(exported_model, options)
    found = example.sample(session, plan, np.array([2, 0, 1]), lambda: noise().numpy(), 1.5)
    expected = exported_model.sample(3, options)
    assert np.abs(found - expected.numpy()).max() < 1e-4
    assert found.dtype == np.float32


@pytest.mark.parametrize("prediction", ["epsilon", "x_0"])
def test_the_example_knows_every_prediction(prediction, session, exported_model, example):
    """The file is the network's; what it predicts is known to model.json alone."""
    diffusion = GaussianDiffusion(exported_model.diffusion.schedule, prediction, "fixed_small")
    known = {"class_names": exported_model.class_names, "null_label": exported_model.null_label}
    model = Model(exported_model.network, diffusion, image_shape=exported_model.image_shape, **known)
    options = SamplingOptions(steps=4, labels=[1], precision="fp32").resolved(model)
    noise = ImageNoise.of_seed(0, range(2), (1, 8, 8))
    found = example.sample(session, describe(model, options), np.array([1, 1]), lambda: noise().numpy(), 1)
    assert np.abs(found - model.sample(2, options).numpy()).max() < 1e-4


@pytest.mark.parametrize("options", [{"sampler": "heun"}, {"sampler": "unipc"}, {"clip": "dynamic"}, {"clip": None}])
def test_a_sampler_that_is_no_table_is_refused(options):
    model = random_model()
    with pytest.raises(UserError, match="cannot be exported"):
        sampling_plan(model, SamplingOptions(**options).resolved(model))


def test_ancestral_steps_of_a_learned_variance_are_refused_and_others_are_not():
    model = random_model(learns_variance=True)
    with pytest.raises(UserError, match="ancestral cannot be exported"):
        sampling_plan(model, SamplingOptions(sampler="ancestral").resolved(model))
    assert len(sampling_plan(model, SamplingOptions(steps=3).resolved(model))) == 3


def test_another_network_and_a_missing_package_are_refused(tmp_path, monkeypatch):
    foreign = Model(torch.nn.Conv2d(1, 1, 1), random_model().diffusion, image_shape=(1, 8, 8))
    with pytest.raises(UserError, match="only the U-Net"):
        export_onnx(foreign, tmp_path / "out", SamplingOptions())
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"this needs onnxscript: run pip install 'ddpm-kit\[export\]'"):
        export_onnx(random_model(), tmp_path / "out", SamplingOptions())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", ["2.6.0", "2.8.1+cu128"])
def test_an_old_pytorch_is_told_which_one_is_needed(version, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(UserError) as caught:
        export_onnx(random_model(), tmp_path / "out", SamplingOptions())
    needed = f"export needs PyTorch 2.9 or newer, and this is {version}: run pip install 'ddpm-kit[export]'"
    assert str(caught.value) == needed


@pytest.mark.parametrize("difference", [2e-5, float("nan")])
def test_a_file_that_computes_something_else_is_not_written(difference, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "network_graph", lambda model: b"")
    monkeypatch.setattr(onnx_files, "largest_difference", lambda model, graph: difference)
    with pytest.raises(RunStopped, match="nothing was written"):
        export_onnx(random_model(), tmp_path / "out", SamplingOptions())
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept(exported_folder, exported_model):
    before = (exported_folder / "model.json").read_bytes()
    with pytest.raises(UserError, match="exists: give another"):
        export_onnx(exported_model, exported_folder, SamplingOptions(steps=7))
    assert (exported_folder / "model.json").read_bytes() == before


def test_the_command_exports_and_the_example_draws_a_png(exported_model, tmp_path, capsys):
    exported_model.save(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), "--to", "onnx", "--out", str(tmp_path / "out"), "--steps", "3"]
    assert run(words) == 0
    assert "within" in capsys.readouterr().out
    script = [sys.executable, ROOT / "examples" / "onnx_sample.py", tmp_path / "out", tmp_path / "x.png"]
    for seed in ("1", "1", "2"):
        subprocess.run([*script, "--num", "5", "--labels", "1,2", "--seed", seed], check=True)
        (tmp_path / f"{seed}.bytes").write_bytes((tmp_path / "x.png").read_bytes())
    with Image.open(tmp_path / "x.png") as picture:
        assert (picture.size, picture.mode) == ((40, 8), "L")
    assert (tmp_path / "1.bytes").read_bytes() != (tmp_path / "2.bytes").read_bytes()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_png_of_the_example_is_what_pillow_reads(channels, tmp_path, example):
    images = np.random.default_rng(0).uniform(-1, 1, (2, channels, 5, 3)).astype(np.float32)
    example.write_png(tmp_path / "x.png", images)
    with Image.open(tmp_path / "x.png") as picture:
        pixels = np.asarray(picture).reshape(5, 6, channels)
    expected = np.concatenate([np.moveaxis(np.round(127.5 * (image + 1)), 0, -1) for image in images], axis=1)
    assert np.array_equal(pixels, expected)


def test_the_example_is_short_and_needs_numpy_and_onnxruntime_alone():
    text = (ROOT / "examples" / "onnx_sample.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert {name for name in names if name not in sys.stdlib_module_names} == {"numpy", "onnxruntime"}
