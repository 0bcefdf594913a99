"""The page in a real browser: what people do with it, at the width of a desk and of a phone."""

import io
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
TABS = ["Generate", "Restore", "Edit", "Explore", "Runs"]
PATIENCE = 60_000  # milliseconds; nothing here takes one, unless the machine is busy
BRUSH = (213, 94, 0)  # the colour it paints a mask with


@pytest.fixture(scope="module")
def browser() -> Iterator:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        # the mask is painted with WebGL, which here has no graphics card
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


class Visit:
    """One visit to the page, which notes whatever goes wrong."""

    def __init__(self, browser, address: str, width: int):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(PATIENCE)
        self.wrong: list[str] = []
        self.page.on("console", lambda message: message.type == "error" and self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url, address))
        self.page.goto(address)
        self.page.get_by_role("tab", name="Generate").wait_for()

    def _asked(self, url: str, address: str) -> None:
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

    def press(self, name: str) -> None:
        self.panel.get_by_role("button", name=name, exact=True).click()

    def upload(self, path, place: int = 0) -> None:
        """Choose a file and wait until the page has it: whatever is pressed before that is told of none."""
        field = self.panel.locator(".upload").nth(place)
        with self.page.expect_response(lambda answer: "/upload?" in answer.url and answer.request.method == "POST"):
            field.locator("input[type=file]").set_input_files(path)
        field.locator("img").wait_for(state="attached")  # one that is broken is never visible

    def choose(self, label: str, option: str) -> None:
        self.panel.get_by_label(label).first.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def says(self, text: str) -> None:
        self.page.get_by_text(text).filter(visible=True).first.wait_for()

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what no element tells."""
        for _ in range(PATIENCE // 100):
            if holds():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError("it never came about")

    def pixels(self, x: float, y: float, width: float, height: float) -> np.ndarray:
        """What is seen there, uint8 (H, W, 3)."""
        clip = {"x": x, "y": y, "width": width, "height": height}
        return np.asarray(Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB"))


@pytest.fixture
def visit(browser, address) -> Iterator[Visit]:
    visit = Visit(browser, address, 1280)
    yield visit
    visit.page.close()
    assert visit.wrong == []


@pytest.mark.parametrize("width", [1280, 390])
def test_no_tab_scrolls_sideways_or_asks_elsewhere(browser, address, width):
    visit = Visit(browser, address, width)
    for tab in TABS:
        visit.open(tab)
        visit.page.wait_for_timeout(500)  # what is laid out late may not be too wide either
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, tab
    visit.says("first, step 200")  # the run is there, and its grids
    visit.page.close()
    assert visit.wrong == []


def test_explore_and_interpolate_on_a_phone(browser, address, uploads):
    visit = Visit(browser, address, 390)
    visit.open("Explore")
    drawing = visit.panel.locator(".figure svg").filter(visible=True)
    drawing.wait_for()  # one, and no other
    box = drawing.bounding_box()
    assert box["width"] < 390 < box["height"]
    visit.upload(uploads / "good.png")
    visit.press("Noise it")
    visit.panel.locator("img[src*='forward.gif']").wait_for()
    visit.open("Edit")
    visit.upload(uploads / "good.png", 1)
    visit.upload(uploads / "mask.png", 2)
    visit.press("Interpolate")
    visit.panel.locator("img").nth(2).wait_for()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    visit.page.close()
    assert visit.wrong == []


def test_a_model_without_classes_is_asked_for_none(browser, plain_address):
    visit = Visit(browser, plain_address, 1280)
    assert not visit.panel.get_by_label("Class").filter(visible=True).count()
    visit.press("Generate")
    visit.says("Done: 16 images, seed 0.")
    visit.open("Runs")
    visit.says("Start one with")
    visit.page.close()
    assert visit.wrong == []


def test_generate_a_class_and_cancel(visit):
    visit.choose("Class", "class 1")
    visit.press("Generate")
    visit.says("Done: 16 images, seed 0.")
    assert "--labels 'class 1'" in visit.panel.locator(".cm-content").first.inner_text()
    with visit.page.expect_download() as download:
        visit.panel.get_by_text("Grid, PNG").click()
    assert download.value.suggested_filename == "samples.png"

    steps = visit.panel.get_by_label("number input for Steps")
    steps.fill("1000")
    steps.press("Tab")
    visit.press("Generate")
    visit.says("of 1000")
    visit.press("Cancel")
    visit.says("Cancelled.")
    steps.fill("2")
    steps.press("Tab")
    visit.press("Generate")  # the model is free again
    visit.says("Done: 16 images")


def test_restore_what_is_painted_over(visit, uploads):
    visit.open("Restore")
    visit.upload(uploads / "good.png")
    visit.says("Ready.")
    mask = visit.page.locator("#mask")
    mask.get_by_label("Brush").first.click()
    canvas = mask.locator("canvas").first
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y, across = box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5, box["width"] * 0.2
    visit.until(lambda: visit.pixels(x, y, across, 20).std() > 5)  # the upload, which is noise, is under the brush
    visit.page.mouse.move(x, y)
    visit.page.mouse.down()
    visit.page.mouse.move(x + across, y, steps=6)
    visit.page.mouse.up()
    visit.until(lambda: bool((visit.pixels(x + across / 4, y, 1, 1) == BRUSH).all()))
    visit.press("Restore")
    visit.says("Mean of 4 draws.")


def test_a_broken_upload_is_refused_in_words_and_the_next_is_edited(visit, uploads):
    visit.open("Edit")
    visit.upload(uploads / "broken.png")
    visit.press("Edit")
    visit.says("it is not an image")
    visit.panel.get_by_label("Remove Image").or_(visit.panel.get_by_label("Clear")).first.click()
    visit.upload(uploads / "good.png")
    visit.press("Edit")
    visit.says("Strength 0.4: PSNR")
