"""`ddpm data`: the facts printed, the sheet drawn, and every mistake one line."""

import numpy as np
import pytest
from PIL import Image

from ddpm.cli import run


@pytest.fixture
def folder(tmp_path):
    """Two classes of 20x16 pictures, red cats and blue dogs, and one broken file."""
    for kind, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (20, 16), colour).save(tmp_path / "set" / kind / f"{number:02}.png")
    (tmp_path / "set" / "dog" / "bad.png").write_bytes(b"")
    return tmp_path / "set"


def test_data_prints_facts_and_draws_a_sheet(folder, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert run(["data", str(folder), "--image-size", "16", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for fact in ("24", "20x16: 24", "16x16, 3 channels", "2: cat 12, dog 12", "skipped 1 file of", "dog/bad.png: "):
        assert fact in printed
    sheet = np.array(Image.open(out))
    assert sheet.shape == (2 * 18 + 2, 10 * 18 + 2, 3)
    assert (sheet[10, 10::18] == [255, 0, 0]).all()
    assert (sheet[28, 10::18] == [0, 0, 255]).all()


def test_data_shows_digits_as_stored(tmp_path, capsys):
    assert run(["data", "digits", "--out", str(tmp_path / "x.png")]) == 0
    printed = capsys.readouterr().out
    assert "10,000" in printed
    assert "28x28, 1 channel\n" in printed


def test_data_keeps_an_existing_sheet(tmp_path, capsys):
    out = tmp_path / "x.png"
    out.write_bytes(b"mine")
    assert run(["data", "digits", "--out", str(out)]) == 2
    assert "exists: give another --out" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert run(["data", "digits", "--out", str(out), "--overwrite"]) == 0


def test_data_replaces_its_default_sheet_and_never_reads_it(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "cat").rename(folder / "a")  # the classes are a and dog, with a sheet beside them or not
    for _ in range(2):
        assert run(["data", ".", "--image-size", "16"]) == 0
        assert "2: a 12, dog 12" in capsys.readouterr().out
    assert (folder / "contact_sheet.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "did you mean digits?"),
        (["digits", "--fit", "stretch"], "'crop' or 'pad'"),
        (["digits", "--image-size", "0"], "--image-size"),
        (["digits", "--image-size", "7"], "--image-size"),
        (["digits", "--image-size", "5000"], "less than or equal to 4096"),
        (["digits", "--channels", "0"], "--channels"),
        (["digits", "--channels", "9"], "--channels"),
        (["."], "holds no images"),
    ],
)
def test_data_reports_mistakes_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddpm: error: ")
    assert error.count("\n") == 1
    assert message in error
