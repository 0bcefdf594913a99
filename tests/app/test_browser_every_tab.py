"""What holds for every tab in a real browser, at the width of a desk and of a phone."""

import json
import shutil
import subprocess

import pytest
from PIL import Image
from visiting import TABS, fresh

pytest.importorskip("gradio")
pytest.importorskip("playwright.sync_api")


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
        visit.status("Shown again:")  # what was drawn before
        assert "/models/" not in visit.page.url
        visit.wrong.clear()  # Gradio logs that its connection ends when one leaves a page


def test_a_number_that_is_not_possible_is_said_beside_its_field(visit):
    for label, typed, said in (("Images", 1000, "from 1 to 64. 1000 became 64."), ("Steps", 0, "0 became 1.")):
        visit.number(label, typed)
        field = visit.page.get_by_label(f"number input for {label}")
        visit.panel.locator(".block", has=field).last.get_by_text(said).wait_for()
    seed, dice = visit.panel.get_by_label("Seed").first, visit.places(".seed button")
    seed.fill("-4")
    visit.panel.get_by_text("A whole number from 0 to 9007199254740991.").wait_for()  # before one leaves it
    assert visit.places(".seed button") == dice
    seed.press("Tab")
    visit.panel.get_by_text("A whole number from 0 to 9007199254740991. -4 became 0.").wait_for()
    assert seed.input_value() == "0"
    seed.fill("1e20")
    seed.press("Tab")
    visit.panel.get_by_text("1e20 became 9007199254740991.").wait_for()
    seed.fill("4")
    visit.panel.get_by_text("9007199254740991.").wait_for(state="detached")
    steps = visit.panel.get_by_label("number input for Steps")
    steps.fill("1e2")
    steps.press("Tab")
    visit.until(lambda: steps.input_value() == "100")
    field = visit.panel.get_by_label("number input for Images")
    field.fill("1.5")
    visit.panel.get_by_text("A whole number from 1 to 64.").wait_for()
    field.press("Tab")
    visit.panel.get_by_text("A whole number from 1 to 64. 1.5 became 2.").wait_for()
    field.focus()
    field.press("Control+a")
    field.press_sequentially("e")  # of "abc", Chromium takes no letter but this
    visit.panel.get_by_text("This is not a number.").wait_for()
    field.press("Tab")
    visit.panel.get_by_text("This is not a number. 2 is kept.").wait_for()
    assert field.input_value() == "2"
    visit.number("Images", 16)
    visit.number("Steps", 2)
    visit.until(lambda: not visit.panel.locator(".field-note").count())


def test_a_reload_keeps_the_settings_of_every_tab_and_the_open_one(browser, address):
    for visit in fresh(browser, address):
        visit.open("Restore")
        visit.choose("Damage", "blur")
        visit.panel.get_by_label("number input for Blur").first.wait_for()
        visit.number("Blur", 3)
        visit.open("Compare")
        visit.choose("Columns", "guidance")
        visit.panel.get_by_label("Steps").first.wait_for()
        visit.panel.get_by_label("Their values").fill("1, 3")
        visit.until(lambda visit=visit: "1, 3" in visit.page.evaluate("JSON.stringify(sessionStorage)"))
        visit.page.reload()
        visit.page.get_by_role("tab", name="Compare", selected=True).wait_for()
        visit.until(lambda visit=visit: visit.panel.get_by_label("Their values").input_value() == "1, 3")
        visit.panel.get_by_label("Steps").first.wait_for()
        visit.open("Restore")
        visit.panel.get_by_label("number input for Blur").first.wait_for()
        assert visit.panel.get_by_label("number input for Blur").input_value() == "3"
        visit.wrong.clear()  # Gradio logs that its connection ends when one leaves a page


def test_an_open_page_goes_on_when_its_server_is_back(browser, plain_model, tmp_path, port):
    from ddpm.app.page import build, launch

    first = build(plain_model, "model", tmp_path)
    address = launch(first, "127.0.0.1", port, block=False)
    for visit in fresh(browser, f"{address}#steps=3&seed=7&number=5"):
        visit.status("Done: 5 images, seed 7.")
        first.close()
        visit.page.get_by_text("The server was stopped. Start it again in its terminal").wait_for()
        again = build(plain_model, "model", tmp_path)
        launch(again, "127.0.0.1", port, block=False)
        visit.page.get_by_text("The server was stopped. Start it again in its terminal").wait_for(state="detached")
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
        assert not visit.panel.get_by_label("Quantity").is_visible()


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
    phone.status("Done: 4 draws.")
    picture = phone.panel.get_by_alt_text("one draw", exact=True).bounding_box()
    assert phone.button("Restore").bounding_box()["y"] < picture["y"] < 800
    phone.pad().get_by_role("button", name="Scroll", pressed=True).wait_for()
    # a finger only scrolls until one chooses to paint
    assert phone.pad().locator("canvas").evaluate("canvas => getComputedStyle(canvas).touchAction") == "auto"
    phone.press("Mark")
    assert phone.pad().locator("canvas").evaluate("canvas => getComputedStyle(canvas).touchAction") == "none"


def test_a_run_is_told_whole_on_a_phone(phone):
    phone.open("Runs")
    phone.panel.locator("[data-unit='images a second']").first.wait_for()
    assert phone.panel.locator(".scroll").evaluate("box => box.scrollWidth <= box.clientWidth")


def test_a_tap_takes_the_brush_on_a_phone(phone):
    phone.open("Edit")
    canvas = phone.pad().locator("canvas")
    hint = phone.pad().get_by_text("Tap, then paint")
    top, bottom = canvas.bounding_box()["y"], hint.bounding_box()["y"]  # where the finger goes
    assert top < bottom < top + canvas.bounding_box()["height"]
    canvas.tap()
    hint.wait_for(state="hidden")
    phone.pad().get_by_role("button", name="Draw", pressed=True).wait_for()
    phone.pad().get_by_role("button", name="Clear").tap()
    phone.pad().get_by_text("A swipe paints.").wait_for()
    phone.pad().get_by_role("button", name="Draw", pressed=True).tap()
    phone.pad().get_by_role("button", name="Draw", pressed=True).wait_for()  # it is not put down
    canvas.tap()
    phone.until(lambda: phone.drawn().std() > 0)
    phone.pad().get_by_role("button", name="Scroll").tap()
    phone.pad().get_by_role("button", name="Scroll", pressed=True).wait_for()
    assert canvas.evaluate("canvas => getComputedStyle(canvas).touchAction") == "auto"


def test_a_finger_meets_everything_on_a_phone(phone):
    for tab in TABS:
        phone.open(tab)
        phone.laid_out()
        small = phone.panel.evaluate("""panel => {
            const whole = "label:has([type=checkbox], [type=radio]), .wrap:has(> .wrap-inner)";
            return [...panel.querySelectorAll("a[href], button, select, input, textarea")].filter((e) => e.offsetParent)
                .filter((e) => (e.closest(whole) ?? e).getBoundingClientRect().height < 43.5).map((e) => e.outerHTML);
        }""")
        assert small == [], tab
    phone.open("Generate")
    phone.number("Steps", 2)
    phone.press("Generate")
    phone.until(lambda: len(phone.places(".history button")) == 2)
    assert max(left + width for left, _, width, _ in phone.places(".history button")) <= 390
    phone.panel.get_by_text("Open a saved file").wait_for()


def test_every_tab_can_be_seen_and_nothing_is_read_out_that_means_nothing(phone):
    for tab in TABS:
        assert phone.page.get_by_role("tab", name=tab, exact=True).is_visible()
    phone.number("Steps", 2)
    phone.press("Generate")
    phone.until(lambda: "steps=2&" in phone.page.url)
    assert "common." not in phone.page.evaluate("document.body.textContent")


def test_the_wheel_scrolls_over_a_pad_and_a_picture(visit):
    visit.page.set_viewport_size({"width": 1280, "height": 500})  # in which no tab fits
    visit.open("Edit")
    for picture in (visit.pad().locator("canvas"), visit.pad().locator(".pad-examples img").first):
        visit.page.evaluate("scrollTo(0, 0)")
        picture.hover()
        before = visit.page.evaluate("scrollY")
        visit.page.mouse.wheel(0, 60)
        visit.until(lambda before=before: visit.page.evaluate("scrollY") > before)
    visit.page.set_viewport_size({"width": 1280, "height": 900})


def test_a_page_that_opens_says_so(browser, address):
    page = browser.new_page()
    page.route("**/assets/**", lambda route: route.abort())
    page.goto(address, wait_until="commit")
    page.wait_for_function("getComputedStyle(document.body, '::before').content.includes('Opening the page')")
    page.close()


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
            for ticked, image in visit.panel.locator("[type=checkbox]:visible").evaluate_all(
                "boxes => boxes.map(box => [box.checked, getComputedStyle(box).backgroundImage])"
            ):
                assert ("svg" in image) == ticked, tab  # a tick is seen
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


def test_a_reload_in_the_middle_of_a_drawing_keeps_earlier_results(browser, address):
    for visit in fresh(browser, address):
        visit.number("Steps", 2)
        visit.press("Generate")
        visit.panel.locator(".history button").nth(1).wait_for()
        labels = visit.panel.locator(".history button").all_inner_texts()
        visit.number("Steps", 1000)
        visit.panel.get_by_label("A new seed at each press").uncheck()
        visit.press("Generate")
        visit.status("of 1000")
        visit.page.reload()
        visit.status("Shown again: all, 2 steps")  # and nothing is drawn unasked
        visit.panel.locator(".history button").nth(1).wait_for()
        assert visit.panel.locator(".history button").all_inner_texts() == labels
        assert not visit.panel.get_by_label("A new seed at each press").is_checked()
        visit.panel.locator(".history button").last.click()
        visit.status("Shown again:")
        with visit.page.expect_download() as download:
            visit.panel.get_by_text("Grid, PNG").click()
        assert Image.open(download.value.path()).size == (74, 74)
        visit.wrong.clear()  # Gradio logs that its connection ends when one leaves a page


def test_a_server_that_is_stopped_in_the_middle_of_a_drawing_is_said_so(browser, served_model, tmp_path, port):
    from ddpm.app.page import build, launch

    page = build(served_model, "model", tmp_path)
    for visit in fresh(browser, launch(page, "127.0.0.1", port, block=False)):
        visit.number("Steps", 1000)
        visit.press("Generate")
        visit.status("of 1000")
        page.close()
        visit.status("The server was stopped. Start it again in its terminal, with the same command.")
        visit.press("Generate")
        visit.status("Waiting for the model")
        visit.status("The server was stopped. Start it again in its terminal, with the same command.")
        assert visit.button("Generate").is_visible()
        visit.wrong.clear()  # the browser logs that nobody answers
