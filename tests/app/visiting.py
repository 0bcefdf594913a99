"""Visits to the page in a real browser, and what is read from its pictures."""

import base64
import io
import re
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

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
        self.page.get_by_role("tab", name=tab, exact=True).click()
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
        """Choose from a list, or from buttons side by side."""
        buttons = self.panel.get_by_role("radiogroup", name=label).get_by_role("radio", name=option, exact=True)
        if buttons.count():
            buttons.check()
        else:
            self.panel.get_by_role("combobox", name=label).first.select_option(option)

    def number(self, label: str, value: int) -> None:
        field = self.panel.get_by_label(f"number input for {label}").first
        field.fill(str(value))
        field.press("Tab")

    def unfold(self, words: str) -> None:
        """Open the first part of the open tab that has this name, unless it is open."""
        head = self.panel.locator(".label-wrap", has_text=words).first
        if head.get_attribute("aria-expanded") != "true" and "open" not in (head.get_attribute("class") or ""):
            head.click()

    def status(self, text: str, place: int = 0) -> None:
        """Wait until the status of the open tab says a text."""
        self.panel.locator(".status").nth(place).filter(has_text=text).wait_for()

    def places(self, selector: str) -> list[list[float]]:
        """Left, top, width and height of the visible elements of the open tab, all of one moment."""
        return self.panel.evaluate(
            """(panel, selector) => [...panel.querySelectorAll(selector)].filter((e) => e.offsetParent)
                .map((e) => e.getBoundingClientRect()).map((box) => [box.x, box.y, box.width, box.height])""",
            selector,
        )

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


def fresh(browser, address: str, width: int = 1280, **options) -> Iterator[Visit]:
    visit = Visit(browser, address, width, **options)
    yield visit
    visit.page.close()
    assert visit.wrong == []


def bytes_of(address: str) -> bytes:
    return base64.b64decode(address.partition(",")[2])


def pixels_of(image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(bytes_of(image.get_attribute("src")))).convert("L"))


def shrunk(drawn: np.ndarray) -> np.ndarray:
    """A pad at the model's size."""
    zoom = len(drawn) // 16
    return drawn[zoom // 2 :: zoom, zoom // 2 :: zoom]


def marked(visit) -> int:
    """Pixels of a pad that have the colour of marks."""
    data = visit.pad().locator("canvas").evaluate("canvas => canvas.toDataURL()")
    red, _, blue = np.moveaxis(np.asarray(Image.open(io.BytesIO(bytes_of(data))).convert("RGB"), dtype=int), 2, 0)
    return int((red - blue > 60).sum())
