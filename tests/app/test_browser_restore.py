"""The Restore tab in a real browser."""

import numpy as np
import pytest
from visiting import marked, pixels_of

pytest.importorskip("gradio")
pytest.importorskip("playwright.sync_api")


def dimmed(visit) -> float:
    """How much a result is seen: 1 is as usual."""
    return visit.panel.locator(".result").evaluate("""result => {
        let seen = 1;
        for (let one = result; one; one = one.parentElement) seen *= getComputedStyle(one).opacity;
        return seen;
    }""")


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
    visit.status("Done: 4 draws.")
    before = pixels_of(visit.panel.get_by_alt_text("what was given"))
    assert (before[8, 4:12] == 128).all()  # lost pixels are grey
    assert before[2].std() > 20
    visit.panel.get_by_label("differences").check()
    visit.panel.get_by_text("25% of white and more").wait_for()


def test_marks_are_seen_only_where_they_count_and_an_old_result_is_told_from_the_picture(visit):
    visit.open("Restore")
    visit.choose("Damage", "a painted part is lost")
    visit.pad().locator(".pad-examples button").first.click()
    visit.until(lambda: marked(visit) > 0)
    visit.choose("Damage", "random pixels are lost")
    visit.until(lambda: marked(visit) == 0)
    assert not visit.button("Mark").is_visible()
    visit.press("Restore")
    visit.status("Done: 4 draws.")
    visit.pad().locator(".pad-examples button").nth(1).click()
    visit.panel.get_by_text("This is of the picture before.").wait_for()
    assert dimmed(visit) < 0.5
    visit.press("Restore")
    visit.until(lambda: dimmed(visit) == 1)
    visit.choose("Damage", "a painted part is lost")
    visit.until(lambda: marked(visit) > 0)


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
    visit.pad().locator(".pad-examples button").first.click()
    visit.choose("Damage", "random pixels are lost")
    visit.press("Restore")
    visit.status("Done: 4 draws.")
    assert dimmed(visit) == 1
    visit.choose("Damage", "a painted part is lost")
    visit.press("Clear")
    visit.press("Restore")
    visit.status("No pixels are marked")
    visit.button("Restore").wait_for()
    visit.panel.get_by_text("This is the result before.").wait_for()  # it is not of this press
    assert dimmed(visit) < 0.5
    assert not visit.panel.locator(".clear-status:visible").count()
    visit.wrong.clear()  # Gradio logs the refusal
