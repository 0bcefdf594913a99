"""The endpoints, asked as programs ask them."""

import gc
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from ddpm.app import edit
from ddpm.cli import run as command_line
from ddpm.common.pixels import read_origin, to_uint8

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")
build = pytest.importorskip("ddpm.app.page").build

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "serving.md"
AppError = gradio_client.exceptions.AppError


@pytest.fixture(scope="module")
def client(address):
    return gradio_client.Client(address, verbose=False)


NPZ, COMMAND = 6, 7  # places in what /generate gives


def alive(client) -> bool:
    return client.predict(number=1, steps=1, guidance=1, api_name="/generate")[0] == "Done: 1 image, seed 0."


def test_16_requests_at_once_are_answered_and_none_is_mixed_up(client, served_model):
    def ask(count: int) -> list[np.ndarray]:
        jobs = [
            client.submit(label=f"class {i % 3}", steps=2, seed=i, number=2, guidance=1, api_name="/generate")
            for i in range(count)
        ]
        return [np.load(job.result(120)[NPZ])["arr_0"] for job in jobs]

    ask(4)  # what is kept once for all, is kept from here on
    gc.collect()
    tensors, memory = live_tensors(), psutil.Process().memory_info().rss
    answers = ask(16)
    for i, answer in enumerate(answers):
        images = served_model.sample(2, labels=i % 3, steps=2, seed=i, batch_size=2)
        assert np.array_equal(answer, to_uint8(images).permute(0, 2, 3, 1)), f"request {i} got another's answer"
    del images
    gc.collect()
    assert live_tensors() <= tensors + 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sampling")]
    assert psutil.Process().memory_info().rss < memory + 100 * 2**20  # the server's own pool of threads grows once


@pytest.mark.parametrize("name", ["tench, Tinca tinca", "all"])
def test_the_command_and_the_program_draw_what_was_seen_whatever_its_class_is_called(
    client, served_model, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(served_model, "class_names", ["class 0", name, "class 2"])
    served_model.save(tmp_path / "somebody's model")
    monkeypatch.chdir(tmp_path)
    answer = client.predict(label=name, steps=2, seed=3, number=2, guidance=1, api_name="/generate")
    grid, command, program = Path(answer[3]).read_bytes(), *answer[COMMAND:]
    expected = served_model.sample(2, labels=1, steps=2, seed=3, batch_size=2)
    assert np.array_equal(np.load(answer[NPZ])["arr_0"], to_uint8(expected).permute(0, 2, 3, 1))
    assert command_line(shlex.split(command.replace("\\\n", ""))[1:]) == 0
    assert Path("samples.png").read_bytes() == grid  # what it says of itself, too
    pixels = np.asarray(Image.open("samples.png"))
    Path("samples.png").unlink()
    exec(program, {})
    assert np.array_equal(Image.open("samples.png"), pixels)


@pytest.mark.parametrize(
    ("asked", "endpoint", "written"),
    [
        ({"strength": 0.5, "label": "class 1", "guidance": 2.0}, "/edit", "edited.png"),
        ({"way": edit.TRANSLATE, "label": "class 0", "to": "class 1"}, "/edit", "edited.png"),
        ({"number": 3, "depth": 0.4}, "/interpolate", "interpolation.png"),
        ({"kind": "low resolution", "scale": 2, "draws": 2, "label": "class 1"}, "/restore", "mean.png"),
    ],
)
def test_a_picture_knows_the_command_that_makes_it_again(
    client, served_model, uploads, tmp_path, monkeypatch, asked, endpoint, written
):
    served_model.save(tmp_path / "somebody's model")
    monkeypatch.chdir(tmp_path)
    names = ("first", "second") if endpoint == "/interpolate" else ("image",)
    given = {name: gradio_client.handle_file(uploads / "good.png") for name in names}
    mask = {"mask": None} if endpoint == "/restore" else {}
    answer = client.predict(**given, **mask, **asked, steps=3, seed=5, api_name=endpoint)
    for file in (Path(path) for path in answer if re.fullmatch(r"/.*\.(png|zip)", str(path))):
        if file.suffix == ".zip":
            zipfile.ZipFile(file).extractall()
        else:
            Path(file.name).write_bytes(file.read_bytes())
    made = Path(written).read_bytes()
    command = shlex.split(read_origin(Path(written))["command"])
    Path(written).unlink()
    assert command_line(command[1:]) == 0
    assert Path("restored.png" if endpoint == "/restore" else written).read_bytes() == made


def live_tensors() -> int:
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_a_program_asks_for_runs_it_has_not_looked_at(client):
    table, drawn, previews = client.predict(names=["first"], quantity="images_per_second", api_name="/runs")
    assert "stopped" in table
    assert "<svg" in drawn
    assert "images per second" in drawn
    assert "first, step 100" in previews
    assert ">first, step 200<" in previews  # the last is shown
    with pytest.raises(AppError, match="No run 'fourth'"):
        client.predict(names=["fourth"], quantity="loss", api_name="/runs")


def test_a_request_leaves_no_component_behind(client):
    assert alive(client)
    before = components()
    for _ in range(3):
        assert alive(client)
    assert components() == before


def components() -> int:
    gc.collect()
    return sum(isinstance(thing, gradio.blocks.Block) for thing in gc.get_objects())


def test_the_guide_is_true(client, address, served_model, uploads, tmp_path, monkeypatch):
    """The batch example and the restoration run as they are printed, but for the address and the model's classes."""
    batch, restoration = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (tmp_path / "seven.png").write_bytes((uploads / "good.png").read_bytes())
    (tmp_path / "mask.png").write_bytes((uploads / "mask.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    batch = batch.replace("http://127.0.0.1:7860", address).replace('"0", "1", "2"', '"class 0", "class 1"')
    names: dict = {}
    exec(batch + restoration, names)
    assert np.array_equal(
        names["images"][4:], to_uint8(served_model.sample(4, labels=1, batch_size=4)).permute(0, 2, 3, 1)
    )
    assert names["report"].startswith("Done: 4 draws.")
    documented = set(re.findall(r"^\| `(/\w+)` \|", GUIDE.read_text(), re.MULTILINE))
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert documented == set(endpoints)
    for row in re.findall(r"^\| `(/\w+)` \| (.*?) \|", GUIDE.read_text(), re.MULTILINE):
        assert [word.strip() for word in row[1].split(",")] == [
            parameter["parameter_name"] for parameter in endpoints[row[0]]["parameters"]
        ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"number": 1000}, "maximum|1000"),
        ({"steps": 0}, "minimum|greater|0"),
        ({"label": "class 9"}, "No class 'class 9'"),
        ({"sampler": "magic"}, "magic"),
    ],
)
def test_what_is_out_of_bounds_is_refused_in_words(client, asked, said):
    with pytest.raises(AppError, match=said):
        client.predict(**asked, api_name="/generate")
    assert alive(client)


@pytest.mark.parametrize(
    ("name", "said"),
    [("broken.png", "it is not an image"), ("huge.png", "10000x10000 is more than"), (None, "missing")],
)
@pytest.mark.parametrize("endpoint", ["/edit", "/restore", "/forward"])
def test_a_bad_upload_is_refused_in_words(client, uploads, name, said, endpoint):
    image = None if name is None else gradio_client.handle_file(uploads / name)
    mask = {"mask": gradio_client.handle_file(uploads / "mask.png")} if endpoint == "/restore" else {}
    with pytest.raises(AppError, match=said):
        client.predict(image=image, **mask, api_name=endpoint)


@pytest.mark.parametrize("name", ["animated.gif", "alpha.png"])
def test_an_odd_upload_is_read(client, uploads, name):
    report, *_ = client.predict(image=gradio_client.handle_file(uploads / name), steps=2, api_name="/edit")
    assert report.startswith("Strength 0.5")


def test_an_upload_is_brought_to_the_model_as_its_training_images_were(
    client, served_model, uploads, tmp_path, monkeypatch
):
    monkeypatch.setitem(served_model.provenance, "config", {"data": {"fit": "pad", "background": 0}})
    Image.new("LA", (32, 16), (255, 255)).save(tmp_path / "wide.png")
    wide = gradio_client.handle_file(tmp_path / "wide.png")
    asked = {"image": wide, "steps": 2}
    damage = {"kind": "low resolution", "scale": 2, "mask": None, "draws": 1}
    given = client.predict(**asked, api_name="/edit")[3]
    archive = client.predict(**asked, **damage, api_name="/restore")[3]
    with zipfile.ZipFile(archive) as pictures, pictures.open("original.png") as original:
        for path in (given, original):
            rows = np.asarray(Image.open(path).convert("L")).mean(1)
            height = len(rows)
            assert rows[: height // 4].max() <= 1  # the band above is padding
            assert rows[height // 4 : 3 * height // 4].min() >= 254


def test_a_model_that_always_needs_a_class_restores_as_its_first_unless_told(strict_address, uploads):
    strict = gradio_client.Client(strict_address, verbose=False)

    def restored(**asked):
        image, mask = (gradio_client.handle_file(uploads / f"{name}.png") for name in ("good", "mask"))
        archive = strict.predict(image=image, mask=mask, steps=3, **asked, api_name="/restore")[3]
        with zipfile.ZipFile(archive) as pictures:
            return pictures.read("mean.png")

    assert restored() == restored(label="class 0") != restored(label="class 1")
    with pytest.raises(AppError, match="No class 'class 9'"):
        restored(label="class 9")


@pytest.mark.parametrize("endpoint", ["/generate", "/edit", "/restore"])
def test_a_model_without_classes_refuses_one_in_words(plain_address, uploads, endpoint):
    plain = gradio_client.Client(plain_address, verbose=False)
    image = {} if endpoint == "/generate" else {"image": gradio_client.handle_file(uploads / "good.png")}
    image |= {"mask": gradio_client.handle_file(uploads / "mask.png")} if endpoint == "/restore" else {}
    with pytest.raises(AppError, match="trained without classes"):
        plain.predict(label="class 1", **image, api_name=endpoint)
    plain.predict(steps=2, **image, api_name=endpoint)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_fetches_nothing_for_anybody(client):
    elsewhere = {"path": "http://192.0.2.1/picture.png", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError, match="not its address"):
        client.predict(image=elsewhere, api_name="/edit")


def test_no_field_begins_beyond_its_end(short_model, tmp_path):
    fields = [part["props"] for part in build(short_model, "short", tmp_path).config["components"]]
    sliders = [field for field in fields if {"minimum", "maximum", "step"} <= set(field) and field["value"] is not None]
    assert [field["label"] for field in sliders if field["label"] == "Steps"] == ["Steps"] * 4
    assert [field["label"] for field in sliders if field["maximum"] and field["value"] > field["maximum"]] == []


def test_half_a_number_is_waited_for(short_model, tmp_path):
    """Gradio's change comes at every keystroke in a field, and a slider has one beside it; blur comes at the end."""
    page = build(short_model, "short", tmp_path)
    label = {number: getattr(block, "label", None) for number, block in page.blocks.items()}
    heard = [
        (label.get(number), event, function)
        for function in page.fns.values()
        if function.fn  # what the browser does by itself may be done at every keystroke
        for number, event in function.targets
    ]
    ends = {(f"{which} β", event) for which in ("First", "Last") for event in ("submit", "blur")}
    events = {(name, event) for name, event, _ in heard if name in ("T", "First β", "Last β")}
    assert events == {("T", "change"), ("T", "release"), *ends}
    (slider,) = (block for number, block in page.blocks.items() if label[number] == "T")
    assert slider.preprocess(None) is None  # an empty field, on the way to another number
    (follow,) = (function.fn for name, event, function in heard if (name, event) == ("T", "change"))
    for half in (None, 1, 40_000):
        assert follow(["linear"], half, 1e-4, 0.02, False) == gradio.skip()
    assert "<svg" in follow(["linear"], 150, 1e-4, 0.02, False)


def test_the_model_one_stands_in_has_a_name(short_model, tmp_path, monkeypatch):
    (tmp_path / "my run").mkdir()
    monkeypatch.chdir(tmp_path / "my run")
    page = build(short_model, ".", tmp_path)
    assert page.title == "my run · ddpm"
    headings = [str(part["props"].get("value")) for part in page.config["components"]]
    assert any("<h1>my run</h1><p>Draws 16×16 grey images of 3 classes (class 0, " in words for words in headings)


def test_a_port_in_use_is_an_error_of_one_line(capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert command_line(["app", "digits", "--port", str(port)]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "Address already in use; choose another --port" in error


def test_ctrl_c_ends_the_server_while_somebody_draws(served_model, tmp_path):
    served_model.save(tmp_path / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ddpm", "app", str(tmp_path / "model"), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = iter(server.stdout.readline, "")
            address = next(re.search(r"http://\S+", line)[0] for line in lines if "the page is at" in line)
            drawing = gradio_client.Client(address, verbose=False).submit(
                number=64, steps=1000, guidance=1, api_name="/generate"
            )
            next(iter(drawing))  # it has begun
            server.send_signal(signal.SIGINT)
            _, errors = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 0
    assert "Traceback" not in errors
