"""The Compare, Explore and Runs tabs in a real browser."""

import re
import zipfile
from pathlib import Path

import pytest
from visiting import fresh

from ddpm.common.pixels import read_origin

pytest.importorskip("gradio")
pytest.importorskip("playwright.sync_api")


def test_samplers_are_compared(visit):
    visit.open("Compare")
    visit.panel.get_by_label("Their values").fill("2, 3")
    visit.press("Compare")
    visit.panel.get_by_role("columnheader", name="3 steps").wait_for()
    [before] = visit.places("table")
    visit.status("Done in")
    visit.panel.locator("td img").nth(5).wait_for()
    [after] = visit.places("table")
    assert (after[2], round(after[3])) == (before[2], round(before[3]))
    assert visit.panel.locator("td img").count() == 6
    visit.panel.get_by_label("Enlarge ddim, 3 steps").click()
    dialog = visit.page.get_by_role("dialog")
    with visit.page.expect_download() as download:
        dialog.get_by_role("link", name="Save").click()
    assert download.value.suggested_filename == "ddim-3.png"
    assert read_origin(Path(download.value.path()))["options"]["sampler"] == "ddim"
    dialog.get_by_role("button", name="Close").click()
    with visit.page.expect_download() as download:
        visit.panel.get_by_text("All pictures, ZIP").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert len(archive.namelist()) == 6
    visit.panel.get_by_label("Their values").fill("1")
    visit.press("Compare")
    visit.panel.get_by_role("columnheader", name="1 step", exact=True).wait_for()
    visit.status("Done in")
    visit.panel.get_by_label("Their values").fill("many")
    visit.press("Compare")
    visit.status("The columns are numbers")
    visit.wrong.clear()  # Gradio logs the refusal


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


def test_a_training_is_started_and_stopped(browser, switching, stub_trainer, monkeypatch):
    address, folder = switching
    for visit in fresh(browser, address):
        visit.open("Runs")
        visit.panel.get_by_text("Train a model").click()
        visit.panel.get_by_label("Name of the run").fill("new/run")
        visit.press("Start training")
        visit.status("needs a name")
        visit.wrong.clear()  # Gradio logs the refusal
        minutes = visit.panel.get_by_label("Minutes")
        for typed, became in (("0.5", "1"), ("-3", "1"), ("1e12", "10080")):
            minutes.fill(typed)
            visit.panel.get_by_text("A number from 1 to 10080.").wait_for()
            minutes.press("Tab")
            visit.panel.get_by_text(f"{typed} became {became}.").wait_for()
        minutes.fill("5")
        with monkeypatch.context() as patch:
            patch.setattr("ddpm.app.training.sys.executable", "/bin/false")
            visit.panel.get_by_label("Name of the run").fill("bad")
            visit.press("Start training")
            visit.panel.get_by_text("bad: ended").wait_for()
        visit.press("Dismiss")
        visit.panel.get_by_text("bad: ended").wait_for(state="detached")
        visit.panel.get_by_label("Name of the run").fill("new")
        visit.press("Start training")
        visit.status("Started new.")
        visit.panel.get_by_label("new", exact=True).check()
        visit.panel.get_by_role("row", name=re.compile("^new training")).get_by_role("button", name="Stop").click()
        visit.panel.get_by_role("row", name=re.compile("^new stopped")).wait_for()
    assert "train digits" in (folder / "runs" / "new.log").read_text()
