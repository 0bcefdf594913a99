"""What is not there: the colour behind transparency, the class of a sample, and the order of another seed."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from ddpm.data.archives import scan_tar
from ddpm.data.config import DataConfig
from ddpm.data.images import in_mode
from ddpm.data.stream import StreamDataset, TarShards

COLOUR, ALPHA = (200, 40, 90), (0, 64, 200, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("background", [255, 0, 77])
def test_transparent_pixels_show_the_background_in_grey_as_in_colour(mode, channels, background):
    picture = Image.new("RGBA", (len(ALPHA), 1))
    for x, alpha in enumerate(ALPHA):
        picture.putpixel((x, 0), (*COLOUR, alpha))
    if mode == "P":  # one colour of a palette is transparent
        picture = Image.new("P", (len(ALPHA), 1), 1)
        picture.putpalette([9, 9, 9, *COLOUR])
        picture.putpixel((0, 0), 0)
        picture.info["transparency"] = 0
    elif mode == "LA":
        picture = picture.convert("LA")
    shown = {"RGBA": COLOUR, "P": COLOUR, "LA": (picture.getpixel((3, 0))[0],) * 3 if mode == "LA" else None}[mode]
    opacity = np.array([0, 255, 255, 255] if mode == "P" else ALPHA) / 255
    found = np.array(in_mode(picture, channels, background)).astype(float).reshape(len(ALPHA), -1)
    if channels in (2, 4):
        np.testing.assert_array_equal(found[:, -1], 255 * opacity)
        return
    mixed = opacity[:, None] * np.array(shown) + (1 - opacity[:, None]) * background
    expected = mixed if channels == 3 else mixed @ [[0.299], [0.587], [0.114]]
    np.testing.assert_allclose(found, expected, atol=1.5)


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(level):
    buffer = io.BytesIO()
    Image.new("L", (8, 8), level).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_sample_without_a_class_does_not_take_its_neighbours(tmp_path):
    members = [
        ("a.png", png(0)),
        ("a.cls", b"7"),
        ("b.png", png(1)),
        ("c.cls", b"4"),
        ("c.png", png(2)),
        ("d.png", png(3)),
    ]
    found = list(scan_tar(shard(tmp_path / "s.tar", members), lambda name, reason: pytest.fail(reason)))
    assert [(image.name, image.label) for image in found] == [
        ("a.png", 7),
        ("b.png", None),
        ("c.png", 4),
        ("d.png", None),
    ]


def test_a_stream_asked_for_another_seed_begins_again(tmp_path):
    paths = [shard(tmp_path / f"{n}.tar", [(f"{i}.png", png(10 * n + i)) for i in range(10)]) for n in range(3)]
    config = DataConfig(source="s", image_size=8, channels=1, shuffle_buffer=4)

    def drawn(dataset, seed, numbers):
        return dataset.draw(seed, numbers)[0][:, 0, 0, 0].tolist()

    fresh = drawn(StreamDataset(TarShards(paths), config), 2, range(30))
    assert sorted(fresh) == list(range(30))
    used = StreamDataset(TarShards(paths), config)
    first = drawn(used, 1, range(13, 22))
    assert drawn(used, 2, range(21, 30)) == fresh[21:]  # beyond where the first seed stands
    assert drawn(used, 2, range(30)) == fresh
    assert drawn(used, 1, range(13, 22)) == first
