"""The page without a server, in a real browser: opened as a file and from a web host."""

import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from export_cases import exportable_model

from ddpm.common.errors import UserError
from ddpm.common.randomness import ImageNoise
from ddpm.export import web
from ddpm.export.web import NAMES, export_web
from ddpm.model import Model, SamplingOptions

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

PATIENCE = 120_000  # milliseconds; a busy machine is slow


@pytest.fixture(scope="module")
def exported_model() -> Model:
    return exportable_model()


@pytest.fixture(scope="module")
def page_folder(exported_model, tmp_path_factory) -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, and fetches onnxruntime-web")
    folder = tmp_path_factory.mktemp("web") / "page"
    try:
        export_web(exported_model, folder, SamplingOptions(steps=5, guidance=1.5))
    except UserError as error:
        if "npm could not fetch" not in str(error):
            raise
        pytest.skip(str(error))
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    return folder


@pytest.fixture(scope="module")
def host(page_folder) -> Iterator[str]:
    """The folder on a web host that knows nothing but files."""

    class Files(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Files, directory=str(page_folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


def visit(browser, address: str, width: int = 1280, scheme: str = "light"):
    """Open the page and wait for its first image; `page.wrong` collects errors and requests to elsewhere."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    page.wrong = []
    own = address.rpartition("/")[0]
    page.on("console", lambda message: message.type == "error" and page.wrong.append(message.text))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith((own, "blob:", "data:")) or page.wrong.append(asked.url))
    if scheme == "dark":  # an older browser
        page.add_init_script("delete Uint8Array.fromBase64")
    page.goto(f"{address}?wasm")
    page.locator("#gallery li").first.wait_for()
    return page


@pytest.mark.parametrize(("place", "width", "scheme"), [("file", 1280, "light"), ("host", 390, "dark")])
def test_the_page_draws_at_once_and_asks_nobody(place, width, scheme, browser, page_folder, request):
    address = (page_folder / "index.html").as_uri() if place == "file" else request.getfixturevalue("host")
    page = visit(browser, address, width, scheme)
    assert "Drew cat, seed 0" in page.locator("#status").inner_text()
    place_of_the_gallery = "document.querySelector('#gallery').getBoundingClientRect().top"
    before = page.evaluate(place_of_the_gallery)
    page.get_by_role("button", name="One of each").click()
    page.locator("#gallery li").nth(3).wait_for()
    page.evaluate("last")
    assert page.evaluate(place_of_the_gallery) == before
    drawn = ["cat · seed 1", "</script> · seed 1", "dog, wet · seed 1", "cat · seed 0"]
    assert page.locator("#gallery li").all_inner_texts() == drawn
    assert page.locator("#bar").evaluate("bar => bar.value") == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.wrong == []
    page.close()


def test_the_page_draws_what_our_sampler_draws_from_the_same_noise(browser, page_folder, exported_model):
    page = visit(browser, (page_folder / "index.html").as_uri())
    noise = ImageNoise.of_seed(0, range(2), (1, 8, 8))
    numbers = [noise().flatten().tolist() for _ in range(5)]
    options = SamplingOptions(steps=5, guidance=1.5, labels=[2, 1], precision="fp32")
    expected = exported_model.sample(2, options).flatten().numpy()
    found = page.evaluate(
        "async numbers => Array.from(await sample([2, 1], 1.5, () => Float32Array.from(numbers.shift()), () => true))",
        numbers,
    )
    assert np.abs(np.array(found) - expected).max() < 1e-4
    page.close()


def test_noise_is_normal_and_belongs_to_seed_and_place(browser, page_folder):
    page = visit(browser, (page_folder / "index.html").as_uri())
    both, alone, other = page.evaluate(
        "[noiseOf(3, [0, 1])(), noiseOf(3, [1])(), noiseOf(4, [1])()].map(values => Array.from(values))"
    )
    assert both[64:] == alone
    assert not set(alone) & set(other)
    many = np.array(page.evaluate("Array.from({length: 40000}, normal(0, 0))"))
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02
    assert abs(np.mean(many**4) - 3) < 0.15
    assert abs(np.mean(many[1:] * many[:-1])) < 0.02
    page.close()


def test_a_seed_gives_its_image_again_and_a_new_press_takes_over(browser, page_folder):
    page = visit(browser, (page_folder / "index.html").as_uri())
    page.locator("#seed").fill("0")
    page.get_by_role("button", name="cat").click()
    page.locator("#gallery li").nth(1).wait_for()
    first, again = page.locator("#gallery img").evaluate_all("images => images.map(image => image.src)")
    assert first == again
    page.evaluate("() => { draw([0]); draw([1]); draw([2]); }")
    page.locator("#gallery li").nth(2).wait_for()
    page.evaluate("last")
    texts = page.locator("#gallery li").all_inner_texts()
    assert texts[0] == "dog, wet · seed 3"
    assert len(texts) == 3
    assert page.wrong == []
    page.close()


def test_a_missing_package_is_told_before_anything_is_fetched(exported_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="this needs onnxscript"):
        export_web(exported_model, tmp_path / "page", SamplingOptions())


def test_without_npm_the_page_says_so(exported_model, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="or use --to onnx"):
        export_web(exported_model, tmp_path / "page", SamplingOptions())
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("does", "said"),
    [("echo no such host >&2; exit 1", "no such host"), ("echo x > other.tgz", "another onnxruntime-web")],
)
def test_an_npm_that_fails_or_brings_something_else_is_one_line(does, said, exported_model, tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\n{does}\n")
    npm.chmod(0o755)
    monkeypatch.setattr(web.shutil, "which", lambda name: str(npm))
    with pytest.raises(UserError, match=said) as caught:
        export_web(exported_model, tmp_path / "page", SamplingOptions())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "page").exists()
