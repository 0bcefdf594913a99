"""Names and links: no file is read but those of the set, and every name can be printed."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from data_cases import opened
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.data.images import BrokenFile
from ddpm.data.sources import find_stored


def test_folder_with_links_reads_no_folder_twice(tmp_path, image_folder):
    folder = image_folder(["inside.png"])
    Image.new("RGB", (16, 16)).save(tmp_path / "other.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (16, 16)).save(elsewhere / "y.png")
    (folder / "out.png").symlink_to(tmp_path / "other.png")
    (folder / "up.png").symlink_to("../other.png")
    (folder / "chain.png").symlink_to(folder / "out.png")
    (folder / "gone.png").symlink_to(folder / "nothing")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "dir").symlink_to(elsewhere)
    (folder / "loop").symlink_to(folder)
    (folder / "parent").symlink_to(tmp_path)
    (elsewhere / "back").symlink_to(folder)
    (folder / "same.png").symlink_to(folder / "inside.png")
    dataset = opened(folder)
    assert len(dataset) == 6  # inside.png and four links to files, and dir/y.png
    assert dict(dataset.report.skipped) == {
        "gone.png": "it is a link to nothing",
        "circle.png": "it is a link to nothing",
        "device.png": "it is not a regular file",
        "loop": "it is read already, under another name",
        "parent": "it is read already, under another name",
        "dir/back": "it is read already, under another name",
    }


def test_file_that_becomes_a_link_after_it_was_listed_is_not_read(tmp_path, image_folder):
    folder = image_folder(["a.png", "b.png"])
    Image.new("RGB", (16, 16)).save(tmp_path / "secret.png")
    listed = find_stored(str(folder))
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(BrokenFile, match="leaves the folder"):
        listed.read(0)


def test_folder_may_itself_be_a_link(tmp_path, image_folder):
    (tmp_path / "link").symlink_to(image_folder(["a.png"]))
    assert len(opened(tmp_path / "link")) == 1


def test_folder_skips_pipes(image_folder):
    folder = image_folder(["a.png"])
    os.mkfifo(folder / "pipe.png")
    dataset = opened(folder)
    assert dataset.report.skipped == [("pipe.png", "it is not a regular file")]


def test_archive_skips_names_and_links_that_lead_out(tmp_path, encode, pixels):
    data = encode(pixels())
    names = ["../up.png", "/etc/abs.png", "a/../../b.png", "a\\..\\win.png", "good.png"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, data)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for kind, name in ((tarfile.SYMTYPE, "sym.png"), (tarfile.LNKTYPE, "hard.png"), (tarfile.FIFOTYPE, "fifo.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    before = {path for path in tmp_path.parent.rglob("*") if path.suffix == ".png"}
    for source, skipped in ((tmp_path / "x.zip", 4), (tmp_path / "x.tar", 7)):
        dataset = opened(source)
        assert len(dataset) == 1
        assert len(dataset.report.skipped) == skipped
    assert {path for path in tmp_path.parent.rglob("*") if path.suffix == ".png"} == before


def test_parquet_does_not_follow_paths_in_its_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    Image.new("RGB", (16, 16)).save(tmp_path / "secret.png")
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    for streaming in (False, True):
        with pytest.raises(UserError, match=r"the row holds no image|holds no images"):
            opened(tmp_path / "x.parquet", streaming=streaming).draw(0, range(1))


def test_class_names_are_printable(tmp_path):
    folder = os.fsencode(tmp_path / "set")
    for name in (b"\xff\xfe", b"a\x1b[31mred\nline"):
        os.makedirs(os.path.join(folder, name))
        Image.new("RGB", (16, 16)).save(Path(os.fsdecode(os.path.join(folder, name, b"x.png"))))
    dataset = opened(tmp_path / "set", labels=True)
    assert len(dataset) == 2
    for name in dataset.class_names:
        assert name.isprintable()
        name.encode()


def test_class_names_that_are_not_utf8_stay_distinct(tmp_path):
    """Köln and Käln as Latin-1 has them, and names of controls alone."""
    names = [b"K\xf6ln", b"K\xe4ln", b"a\x1b", b"a\x07", "a\u202e".encode()]
    for name in names:
        os.makedirs(folder := os.path.join(os.fsencode(tmp_path), b"set", name))
        Image.new("RGB", (16, 16)).save(Path(os.fsdecode(os.path.join(folder, b"x.png"))))
    dataset = opened(tmp_path / "set", labels=True)
    assert dataset.class_names == [r"K\xe4ln", r"K\xf6ln", r"a\u202e", r"a\x07", r"a\x1b"]
    assert sorted(dataset.labels.tolist()) == [0, 1, 2, 3, 4]


def test_class_names_keep_spaces_and_joiners(image_folder):
    names = ["東京\u3000駅", "Pommes\u00a0frites", "می\u200cخواهم", "\U0001f469\u200d\U0001f33e"]
    dataset = opened(image_folder([f"{name}/1.png" for name in names]), labels=True)
    assert dataset.class_names == sorted(names)
