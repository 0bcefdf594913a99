"""The page in a real browser: what people do with it, at the width of a desk and of a phone."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.common.pixels import read_origin

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
TABS = ["Generate", "Restore", "Edit", "Compare", "Explore", "Runs"]
PATIENCE = 180_000  # milliseconds; nothing here takes one, unless the machine is busy


class Visit:
    """One visit to the page, which notes whatever goes wrong."""

    def __init__(self, browser, address: str, width: int = 1280, **options):
        self.page = browser.new_page(viewport={"width": width, "height": 844 if width < 600 else 900}, **options)
        self.page.set_default_timeout(PATIENCE)
        self.wrong: list[str] = []
        self.joined = 0  # runs that the page has asked for
        self.page.on("console", lambda message: message.type == "error" and self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url, re.split("[?#]", address)[0]))
        self.page.on(
            "response", lambda answer: answer.status >= 400 and self.wrong.append(f"{answer.status} {answer.url}")
        )
        self.page.goto(address)
        self.page.get_by_role("tab", name="Generate").wait_for()
        self.status("Done:")  # the page begins with a drawing

    def _asked(self, url: str, address: str) -> None:
        self.joined += "/queue/join" in url
        if not url.startswith((address, "data:", "blob:")):
            self.wrong.append(f"asked {url}")

    def open(self, tab: str) -> None:
        """Open a tab, from the menu where there is no room for it. Which of the two it is the page finds out as it
        measures itself, and moves a tab while one reaches for it: then look again."""
        for patience in (5_000, 5_000, PATIENCE):
            button = self.page.get_by_role("tab", name=tab, exact=True)
            try:
                if not (button.count() and button.first.is_visible()):
                    self.page.locator(".overflow-menu > button").click(timeout=patience)
                    button = self.page.locator(".overflow-menu").get_by_role("button", name=tab)
                button.first.click(timeout=patience)
                break
            except sync_api.TimeoutError:
                if patience == PATIENCE:
                    raise
        self.panel.wait_for()

    @property
    def panel(self):
        return self.page.locator("[role=tabpanel]:visible")

    def button(self, name: str):
        return self.panel.get_by_role("button", name=name, exact=True)

    def press(self, name: str) -> None:
        self.button(name).click()

    def pad(self, place: int = 0):
        return self.panel.locator(".pad").nth(place)

    def upload(self, path, says: str, place: int = 0) -> None:
        """Open a file on a pad, which then says something."""
        self.pad(place).locator("input[type=file]").set_input_files(path)
        self.pad(place).get_by_text(says).wait_for()

    def drop(self, path) -> None:
        """Drop a file on the open tab."""
        given = [path.name, base64.b64encode(path.read_bytes()).decode()]
        carried = self.page.evaluate_handle(
            """([name, data]) => {
                const carried = new DataTransfer();
                carried.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
                return carried;
            }""",
            given,
        )
        self.panel.locator(".gallery").first.dispatch_event("drop", {"dataTransfer": carried})

    def drawn(self, place: int = 0) -> np.ndarray:
        """What a pad sends: its picture, uint8 (H, W)."""
        data = self.pad(place).locator("canvas").evaluate("canvas => canvas.toDataURL()")
        return np.asarray(Image.open(io.BytesIO(bytes_of(data))).convert("L"))

    def choose(self, label: str, option: str) -> None:
        self.panel.get_by_role("combobox", name=label).first.select_option(option)

    def number(self, label: str, value: int) -> None:
        field = self.panel.get_by_label(f"number input for {label}").first
        field.fill(str(value))
        field.press("Tab")

    def status(self, text: str, place: int = 0) -> None:
        """Wait until the status of the open tab says a text."""
        self.panel.locator(".status").nth(place).filter(has_text=text).wait_for()

    def laid_out(self) -> None:
        """Wait until nothing in the open tab changes its size any more."""
        self.page.evaluate("""async () => {
            const frame = () => new Promise(requestAnimationFrame);
            const size = () => [...document.querySelectorAll("[role=tabpanel] *")].map((e) => e.clientHeight).join();
            for (let before = null, now = size(); before !== now; before = now, now = size()) {
                await frame();
                await frame();
            }
        }""")

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what no element tells."""
        for _ in range(PATIENCE // 100):
            if holds():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError("it never came about")


def bytes_of(address: str) -> bytes:
    return base64.b64decode(address.partition(",")[2])


@pytest.fixture(scope="module")
def kept(browser, address) -> Iterator[Visit]:
    visit = Visit(browser, address)
    yield visit
    visit.page.close()


@pytest.fixture
def visit(kept) -> Iterator[Visit]:
    """A visit that several tests share, because it takes seconds to begin one."""
    yield kept
    assert kept.wrong == []


def fresh(browser, address: str, width: int = 1280, **options) -> Iterator[Visit]:
    visit = Visit(browser, address, width, **options)
    yield visit
    visit.page.close()
    assert visit.wrong == []


@pytest.fixture
def phone(browser, address) -> Iterator[Visit]:
    yield from fresh(browser, address, 390, has_touch=True, is_mobile=True)


# generate


def test_the_page_begins_with_a_drawing(visit, served_model):
    assert visit.panel.locator(".tile").count() == 16
    assert visit.page.title() == "somebody's model · ddpm"
    assert not visit.panel.get_by_label("Command", exact=True).filter(visible=True).count()


def test_every_class_image_and_seed_is_said_and_an_image_is_enlarged_and_sent(visit, served_model):
    tile = visit.panel.locator(".tile").nth(3)
    assert tile.get_attribute("aria-label") == "Enlarge image 3, class class 0, seed 0"
    tile.click()
    dialog = visit.page.get_by_role("dialog")
    dialog.get_by_text("image 3, class class 0, seed 0").wait_for()
    visit.page.keyboard.press("ArrowRight")
    dialog.get_by_text("image 4, class class 1, seed 0").wait_for()
    with visit.page.expect_download() as download:
        dialog.get_by_role("link", name="Save").click()
    assert download.value.suggested_filename == "seed0_000004.png"
    saved = np.asarray(Image.open(download.value.path()))
    assert saved.shape == (16, 16)
    dialog.get_by_role("button", name="→ Restore").click()
    visit.pad().locator("canvas").wait_for()
    visit.press("Unmark")
    visit.until(lambda: np.array_equal(shrunk(visit.drawn())[:8], saved[:8]))  # the lower half is marked
    visit.open("Generate")


def shrunk(drawn: np.ndarray) -> np.ndarray:
    """A pad at the model's size."""
    zoom = len(drawn) // 16
    return drawn[zoom // 2 :: zoom, zoom // 2 :: zoom]


def test_generate_a_class_and_go_back_to_what_was_before(visit):
    visit.choose("Class", "class 1")
    visit.press("Generate")
    visit.until(lambda: "class+1" in visit.page.url)
    visit.status("Done: 16 images")
    seed = re.search(r"seed=(\d+)", visit.page.url)[1]
    assert seed != "0"  # a new one each time
    visit.panel.get_by_text("Command line and Python").click()
    command = visit.panel.get_by_label("Command", exact=True)
    assert "--labels 'class 1'" in command.inner_text()
    assert f"--seed {seed}" in command.inner_text()
    with visit.page.expect_download() as download:
        visit.panel.get_by_text("Grid, PNG").click()
    assert download.value.suggested_filename == "samples.png"
    visit.panel.locator(".history button").nth(1).click()
    visit.until(lambda: visit.panel.get_by_label("Seed").first.input_value() == "0")
    assert "seed=0" in visit.page.url
    assert "--seed 0" in command.inner_text()  # files and code come back with their pictures
    with visit.page.expect_download() as first:
        visit.panel.get_by_text("Grid, PNG").click()
    assert Path(first.value.path()).read_bytes() != Path(download.value.path()).read_bytes()
    visit.panel.get_by_text("Command line and Python").click()


def test_after_stop_pictures_keep_their_own_settings(visit):
    visit.number("Steps", 2)
    visit.press("Generate")
    visit.until(lambda: "steps=2&" in visit.page.url)
    visit.status("Done: 16 images")
    before = visit.page.url, visit.panel.locator(".tile img").first.get_attribute("src")
    visit.panel.get_by_text("Command line and Python").click()
    command = visit.panel.get_by_label("Command", exact=True)
    code = command.inner_text()
    visit.number("Steps", 1000)
    visit.press("Generate")
    visit.status("of 1000")
    visit.press("Stop")
    visit.status("Stopped. These are the pictures of the run before, with its settings.")
    assert (visit.page.url, visit.panel.locator(".tile img").first.get_attribute("src")) == before
    assert command.inner_text() == code != ""
    with visit.page.expect_download() as download:
        visit.panel.get_by_text("Grid, PNG").click()
    assert read_origin(Path(download.value.path()))["options"]["steps"] == 2
    visit.panel.get_by_text("Command line and Python").click()
    visit.number("Steps", 2)


def test_pictures_of_a_first_run_that_is_stopped_are_said_to_be_unfinished(visit, uploads):
    visit.open("Edit")
    visit.number("Steps of a whole run", 250)
    visit.panel.get_by_label("try every strength").check()
    visit.press("Edit")
    visit.panel.locator(".moving figure").first.wait_for()
    visit.press("Stop")
    visit.status("Stopped. These pictures are unfinished.")
    assert visit.panel.locator(".moving figure").first.is_visible()
    visit.panel.get_by_label("noise it and remove the noise").check()
    visit.open("Generate")


def test_a_dropped_picture_gives_its_settings_and_is_drawn_again(visit, uploads, tmp_path):
    def save(name: str) -> np.ndarray:
        with visit.page.expect_download() as download:
            visit.panel.get_by_text("Grid, PNG").click()
        download.value.save_as(tmp_path / name)
        return np.asarray(Image.open(tmp_path / name))

    def draw() -> str:
        before = visit.page.url
        visit.press("Generate")
        visit.until(lambda: visit.page.url != before)
        visit.status("Done: 16 images")
        return re.search(r"seed=(\d+)", visit.page.url)[1]

    seed, first = draw(), save("first.png")
    assert draw() != seed
    visit.drop(tmp_path / "first.png")
    visit.status("The settings of first.png.")
    assert visit.panel.get_by_label("Seed").first.input_value() == seed
    assert draw() == seed  # and not a new one
    assert np.array_equal(save("again.png"), first)
    visit.drop(uploads / "broken.png")
    visit.status("broken.png does not say how it was made.")
    visit.panel.get_by_label("A new one each time").check()


def test_a_double_press_is_one_run_and_stop_leaves_the_result_before(visit):
    visit.number("Steps", 1000)
    before = visit.joined
    visit.button("Generate").dblclick()
    visit.status("of 1000")
    assert visit.joined == before + 1
    assert not visit.button("Generate").is_visible()
    visit.press("Stop")
    visit.status("Stopped.")
    visit.panel.locator(".tile").nth(15).wait_for()
    visit.number("Steps", 2)
    visit.press("Generate")  # the model is free again
    visit.status("Done: 16 images")
    assert visit.joined == before + 2


def test_stop_ends_a_run_that_the_server_has_not_numbered_yet(visit):
    visit.number("Steps", 1000)
    held: list = []
    visit.page.route("**/queue/join*", lambda route: held.append(route), times=1)
    visit.press("Generate")
    visit.until(lambda: held)
    visit.press("Stop")
    visit.status("Stopped.")
    visit.page.evaluate("""() => {
        const status = document.querySelector(".status-block");
        window.said = [];
        const note = () => window.said.push(status.innerText);
        new MutationObserver(note).observe(status, {childList: true, subtree: true});
    }""")
    held[0].continue_()
    visit.number("Steps", 2)
    visit.press("Generate")
    visit.status("Done: 16 images")
    assert not [words for words in visit.page.evaluate("window.said") if "of 1000" in words]


def test_keys_start_and_stop_and_move_between_tabs(visit):
    visit.number("Steps", 1000)
    visit.panel.get_by_label("Seed").first.press("Control+Enter")
    visit.status("of 1000")
    visit.page.keyboard.press("Escape")
    visit.status("Stopped.")
    visit.number("Steps", 2)
    visit.page.get_by_role("tab", name="Generate").focus()
    visit.page.keyboard.press("ArrowRight")
    visit.until(lambda: visit.page.get_by_role("tab", name="Restore").get_attribute("aria-selected") == "true")
    visit.open("Generate")


def test_a_second_tab_says_that_it_waits(browser, address, visit):
    visit.number("Images", 64)  # a drawing that lasts until the second tab is there, also on a busy machine
    visit.number("Steps", 1000)
    visit.press("Generate")
    visit.status("of 1000")
    other = Visit.__new__(Visit)
    other.page = browser.new_page()
    other.page.set_default_timeout(PATIENCE)
    other.page.goto(address)
    other.page.get_by_role("tab", name="Compare").click()
    other.panel.get_by_label("Their values").fill("2")
    other.press("Compare")
    other.status("Waiting")
    assert other.button("Stop").is_visible()
    visit.press("Stop")
    other.status("Done in")
    other.page.close()
    visit.number("Images", 16)
    visit.number("Steps", 2)


def test_the_address_holds_the_settings(browser, address):
    for visit in fresh(browser, address + "#label=class+2&steps=3&seed=7&number=5"):
        visit.status("Done: 5 images, seed 7.")
        assert visit.panel.get_by_label("Seed").first.input_value() == "7"
        tile = visit.panel.locator(".tile").first
        assert tile.get_attribute("data-caption") == "image 0, class class 2, seed 7"


def test_a_student_draws_while_a_slider_moves(browser, quick_address):
    for visit in fresh(browser, quick_address):
        images = visit.panel.locator(".tile img")
        before = images.first.get_attribute("src")
        slider = visit.panel.get_by_label("range slider for Guidance")
        slider.focus()
        slider.press("ArrowRight")
        visit.page.wait_for_function("location.hash.includes('guidance=1.1')")
        assert images.first.get_attribute("src") != before
        visit.panel.get_by_label("Draw while a slider moves").uncheck()
        joined = visit.joined
        slider.press("ArrowRight")
        visit.press("Generate")
        visit.page.wait_for_function("location.hash.includes('guidance=1.2')")
        assert visit.joined <= joined + 2  # the slider asks once, and nothing is drawn


def test_the_page_switches_to_another_model_and_to_that_of_a_run(browser, switching):
    address, folder = switching
    for visit in fresh(browser, address):
        models = visit.page.get_by_role("combobox", name="Model")
        models.locator("option").nth(3).wait_for(state="attached")
        assert models.locator("optgroup").evaluate_all("groups => groups.map(group => group.label)") == [
            "Given",
            "Bundled",
            "Runs",
        ]
        models.select_option(str(folder / "other"))
        visit.page.get_by_role("heading", name="other").wait_for()
        visit.status("Done: 16 images")
        assert "/models/" in visit.page.url
        assert not visit.panel.get_by_label("Class").filter(visible=True).count()
        visit.open("Runs")
        visit.button("Use this model").click()
        visit.page.get_by_role("heading", name="trained").wait_for()
        visit.status("Done: 16 images")
        models.select_option(str(folder / "one"))
        visit.page.get_by_role("heading", name="one").wait_for()
        visit.status("Done: 16 images")
        assert "/models/" not in visit.page.url
        visit.wrong.clear()  # Gradio logs that its connection ends when one leaves a page


def test_a_training_is_started_and_stopped(browser, switching, stub_trainer):
    address, folder = switching
    for visit in fresh(browser, address):
        visit.open("Runs")
        visit.panel.get_by_text("Train a model").click()
        visit.panel.get_by_label("Name of the run").fill("new/run")
        visit.press("Start training")
        visit.status("needs a name")
        visit.wrong.clear()  # Gradio logs the refusal
        visit.panel.get_by_label("Name of the run").fill("new")
        visit.press("Start training")
        visit.status("Started new.")
        visit.panel.get_by_label("new", exact=True).check()
        visit.panel.get_by_role("row", name=re.compile("^new training")).get_by_role("button", name="Stop").click()
        visit.panel.get_by_role("row", name=re.compile("^new stopped")).wait_for()
    assert "train digits" in (folder / "runs" / "new.log").read_text()


def test_a_number_that_is_not_possible_is_said_beside_its_field(visit):
    for label, typed, said in (("Images", 1000, "From 1 to 64. 1000 became 64."), ("Steps", 0, "0 became 1.")):
        visit.number(label, typed)
        visit.panel.locator(".block", has=visit.panel.get_by_label(f"number input for {label}")).get_by_text(
            said
        ).wait_for()
    visit.panel.get_by_label("Seed").first.fill("-4")
    visit.panel.get_by_label("Seed").first.press("Tab")
    visit.panel.get_by_text("At least 0.").wait_for()
    visit.panel.get_by_label("Seed").first.fill("4")
    visit.panel.get_by_label("Seed").first.press("Tab")
    visit.panel.get_by_text("At least 0.").wait_for(state="detached")
    visit.number("Images", 16)
    visit.number("Steps", 2)
    visit.until(lambda: not visit.panel.locator(".field-note").count())


def test_a_reload_keeps_the_settings_of_every_tab_and_the_open_one(browser, address):
    for visit in fresh(browser, address):
        visit.open("Restore")
        visit.choose("Damage", "blur")
        visit.panel.get_by_label("number input for Blur").wait_for()
        visit.number("Blur", 3)
        visit.open("Compare")
        visit.choose("Columns", "guidance")
        visit.panel.get_by_label("Steps").wait_for()
        visit.panel.get_by_label("Their values").fill("1, 3")
        visit.until(lambda: "1, 3" in visit.page.evaluate("JSON.stringify(sessionStorage)"))
        visit.page.reload()
        visit.page.get_by_role("tab", name="Compare", selected=True).wait_for()
        visit.until(lambda: visit.panel.get_by_label("Their values").input_value() == "1, 3")
        visit.panel.get_by_label("Steps").wait_for()
        visit.open("Restore")
        visit.panel.get_by_label("number input for Blur").wait_for()
        assert visit.panel.get_by_label("number input for Blur").input_value() == "3"
        visit.wrong.clear()  # Gradio logs that its connection ends when one leaves a page


def test_an_open_page_goes_on_when_its_server_is_back(browser, plain_model, tmp_path, port):
    from ddpm.app.page import build, launch

    first = build(plain_model, "model", tmp_path)
    address = launch(first, "127.0.0.1", port, block=False)
    for visit in fresh(browser, f"{address}#steps=3&seed=7&number=5"):
        visit.status("Done: 5 images, seed 7.")
        first.close()
        visit.page.get_by_text("The connection to the server is lost.").wait_for()
        again = build(plain_model, "model", tmp_path)
        launch(again, "127.0.0.1", port, block=False)
        visit.page.get_by_text("The connection to the server is lost.").wait_for(state="detached")
        visit.status("Done: 5 images, seed 7.")
        visit.number("Images", 2)
        visit.press("Generate")
        visit.status("Done: 2 images")
        again.close()
        visit.wrong.clear()  # the browser logs that nobody answered


def test_a_model_without_classes_is_asked_for_none(browser, plain_address):
    for visit in fresh(browser, plain_address):
        assert not visit.panel.get_by_label("Class").filter(visible=True).count()
        visit.status("Done: 16 images, seed 0.")
        visit.open("Runs")
        visit.page.get_by_text("Start one with").filter(visible=True).wait_for()


# restore


def test_restore_what_is_marked_after_another_damage_has_been_looked_at(visit, uploads):
    visit.open("Restore")
    visit.upload(uploads / "good.png", "Resized to 16×16")
    visit.choose("Damage", "blur")
    visit.panel.get_by_label("number input for Blur").wait_for()
    visit.choose("Damage", "a painted part is lost")
    visit.press("Mark")
    canvas = visit.pad().locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    visit.page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.5, steps=5)
    visit.page.mouse.up()
    visit.panel.get_by_text("Noise, class and method").click()
    visit.number("Steps", 3)
    visit.press("Restore")
    visit.status("Mean of 4 draws.")
    before = pixels_of(visit.panel.get_by_alt_text("what was given"))
    assert (before[8, 4:12] == 128).all()  # lost pixels are grey
    assert before[2].std() > 20
    visit.panel.get_by_label("uncertainty").check()
    visit.panel.get_by_text("0.25+").wait_for()


def pixels_of(image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(bytes_of(image.get_attribute("src")))).convert("L"))


def test_a_mask_is_painted_by_keys(visit):
    visit.open("Restore")
    visit.press("Clear")
    visit.pad().locator(".pad-examples button").first.click()
    visit.press("Unmark")
    for _ in range(2):  # the example came with its lower half marked
        visit.press("Clear")
    canvas = visit.pad().locator("canvas")
    visit.press("Mark")
    canvas.focus()
    before = visit.drawn().astype(int)
    visit.page.keyboard.press("Shift+ArrowRight")
    visit.page.keyboard.press("Shift+ArrowRight")
    visit.until(lambda: np.abs(visit.drawn().astype(int) - before).sum() > 0)


def test_a_refused_run_says_why_and_can_be_pressed_again(visit):
    visit.open("Restore")
    visit.press("Clear")
    visit.press("Restore")
    visit.status("No pixels are marked")
    visit.button("Restore").wait_for()
    visit.wrong.clear()  # Gradio logs the refusal


def test_a_picture_of_the_wrong_kind_is_refused_on_the_pad_and_a_negative_is_inverted(visit, uploads, tmp_path):
    visit.open("Edit")
    visit.upload(uploads / "broken.png", "it is not an image")
    dark = visit.drawn().mean()
    Image.fromarray(np.pad(np.full((8, 8), 255 if dark > 127 else 0, np.uint8), 4,
                           constant_values=0 if dark > 127 else 255)).save(tmp_path / "negative.png")  # fmt: skip
    background = visit.pad().locator(".pad-examples img").first
    edge = pixels_of(background)
    light = np.concatenate([edge[0], edge[-1], edge[1:-1, 0], edge[1:-1, -1]]).mean()
    image = np.full((16, 16), 255 if light < 128 else 0, np.uint8)
    image[4:12, 4:12] = 255 - image[0, 0]
    Image.fromarray(image).save(tmp_path / "negative.png")
    visit.pad().locator("input[type=file]").set_input_files(tmp_path / "negative.png")
    inverted = abs(light - image[0, 0]) > 128
    visit.pad().get_by_text("Inverted: this model" if inverted else "Resized to").wait_for()
    corner = visit.drawn()[0, 0]
    assert corner == (255 - image[0, 0] if inverted else image[0, 0])
    visit.pad().get_by_label("Invert").click()
    visit.until(lambda: visit.drawn()[0, 0] == 255 - corner)


def test_edit_and_translate_and_interpolate(visit):
    visit.open("Edit")
    visit.number("Steps of a whole run", 4)
    visit.press("Edit")
    visit.status("Strength 0.5: PSNR")
    visit.panel.get_by_label("translate it to another class").check()
    visit.choose("New class", "class 1")
    visit.press("Edit")
    visit.status("Translated to class 1")
    visit.number("Steps of a whole run", 2)
    visit.panel.get_by_label("try every strength").check()
    visit.press("Edit")
    visit.status("Done: 10 strengths.")
    assert visit.panel.locator(".tile").count() == 11
    visit.press("Interpolate")
    visit.status("Done: 7 images between", 1)
    assert visit.panel.locator(".tile").count() == 11 + 9


def test_a_picture_is_drawn(visit):
    visit.open("Edit")
    visit.pad().get_by_role("button", name="Clear").click()
    visit.pad().get_by_role("button", name="Draw").click()
    blank = visit.drawn()
    assert blank.std() == 0
    box = visit.pad().locator("canvas").bounding_box()
    visit.page.mouse.move(box["x"] + 60, box["y"] + 60)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 180, box["y"] + 60, steps=4)
    visit.page.mouse.up()
    visit.until(lambda: visit.drawn().std() > 10)


def test_samplers_are_compared(visit):
    visit.open("Compare")
    visit.panel.get_by_label("Their values").fill("2, 3")
    visit.press("Compare")
    visit.status("Done in")
    assert visit.panel.locator("td img").count() == 6
    assert visit.panel.get_by_alt_text("ddim, 3 steps").count() == 1
    visit.panel.get_by_label("Their values").fill("many")
    visit.press("Compare")
    visit.status("The columns are numbers")
    visit.wrong.clear()  # Gradio logs the refusal


# explore and runs


def test_schedules_follow_the_choice_and_none_is_said_so(visit):
    visit.open("Explore")
    keys = visit.panel.locator(".keys > span")
    for name in ("linear", "cosine"):
        visit.panel.get_by_label(name, exact=True).uncheck()
    visit.until(lambda: keys.all_inner_texts() == ["this model's"])
    visit.panel.get_by_label("this model's", exact=True).uncheck()
    visit.panel.get_by_text("No schedule is chosen").first.wait_for()
    visit.until(lambda: keys.count() == 0)  # no old figure under a new choice
    visit.wrong.clear()
    visit.panel.get_by_label("linear", exact=True).check()
    visit.until(lambda: keys.all_inner_texts() == ["linear"])
    visit.press("Noise it")
    visit.status("Done.")
    frame = visit.panel.locator(".film img")
    first = frame.get_attribute("src")
    visit.panel.get_by_label("moment").press("End")
    visit.until(lambda: frame.get_attribute("src") != first)


def test_the_figure_shows_the_runs_that_are_ticked_however_quickly(visit):
    visit.open("Runs")
    keys = visit.panel.locator(".keys > span")
    visit.until(lambda: keys.count() == 3)
    for name in ("second", "third"):
        visit.panel.get_by_label(name, exact=True).evaluate("box => box.click()")
    visit.until(lambda: keys.all_inner_texts() == ["first"])
    visit.panel.get_by_label("first", exact=True).uncheck()
    visit.panel.get_by_text("No run is chosen").wait_for()
    assert keys.count() == 0
    for name in ("first", "second"):
        visit.panel.get_by_label(name, exact=True).evaluate("box => box.click()")
    visit.until(lambda: sorted(keys.all_inner_texts()) == ["first", "second"])
    visit.panel.get_by_text("first, step 200").wait_for()


# a phone, and everybody


@pytest.mark.parametrize("width", [1280, 390])
def test_no_tab_scrolls_sideways_or_asks_elsewhere(browser, address, visit, phone, width):
    visit = phone if width == 390 else visit
    for tab in TABS:
        visit.open(tab)
        visit.laid_out()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, tab


def test_on_a_phone_picture_and_button_are_on_the_first_screen_and_a_swipe_scrolls(phone):
    first, start = phone.panel.locator(".tile").first.bounding_box(), phone.button("Generate").bounding_box()
    assert first["y"] < 400
    assert start["y"] + start["height"] <= 844
    phone.open("Restore")
    phone.press("Restore")
    phone.status("Mean of 4 draws.")
    picture = phone.panel.get_by_alt_text("one draw", exact=True).bounding_box()
    assert phone.button("Restore").bounding_box()["y"] < picture["y"] < 800
    # a finger only scrolls until one chooses to paint
    assert phone.pad().locator("canvas").evaluate("canvas => getComputedStyle(canvas).touchAction") == "auto"
    phone.press("Mark")
    assert phone.pad().locator("canvas").evaluate("canvas => getComputedStyle(canvas).touchAction") == "none"


def test_the_wheel_scrolls_over_a_pad_and_a_picture(visit):
    visit.open("Edit")
    visit.page.evaluate("scrollTo(0, 0)")
    for picture in (visit.pad().locator("canvas"), visit.pad().locator(".pad-examples img").first):
        before = visit.page.evaluate("scrollY")
        picture.hover()
        visit.page.mouse.wheel(0, 60)
        visit.until(lambda before=before: visit.page.evaluate("scrollY") > before)


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """The checker axe-core, as npm has it."""
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    got = subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund", "axe-core@4"], cwd=folder, timeout=120)
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if got.returncode or not script.exists():
        pytest.skip("npm cannot install axe-core here")
    return script.read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_anybody_out(browser, address, axe, scheme):
    for visit in fresh(browser, address + f"?__theme={scheme}", color_scheme=scheme):
        visit.page.evaluate(axe)
        for tab in TABS:
            visit.open(tab)
            visit.laid_out()
            found = visit.page.evaluate(
                "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']}).then(r => r.violations)"
            )
            serious = [
                (rule["id"], node["html"][:200], node["failureSummary"])
                for rule in found
                if rule["impact"] in ("serious", "critical")
                for node in rule["nodes"]
            ]
            assert not serious, f"{tab}: {json.dumps(serious, indent=1)}"
