"""The Generate tab in a real browser."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from visiting import PATIENCE, Visit, fresh, shrunk

from ddpm.common.pixels import read_origin

pytest.importorskip("gradio")
pytest.importorskip("playwright.sync_api")


NOTE_STATUS = """() => {
    const status = document.querySelector(".status-block");
    window.said = [];
    const note = () => window.said.push(status.querySelector(".status").textContent.trim());
    new MutationObserver(note).observe(status, {childList: true, subtree: true});
}"""


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


def test_generate_a_class_and_go_back_to_what_was_before(visit):
    visit.choose("Class", "class 1")  # draws at once
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
    label = visit.panel.locator(".history button[aria-current]").inner_text()
    assert f"seed {seed}" in label
    assert "guidance 1.5" in label
    visit.panel.locator(".history button").last.click()
    visit.until(lambda: visit.panel.get_by_label("Seed").first.input_value() == "0")
    assert "seed=0" in visit.page.url
    visit.status("Shown again: all, ")
    assert "--seed 0" in command.inner_text()  # files and code come back with their pictures
    with visit.page.expect_download() as first:
        visit.panel.get_by_text("Grid, PNG").click()
    assert Path(first.value.path()).read_bytes() != Path(download.value.path()).read_bytes()
    visit.panel.get_by_text("Command line and Python").click()


def test_a_seed_that_is_typed_is_the_one_that_is_drawn(visit):
    visit.panel.get_by_label("A new seed at each press").check()
    seed = visit.panel.get_by_label("Seed").first
    seed.fill("4242")
    seed.press("Tab")
    visit.press("Generate")
    visit.status("Done: 16 images, seed 4242.")
    assert visit.panel.locator(".field-note").count() == 0
    visit.panel.get_by_label("A new seed at each press").check()


def test_stop_keeps_the_settings_and_what_was_drawn(visit):
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
    visit.status("Stopped at step")
    step = re.search(r"step (\d+) of 1000, seed (\d+)", visit.panel.locator(".status").inner_text())
    assert visit.panel.get_by_label("number input for Steps").input_value() == "1000"
    assert f"steps=1000&guidance=1.5&seed={step[2]}" in visit.page.url
    tile = visit.panel.locator(".tile").nth(15)
    assert (
        tile.get_attribute("data-caption")
        == f"image 15, class class 0, seed {step[2]}, stopped at step {step[1]} of 1000"
    )
    assert command.inner_text() == "Appears with the result."  # nothing gives this picture
    assert not visit.panel.get_by_text("Grid, PNG").count()
    stopped, finished = (visit.panel.locator(".history button").nth(place) for place in (0, 1))
    assert f"stopped at step {step[1]}" in stopped.inner_text()
    finished.click()
    visit.until(lambda: visit.panel.get_by_label("number input for Steps").input_value() == "2")
    assert (visit.page.url, visit.panel.locator(".tile img").first.get_attribute("src")) == before
    assert command.inner_text() == code != ""
    with visit.page.expect_download() as download:
        visit.panel.get_by_text("Grid, PNG").click()
    assert read_origin(Path(download.value.path()))["options"]["steps"] == 2
    visit.panel.get_by_text("Command line and Python").click()
    visit.number("Steps", 2)


def test_a_dropped_picture_gives_its_settings_and_is_drawn_again(visit, uploads, tmp_path):
    def save(name: str) -> np.ndarray:
        with visit.page.expect_download() as download:
            visit.panel.get_by_text("Grid, PNG").click()
        download.value.save_as(tmp_path / name)
        return np.asarray(Image.open(tmp_path / name))

    def draw() -> str:
        visit.page.evaluate("history.replaceState(null, '', '#')")
        visit.press("Generate")
        visit.until(lambda: "seed=" in visit.page.url)  # a result writes its settings there
        visit.status("Done: 16 images")
        return re.search(r"seed=(\d+)", visit.page.url)[1]

    seed, first = draw(), save("first.png")
    assert draw() != seed
    visit.drop(tmp_path / "first.png")
    visit.status("The settings of first.png. Shown again: all,")  # it is among the earlier results
    assert visit.panel.get_by_label("Seed").first.input_value() == seed
    assert draw() == seed  # and not a new one
    assert np.array_equal(save("again.png"), first)
    files = {}
    for words in ("Animation, GIF", "Array, NPZ"):
        with visit.page.expect_download() as download:
            visit.panel.get_by_text(words).click()
        files[words] = tmp_path / f"kept{Path(download.value.suggested_filename).suffix}"
        download.value.save_as(files[words])
    visit.panel.get_by_label("A new seed at each press").check()
    assert draw() != seed
    visit.page.evaluate("sessionStorage.clear()")
    visit.page.reload()  # with another address, so that nothing is kept
    visit.status("Done: 16 images")
    visit.drop(files["Animation, GIF"])
    visit.status("The settings of kept.gif. Press Generate to draw it.")
    visit.panel.get_by_text("This is the result before.").wait_for()
    assert visit.panel.get_by_label("Seed").first.input_value() == seed
    visit.number("Images", 3)
    visit.panel.get_by_label("Saved file").set_input_files(files["Array, NPZ"])
    visit.status("The settings of kept.npz.")
    visit.until(lambda: visit.panel.get_by_label("number input for Images").input_value() == "16")
    for name, said in (
        ("broken.png", "is not a picture."),
        ("good.png", "does not say how it was made."),
        ("heavy.png", "is too large: it has 21 MB, and the limit is 20 MB."),
    ):
        visit.drop(uploads / name)
        visit.status(f"{name} {said}")
    visit.panel.get_by_label("A new seed at each press").check()


def test_a_double_press_is_one_run_and_stop_leaves_the_result_before(visit):
    visit.number("Steps", 1000)
    before = visit.joined
    visit.button("Generate").dblclick()
    visit.status("of 1000")
    assert visit.joined == before + 1
    assert not visit.button("Generate").is_visible()
    visit.press("Stop")
    visit.status("Stopped")
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
    visit.status("Stopped while it waited.")
    visit.page.evaluate(NOTE_STATUS)
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
    visit.status("Stopped at step")
    visit.number("Steps", 2)
    visit.page.get_by_role("tab", name="Generate").focus()
    for key, tab in (("ArrowRight", "Restore"), ("End", "Runs"), ("ArrowRight", "Generate"), ("ArrowRight", "Restore")):
        visit.page.keyboard.press(key)
        visit.page.get_by_role("tab", name=tab, selected=True).wait_for()
    tabs = visit.page.get_by_role("tab")
    visit.until(lambda: tabs.evaluate_all("tabs => tabs.filter(tab => tab.tabIndex === 0).length") == 1)
    visit.open("Generate")


def test_images_come_about_where_they_stay(visit):
    visit.panel.locator(".tile").nth(15).wait_for()
    visit.number("Steps", 1000)
    before = visit.places(".tile, .spot")
    visit.press("Generate")
    visit.panel.locator(".drawing .spot").nth(15).wait_for()
    visit.laid_out()
    assert len(before) == 16
    assert visit.places(".tile, .spot") == before
    tile = visit.panel.locator(".spot").first
    noise = tile.evaluate("tile => getComputedStyle(tile).backgroundImage")
    visit.panel.get_by_label("what the network expects").check()
    visit.until(lambda: tile.evaluate("tile => getComputedStyle(tile).backgroundImage") != noise)
    visit.press("Stop")
    visit.status("Stopped at step")
    visit.panel.locator(".projected .tile").nth(15).wait_for()  # what the network expects is still shown
    visit.panel.get_by_label("what the network expects").uncheck()
    visit.panel.locator(".projected").wait_for(state="detached")
    visit.number("Steps", 2)


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
    other.status("Waiting for the model: number 2 in the queue")  # after the drawing that its page began with
    other.press("Stop")
    other.status("Stopped while it waited.")
    other.press("Compare")
    other.status("Waiting for the model: number")
    assert other.button("Stop").is_visible()
    visit.page.keyboard.press("Escape")
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


def test_the_moments_of_a_run_are_seen_on_its_images(visit):
    visit.number("Steps", 2)
    visit.press("Generate")
    visit.status("Done: 16 images")
    moment = visit.panel.get_by_label("moment")
    moment.press("Home")
    visit.panel.locator(".projected").wait_for()
    words = visit.panel.locator(".film-words")
    assert re.match(r"t = \d+, signal to noise", words.inner_text())
    tile = visit.panel.locator(".tile").first
    noise = tile.evaluate("tile => tile.style.background")
    visit.panel.get_by_label("what the network expects").check()
    visit.until(lambda: tile.evaluate("tile => tile.style.background") != noise)
    visit.panel.get_by_label("what the network expects").uncheck()
    assert moment.evaluate("slider => getComputedStyle(slider).outlineStyle") == "none"  # it would cut the words
    status = visit.panel.locator(".status").inner_text()
    moment.press("Home")
    visit.button("Play").evaluate("button => { button.click(); if (button.textContent === 'Pause') button.click(); }")
    visit.button("Play").wait_for()
    visit.until(lambda: visit.panel.locator(".status").inner_text() == status)
    assert words.inner_text() != "the image itself"  # it was paused at once
    visit.button("Play").click()
    visit.panel.locator(".projected").wait_for(state="detached")
    assert words.inner_text() == "the image itself"
    visit.until(lambda: visit.panel.locator(".status").inner_text() == status)


def test_a_student_draws_while_a_slider_moves(browser, quick_address):
    for visit in fresh(browser, quick_address):
        assert visit.panel.get_by_label("range slider for Steps").get_attribute("max") == "2"
        assert not visit.panel.get_by_text("needs few steps").count()
        visit.page.evaluate(NOTE_STATUS)
        images = visit.panel.locator(".tile img")
        before = images.first.get_attribute("src")
        slider = visit.panel.get_by_label("range slider for Guidance")
        slider.focus()
        slider.press("ArrowRight")
        visit.page.wait_for_function("location.hash.includes('guidance=1.1')")
        assert images.first.get_attribute("src") != before
        visit.status("Done: 16 images")
        assert "Drawing …" in visit.page.evaluate("window.said")
        visit.choose("Class", "class 1")
        visit.page.wait_for_function("location.hash.includes('label=class+1')")
        visit.panel.get_by_label("Draw at once when something changes").uncheck()
        joined = visit.joined
        slider.press("ArrowRight")
        visit.press("Generate")
        visit.page.wait_for_function("location.hash.includes('guidance=1.2')")
        assert visit.joined <= joined + 2  # the slider asks once, and nothing is drawn


def test_an_address_of_another_model_gives_what_this_one_can(browser, address):
    for visit in fresh(browser, f"{address}#steps=123456&number=3&label=nobody&sampler=magic&seed=-2"):
        visit.status("Done: 3 images, seed 0.")
        steps = visit.panel.get_by_label("number input for Steps")
        assert steps.input_value() == visit.panel.get_by_label("range slider for Steps").get_attribute("max")


def test_images_that_follow_a_slider_stay_in_sight_on_a_phone(browser, quick_address):
    for visit in fresh(browser, quick_address, 390, has_touch=True, is_mobile=True):
        slider = visit.panel.get_by_label("range slider for Steps")
        visit.page.evaluate("scrollTo(0, 400)")
        visit.until(lambda visit=visit: 0 <= visit.places(".tile")[0][1] < 40)
        tiles, [start] = visit.places(".tile"), visit.places(".start")
        assert tiles[-1][1] + tiles[-1][3] < slider.bounding_box()["y"] < start[1]
        covered = visit.panel.locator(".tile").evaluate_all("""tiles => tiles.filter((tile) => {
            const box = tile.getBoundingClientRect();
            return [4, box.width / 2, box.width - 4].some((x) => [4, box.height / 2, box.height - 4].some((y) =>
                !tile.contains(document.elementFromPoint(box.x + x, box.y + y))));
        }).length""")
        assert covered == 0  # by what scrolls below them
        assert start[1] + start[3] <= 844
