"""The Edit tab and its pads in a real browser."""

import numpy as np
import pytest
import torch
from PIL import Image
from visiting import fresh, pixels_of, shrunk

from ddpm.common.pixels import save_grid, to_uint8

pytest.importorskip("gradio")
pytest.importorskip("playwright.sync_api")


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
    visit.unfold("Guidance, steps and seed")
    visit.number("Steps", 4)
    visit.pad().get_by_role("button", name="Example 1 (class 0)").click()
    visit.press("Edit")
    visit.status("Strength 0.5: PSNR")
    visit.panel.get_by_label("translate it to another class").check()
    known = visit.panel.get_by_role("combobox", name="Class that it shows now")
    visit.until(lambda: known.input_value() == "class 0")  # the model drew the example as such
    visit.pad().get_by_role("button", name="Example 2 (class 1)").click()
    visit.until(lambda: known.input_value() == "class 1")
    visit.pad().get_by_role("button", name="Clear").click()
    visit.until(lambda: known.input_value() == "no class")
    visit.pad().get_by_role("button", name="Example 1 (class 0)").click()
    visit.until(lambda: known.input_value() == "class 0")
    visit.choose("Translate to", "class 1")
    visit.press("Edit")
    visit.status("Translated to class 1.")
    assert "PSNR" not in visit.panel.locator(".status").first.inner_text()  # it is not meant to be close
    visit.number("Steps", 2)
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


def test_pictures_of_a_run_that_is_stopped_stay(browser, address):
    for visit in fresh(browser, address):
        visit.open("Edit")
        visit.unfold("Guidance, steps and seed")
        visit.number("Steps", 250)
        visit.panel.get_by_label("try every strength").check()
        visit.press("Edit")
        visit.panel.locator(".moving figure").first.wait_for()
        visit.press("Stop")
        visit.status("Stopped at step")
        visit.panel.locator(".moving figure").first.wait_for()
        visit.panel.get_by_label("noise it and remove").check()
        visit.number("Steps", 2)
        visit.press("Edit")
        visit.status("Strength 0.5: PSNR")
        visit.number("Steps", 250)
        visit.press("Edit")
        visit.panel.locator(".moving figure").first.wait_for()
        visit.press("Stop")
        visit.status("Stopped at step")
        visit.panel.locator(".moving figure").first.wait_for()
        assert not visit.panel.get_by_text("Result, PNG").filter(visible=True).count()
        visit.press("Show the result before")
        visit.panel.get_by_alt_text("after", exact=True).wait_for()
        visit.panel.get_by_text("Result, PNG").filter(visible=True).wait_for()


def test_examples_stay_when_other_pictures_are_offered_while_they_load(visit):
    shown = visit.page.evaluate("""async () => {
        const paint = (colour) => {
            const canvas = document.createElement("canvas");
            canvas.width = canvas.height = 16;
            const context = canvas.getContext("2d");
            context.fillStyle = colour;
            context.fillRect(0, 0, 16, 16);
            return { image: canvas.toDataURL() };
        };
        const place = document.createElement("div"), own = [paint("black"), paint("white")];
        const options = { name: "try", label: "Try", width: 16, height: 16, examples: own, filled: 0 };
        ddpm.pad(place, {}, () => {}, {}, options);
        window.ddpmPad.pads.try.offer([paint("red")]);
        await ddpm.ready();
        const images = () => [...place.querySelectorAll(".pad-examples img")].map((image) => image.src);
        const before = images();
        place.querySelectorAll("button").forEach((button) => button.textContent === "Clear" && button.click());
        delete window.ddpmPad.pads.try;
        return [own.map((one) => one.image), before, images()];
    }""")
    assert shown[0] == shown[1] == shown[2]


def test_a_grid_offers_its_images(visit, tmp_path):
    many = torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(1)) - 0.5
    save_grid(many, tmp_path / "many.png")
    visit.open("Edit")
    visit.upload(tmp_path / "many.png", "This is a grid of 16 images.")
    box, last = (visit.pad().locator(name).last.bounding_box() for name in (".pad-examples", ".pad-examples button"))
    assert last["y"] + last["height"] <= box["y"] + box["height"]
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    save_grid(images, tmp_path / "grid.png")
    visit.open("Edit")
    visit.upload(tmp_path / "grid.png", "This is a grid of 3 images. Choose one of them.")
    visit.pad().get_by_label("Image 2").click()
    visit.until(lambda: np.array_equal(shrunk(visit.drawn()), to_uint8(images)[1, 0]))
