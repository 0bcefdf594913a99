"""The feature networks: the resize bit for bit, preprocessing, engines, and refusals."""

import hashlib
import os
import subprocess
import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from ddpm.common.errors import UserError
from ddpm.data import open_dataset
from ddpm.evaluation import features as features_module
from ddpm.evaluation.classifier import builtin_classifier, read_digits
from ddpm.evaluation.features import WithLogits, compile_network, inception_input, load_features, tf1_bilinear

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


class Tiny(nn.Module):
    """A stand-in for Inception with its input contract: (N, 3, 299, 299) -> (N, 6)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 13, stride=13)

    def forward(self, x):
        return self.conv(x).relu().mean((2, 3))


class TwoOutputs(nn.Module):
    def forward(self, x):
        return x, x


def scripted(module: nn.Module, path):
    torch.manual_seed(0)
    torch.jit.script(module).save(path)
    return path


@given(st.integers(8, 70), st.integers(8, 70), st.integers(5, 120), st.integers(5, 120), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_resize_is_torch_fidelitys_bit_for_bit(height, width, to_height, to_width, seed):
    x = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(seed)).float()
    theirs = interpolate_bilinear_2d_like_tensorflow1x(x, size=(to_height, to_width), align_corners=False)
    assert torch.equal(tf1_bilinear(x, to_height, to_width), theirs)


@pytest.mark.parametrize("side", [28, 32, 299, 512])
def test_inception_input_is_torch_fidelitys_bit_for_bit(side):
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    resized = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    assert torch.equal(inception_input(images), (resized - 128) / 128)


def test_grey_images_become_three_equal_channels():
    grey = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(inception_input(grey), inception_input(grey.expand(-1, 3, -1, -1)))


def test_inception_with_logits_is_torch_fidelitys_own_forward(monkeypatch, tmp_path):
    """On random weights: the layers, their order, and logits without bias."""
    extractor_class = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    monkeypatch.setattr(extractor_class, "load_state_dict", lambda self, weights: None)
    torch.save({}, tmp_path / "none.pth")
    wanted = ["2048", "logits_unbiased"]
    torch.manual_seed(0)
    extractor = extractor_class("random", wanted, feature_extractor_weights_path=str(tmp_path / "none.pth"))
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        ours = WithLogits(extractor)(inception_input(images))
        theirs = torch.cat(extractor(images), dim=1)
    assert theirs.std() > 0
    assert torch.equal(ours, theirs)
    weights = tmp_path / "checkpoints" / features_module.WEIGHTS_FILE
    weights.parent.mkdir()
    torch.save({}, weights)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "openvino", None)
    torch.manual_seed(0)
    network = load_features("inception", CPU)
    found, logits = network(images)
    assert (found.shape[1], logits.shape[1]) == (network.dimensions, network.classes) == (2048, 1008)
    np.testing.assert_allclose(np.hstack([found, logits]), theirs, rtol=1e-5, atol=1e-6)
    assert network.distance_name == "FID"
    assert network.fingerprint == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_load_features_preprocesses_for_torchscript(tmp_path):
    path = scripted(Tiny(), tmp_path / "tiny.pt")
    network = load_features(path, CPU)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    found, logits = network(images)
    with torch.inference_mode():
        expected = torch.jit.load(path)(inception_input(images))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert logits.shape == (5, 0)
    assert network.distance_name == "Fréchet distance (tiny features)"
    assert not network.standard


def test_load_features_finds_a_file_in_the_data_folder(monkeypatch, tmp_path):
    """As in the commands of docs/reports/results.md, which contain no path of one machine."""
    (tmp_path / "inception").mkdir()
    path = scripted(Tiny(), tmp_path / "inception" / "tiny.pt")
    with pytest.raises(UserError, match=r"no feature network 'tiny\.pt'"):
        load_features("tiny.pt", CPU)
    monkeypatch.setenv("DDPM_DATA", str(tmp_path))
    assert load_features("tiny.pt", CPU).fingerprint == load_features(path, CPU).fingerprint
    with pytest.raises(UserError, match="no feature network"):
        load_features("elsewhere/tiny.pt", CPU)


def test_compile_network_engines_agree(monkeypatch):
    pytest.importorskip("openvino")
    module = Tiny().eval()
    x = torch.randn(3, 3, 299, 299)
    fast = compile_network(module, (3, 299, 299), CPU)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    plain = compile_network(module, (3, 299, 299), CPU)
    assert (fast.name, plain.name) == ("openvino", "torch")
    np.testing.assert_allclose(fast(x), plain(x), rtol=1e-4, atol=1e-5)


def test_compile_network_sends_no_telemetry(tmp_path):
    """OpenVINO's telemetry would write a user number into the home folder."""
    pytest.importorskip("openvino")
    script = """if True:
        import torch
        from ddpm.evaluation.features import compile_network
        print(compile_network(torch.nn.Conv2d(3, 6, 3), (3, 9, 9), torch.device("cpu")).name)
    """
    environment = os.environ | {"HOME": str(tmp_path)}
    answer = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, "openvino\n"), answer.stderr
    assert not (tmp_path / "intel").exists()


class Orthogonal(nn.Module):
    """An operation that OpenVINO does not have."""

    def forward(self, x):
        return torch.linalg.qr(x[:, 0])[0].mean(1)


def test_compile_network_falls_back_to_pytorch(tmp_path):
    pytest.importorskip("openvino")
    path = scripted(Orthogonal(), tmp_path / "orthogonal.pt")
    with pytest.warns(UserWarning, match="OpenVINO cannot compute this network") as said:
        network = load_features(path, CPU)
    assert "\n" not in str(next(w.message for w in said if w.category is UserWarning))
    assert network.engine == "torch"
    assert network(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))[0].shape == (2, 299)


def test_compile_network_ignores_an_openvino_that_does_not_load(monkeypatch, recwarn):
    def broken(*_):
        raise ImportError("libopenvino.so: cannot open shared object file")

    monkeypatch.setattr("ddpm.evaluation.features._library", broken)
    assert compile_network(nn.Conv2d(3, 6, 3), (3, 9, 9), CPU).name == "torch"
    assert not recwarn.list


def test_compile_network_leaves_signals_working():
    """Ctrl-C works after an evaluation."""
    pytest.importorskip("openvino")
    script = """if True:
        import signal, torch
        from ddpm.evaluation.features import compile_network
        one, two = (compile_network(torch.nn.Conv2d(3, 6, 3), (3, 9, 9), torch.device("cpu")) for _ in range(2))
        del one, two
        signal.signal(signal.SIGTERM, lambda number, frame: print("answered"))
        signal.raise_signal(signal.SIGTERM)
    """
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, "answered\n"), answer.stderr


def test_load_features_refuses_a_network_of_the_wrong_shape(tmp_path):
    with pytest.raises(UserError, match="features are N x D"):
        load_features(scripted(TwoOutputs(), tmp_path / "two.pt"), CPU)
    with pytest.raises(UserError, match=r"\(2, 3, 299, 299\); features are N x D"):
        load_features(scripted(nn.Identity(), tmp_path / "images.pt"), CPU)
    with pytest.raises(UserError, match="N x 3 x 299 x 299"):
        load_features(scripted(nn.Linear(7, 2), tmp_path / "linear.pt"), CPU)


def test_load_features_refuses_other_files(tmp_path):
    (tmp_path / "text.pt").write_text("weights, they said")
    with pytest.raises(UserError, match="not a TorchScript file"):
        load_features(tmp_path / "text.pt", CPU)
    with pytest.raises(UserError, match="no feature network 'inceptoin'"):
        load_features("inceptoin", CPU)


def test_load_features_names_the_file_and_its_folder_without_internet(monkeypatch, tmp_path):
    def unreachable(*arguments, **options):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.delenv("DDPM_DATA", raising=False)
    with pytest.raises(UserError) as caught:
        load_features("inception", CPU)
    assert features_module.WEIGHTS_FILE in str(caught.value)
    assert str(tmp_path / "checkpoints") in str(caught.value)


def test_feature_network_refuses_alpha():
    with pytest.raises(UserError, match="grey or colour"):
        load_features("builtin", CPU)(torch.zeros(1, 4, 32, 32, dtype=torch.uint8))


def test_builtin_features_are_small_and_finite():
    network = load_features("builtin", CPU)
    found, _ = network(torch.randint(0, 256, (4, 3, 64, 48), dtype=torch.uint8))
    assert found.shape == (4, network.dimensions)
    assert network.dimensions <= 64
    assert np.isfinite(found).all()
    assert "FID" not in network.distance_name


def test_builtin_reads_the_bundled_digits():
    digits = open_dataset("digits", image_size=28, channels=1, labels=True)
    images, labels = digits.batch(range(0, 10_000, 10))
    assert (read_digits(images) == labels).double().mean() >= 0.985


@pytest.mark.skipif("DDPM_DATA" not in os.environ, reason="MNIST is not here")
def test_builtin_reads_mnists_test_images():
    test = open_dataset("mnist:test", image_size=28, channels=1, labels=True)
    images, labels = test.batch(range(0, len(test), 3))
    assert (read_digits(images) == labels).double().mean() >= 0.985


def test_builtin_features_do_not_depend_on_the_batch():
    model, _ = builtin_classifier()
    x = torch.randn(6, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(x)[2:4], model(x[2:4]), rtol=1e-4, atol=1e-4)
