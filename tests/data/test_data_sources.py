"""Every SOURCE, written here by hand from its description and read back."""

import gzip
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import as_array, opened
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.data import DataConfig, LazyDataset, open_dataset
from ddpm.data import datasets as opening_module

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("private_cache")


# ---- names


def test_digits_are_built_in():
    digits = open_dataset("digits", image_size=28, channels=1, labels=True)
    assert len(digits) == 10_000
    assert digits.image_shape == (1, 28, 28)
    assert digits.class_names == list("0123456789")
    assert torch.bincount(digits.labels).tolist() == [1000] * 10
    with pytest.raises(UserError, match="only a train split"):
        open_dataset("digits:test")


def test_name_is_found_under_the_data_folder(tmp_path, image_folder, monkeypatch):
    image_folder(["x.png"], where="mine")
    monkeypatch.setenv("DDPM_DATA", str(tmp_path))
    assert len(opened("mine")) == 1
    with pytest.raises(UserError, match="did you mean cifar10"):
        opened("cifar1O")


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"'digitz'.*DDPM_DATA is not set; did you mean digits"):
        opened("digitz")
    with pytest.raises(UserError, match="there is no file or folder /no/where"):
        opened("/no/where")
    for source in ("\0", "set\0/./t-{000..00\0?}.tar", "x" * 5000, "~nobody-of-that-name/x"):
        with pytest.raises(UserError):
            opened(source)


@pytest.mark.parametrize("name", ["cifar-10-batches-bin", "cifar10"])
def test_cifar10_is_found_under_either_folder_name(tmp_path, monkeypatch, name):
    write_cifar_binary(tmp_path / name, "test_batch.bin", 4)
    monkeypatch.setenv("DDPM_DATA", str(tmp_path))
    assert len(opened("cifar10:test", image_size=32)) == 4


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_is_found_in_torchvisions_layout(tmp_path, monkeypatch, write_idx, name, folder):
    for count, split in ((5, "train"), (3, "t10k")):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / folder / "raw" / f"{split}-images-idx3-ubyte", images)
        write_idx(tmp_path / folder / "raw" / f"{split}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))
    monkeypatch.setenv("DDPM_DATA", str(tmp_path))
    options = {"image_size": 28, "channels": 1, "labels": True}
    for source in (name, tmp_path / folder, tmp_path / folder / "raw"):
        assert opened(source, **options).labels.tolist() == [0, 1, 2, 3, 4]
        assert (as_array(opened(f"{source}:test", **options))[..., 0] == images).all()
    assert opened(name, **options).class_names[9] == {"mnist": "9", "fashion_mnist": "Ankle boot"}[name]


def test_split_of_a_source_without_splits_is_refused(tmp_path, pixels, encode, write_tar, write_idx, image_folder):
    """Never the whole set in its place: it would be training images where held-out ones were meant."""
    np.savez(tmp_path / "x.npz", arr_0=np.stack([pixels(0), pixels(1)]))
    write_tar(tmp_path / "shards" / "0.tar", {"a.png": encode(pixels())})
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 16, 16), np.uint8))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", encode(pixels()))
    for name in ("x.npz", "x.zip", "shards", "shards/0.tar", "shards/{0..0}.tar", "train-images-idx3-ubyte"):
        assert len(opened(tmp_path / name)) in (1, 2)
        with pytest.raises(UserError, match="has no splits: leave out :test") as refused:
            opened(f"{tmp_path / name}:test")
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="has no splits: leave out :test"):
        opened(f"{tmp_path}/shards:test", streaming=True)
    with pytest.raises(UserError, match="no split 'test'"):
        opened(f"{image_folder(['a.png'])}:test")


@pytest.mark.parametrize("streaming", [False, True])
def test_split_selects_files_by_the_start_of_their_names(tmp_path, pixels, encode, write_tar, streaming):
    def names(source):
        dataset = opened(source, streaming=streaming)
        if not streaming:
            return len(dataset)
        return len(dataset.shards.paths)

    for index, name in enumerate(["train-0", "train_1", "TEST-0", "val"]):
        write_tar(tmp_path / "set" / f"{name}.tar", {f"{index}.png": encode(pixels(index))})
    folder = tmp_path / "set"
    assert names(folder) == names(f"{folder}:train") == names(folder / "train*.tar") == 2
    assert names(f"{folder}:test") == names(f"{folder}:val") == names(folder / "TEST-0.tar") == 1
    with pytest.raises(UserError, match="no split 'dev': use :"):
        names(f"{folder}:dev")
    with pytest.raises(UserError, match="no split 'train': use :test or :val"):
        names(folder / "[Tv]*.tar")
    write_tar(folder / "trainings.tar", {"x.png": encode(pixels(9))})  # another word
    with pytest.raises(UserError, match="which is of none"):
        names(folder)


# ---- arrays


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_idx_is_read_with_its_labels(tmp_path, write_idx, zipped, split):
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16), dtype=np.uint8)
    labels = np.arange(7, dtype=np.uint8)
    prefix = {"train": "train", "test": "t10k"}[split]
    for array, name in ((images, "images-idx3"), (labels, "labels-idx1")):
        path = write_idx(tmp_path / f"{prefix}-{name}-ubyte", array)
        if zipped:
            Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    dataset = opened(f"{tmp_path}:{split}" if split == "test" else tmp_path, channels=1, labels=True)
    assert (as_array(dataset)[..., 0] == images).all()
    assert dataset.labels.tolist() == labels.tolist()
    alone = opened(tmp_path / f"{prefix}-images-idx3-ubyte{'.gz' * zipped}", channels=1)
    assert alone.fingerprint == opened(f"{tmp_path}:{split}", channels=1).fingerprint


def test_npz_is_read_in_every_layout(tmp_path, pixels):
    images = np.stack([pixels(seed) for seed in range(5)])
    np.savez(tmp_path / "plain.npz", images)
    np.savez_compressed(tmp_path / "classes.npz", images, np.array([2, 0, 1, 2, 2]))
    np.savez(tmp_path / "grey.npz", images[..., 0])
    np.savez(tmp_path / "fortran.npz", np.asfortranarray(images))
    assert (as_array(opened(tmp_path / "plain.npz")) == images).all()
    assert (as_array(opened(tmp_path / "fortran.npz")) == images).all()
    assert (as_array(opened(tmp_path / "grey.npz", channels=1))[..., 0] == images[..., 0]).all()
    dataset = opened(tmp_path / "classes.npz", labels=True)
    assert dataset.labels.tolist() == [2, 0, 1, 2, 2]
    assert dataset.class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 16, 16, 3), np.uint8)}, "holds images; the images should be in arr_0"),
        ({"arr_0": np.zeros((2, 16, 16, 3), np.float32)}, "arr_0 is float32"),
        ({"arr_0": np.zeros((2, 16), np.uint8)}, "2 dimensions"),
        ({"arr_0": np.zeros((2, 16, 16, 5), np.uint8)}, "5 channels"),
        ({"arr_0": np.zeros((2, 4, 16, 3), np.uint8)}, "smaller than 8"),
        ({"arr_0": np.zeros((0, 16, 16, 3), np.uint8)}, "announces 0x16x16x3"),
        ({"arr_0": np.zeros((2, 16, 16, 3), np.uint8), "arr_1": np.zeros(3, int)}, "one integer label for each of 2"),
        ({"arr_0": np.zeros((2, 16, 16, 3), np.uint8), "arr_1": np.array([0, -1])}, "labels from -1 to 0"),
        (
            {"arr_0": np.zeros((2, 16, 16, 3), np.uint8), "arr_1": np.array([0, 10**12])},
            "labels from 0 to 1000000000000",
        ),
    ],
)
def test_npz_of_the_wrong_kind_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "x.npz", labels="arr_1" in arrays)


def write_cifar_binary(folder: Path, name: str, count: int, label_bytes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, (count, label_bytes), dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(np.concatenate([labels, images.reshape(count, -1)], 1).tobytes())
    return images.transpose(0, 2, 3, 1), labels[:, -1]


def test_cifar_binary_is_read(tmp_path):
    parts = [write_cifar_binary(tmp_path, f"data_batch_{number}.bin", number + 1) for number in (1, 2, 3)]
    dataset = opened(tmp_path, image_size=32, labels=True)
    assert (as_array(dataset) == np.concatenate([images for images, _ in parts])).all()
    assert dataset.labels.tolist() == np.concatenate([labels for _, labels in parts]).tolist()
    assert dataset.class_names[:3] == ["airplane", "automobile", "bird"]


def test_cifar100_binary_takes_the_fine_label(tmp_path):
    images, labels = write_cifar_binary(tmp_path, "train.bin", 5, label_bytes=2)
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"kind{number}" for number in range(100)))
    dataset = opened(tmp_path, image_size=32, labels=True)
    assert (as_array(dataset) == images).all()
    assert dataset.labels.tolist() == labels.tolist()
    assert dataset.class_names[99] == "kind99"


def python2_batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2's cPickle wrote the published files: protocol 2, byte strings, numpy.core."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    def integer(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    dtype = (
        b"cnumpy\ndtype\nq\x09("
        + short(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + short(b"|")
        + b"NNN"
        + integer(-1) * 2
        + b"K\x00tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85" + short(b"b") + b"\x87R"
    state = b"(K\x01" + integer(flat.shape[0]) + integer(flat.shape[1]) + b"\x86" + dtype + b"\x89"
    state += b"T" + len(flat.tobytes()).to_bytes(4, "little") + flat.tobytes() + b"tb"
    numbers = b"]q\x05(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    head = b"\x80\x02}q\x01(" + short(b"batch_label") + b"q\x02" + short(b"training batch 1 of 5") + b"q\x03"
    return head + short(b"labels") + b"q\x04" + numbers + short(b"data") + b"q\x06" + array + state + b"u."


def test_cifar_python_is_read_as_published(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), [3, 1, 4, 1, 5, 9]
    batch = python2_batch(images, labels)
    unpickled = pickle.loads(batch, encoding="bytes")  # numpy agrees that this is such a file
    assert (unpickled[b"data"] == images.transpose(0, 3, 1, 2).reshape(6, -1)).all()
    (tmp_path / "data_batch_1").write_bytes(batch)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"k{n}" for n in range(10)]}, protocol=2))
    dataset = opened(tmp_path, image_size=32, labels=True)
    assert (as_array(dataset) == images).all()
    assert dataset.labels.tolist() == labels
    assert dataset.class_names[9] == "k9"


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar_python_is_read_if_python_3_wrote_it(tmp_path, protocol):
    flat = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    (tmp_path / "train").write_bytes(pickle.dumps({"data": flat, "fine_labels": [0, 99, 5, 5]}, protocol))
    (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"k{n}" for n in range(100)]}, protocol))
    dataset = opened(tmp_path, image_size=32, labels=True)
    assert (as_array(dataset) == flat.reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)).all()
    assert dataset.labels.tolist() == [0, 99, 5, 5]


# ---- archives


@pytest.mark.parametrize("top", ["", "flowers/"])
def test_zip_is_read_with_folders_as_classes(tmp_path, pixels, encode, top):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for seed, name in enumerate(["rose/2.png", "lily/1.png", "rose/3.png", "__MACOSX/rose/2.png", "readme.txt"]):
            archive.writestr(top + name, encode(pixels(seed)))
    dataset = opened(tmp_path / "set.zip", labels=True)
    assert dataset.class_names == ["lily", "rose"]
    assert dataset.labels.tolist() == [0, 1, 1]
    assert (as_array(dataset) == np.stack([pixels(seed) for seed in (1, 0, 2)])).all()


@pytest.mark.parametrize("top", ["", "./photos/"])
def test_archive_of_several_splits_is_refused(tmp_path, pixels, encode, write_tar, top):
    """Its test images would be trained on, and its splits pass for classes."""

    def pack(name, members):
        images = {top + member: encode(pixels(seed)) for seed, member in enumerate(members)}
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for member, data in images.items():
                archive.writestr(member, data)
        return tmp_path / f"{name}.zip", write_tar(tmp_path / f"{name}.tar", images)

    for path in pack("both", ["Train/a/1.png", "Train/b/2.png", "val/a/3.png", ".cache/a/1.png"]):
        with pytest.raises(UserError, match=r"holds several splits \(Train, val\): unpack it and name the folder"):
            opened(path)
    for path in pack("more", ["Train/a/1.png", "val/a/3.png", "extra/2.png"]):
        with pytest.raises(UserError, match=r"holds several splits \(Train, val\): unpack it and name the folder"):
            opened(path)
    for path in pack("one", ["train/a/1.png", "train/b/2.png", ".cache/a/1.png"]):
        assert opened(path, labels=True).class_names == ["a", "b"]
    for path in pack("classes", ["train/1.png", "tram/2.png"]):
        assert opened(path, labels=True).class_names == ["train", "tram"]


def test_tar_shards_take_classes_from_cls_files(tmp_path, pixels, encode, write_tar):
    for shard in range(3):
        members = {}
        for number in range(4):
            seed = 4 * shard + number
            members |= {
                f"{seed:04}.cls": str(seed % 3).encode(),
                f"{seed:04}.png": encode(pixels(seed)),
                f"{seed:04}.json": b"{}",
            }
        write_tar(tmp_path / f"set-{shard:03}.tar", members)
    for source in (tmp_path, tmp_path / "set-{000..002}.tar", tmp_path / "set-*.tar"):
        dataset = opened(source, labels=True)
        assert (as_array(dataset) == np.stack([pixels(seed) for seed in range(12)])).all()
        assert dataset.labels.tolist() == [seed % 3 for seed in range(12)]
    assert len(opened(tmp_path / "set-001.tar")) == 4
    with pytest.raises(UserError, match="no shard"):
        opened(tmp_path / "set-{000..003}.tar")


def test_tar_without_cls_files_takes_folders_as_classes(tmp_path, pixels, encode, write_tar):
    path = write_tar(
        tmp_path / "x.tar",
        {"./s/a/1.v1.png": encode(pixels(0)), "./s/a/1.v2.png": encode(pixels(1)), "./s/b/3.png": encode(pixels(2))},
    )
    dataset = opened(path, labels=True)
    assert dataset.class_names == ["a", "b"]
    assert dataset.labels.tolist() == [0, 0, 1]


# ---- common to all


def test_fingerprint_does_not_depend_on_the_layout(tmp_path, image_folder, pixels, encode, write_tar):
    """One fingerprint: what counts is the pixels, not how they were stored."""
    names = [f"{number}.png" for number in range(4)]
    folder = image_folder(names)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.write(folder / name, name)
    write_tar(tmp_path / "x.tar", {name: (folder / name).read_bytes() for name in names})
    np.savez(tmp_path / "x.npz", np.stack([pixels(seed) for seed in range(4)]))
    prints = {
        opened(source).fingerprint for source in (folder, tmp_path / "x.zip", tmp_path / "x.tar", tmp_path / "x.npz")
    }
    assert len(prints) == 1
    assert opened(folder, channels=1).fingerprint not in prints


def test_lazy_dataset_decodes_when_needed(image_folder, monkeypatch):
    folder = image_folder([f"{kind}/{n}.png" for kind in "ab" for n in range(10)])
    (folder / "a" / "3.png").write_bytes(b"broken")
    in_memory = opened(folder, labels=True)
    monkeypatch.setattr(opening_module, "MOST_MEMORY_BYTES", 100)
    lazy = opened(folder, labels=True)
    assert isinstance(lazy, LazyDataset)
    assert len(lazy) == 20
    images, labels = lazy.batch(torch.tensor([0, 3, 19, 3]))
    assert (images == in_memory.images[[0, 3, 18, 3]]).all()  # image 3 is broken: the next stands in for it
    assert labels.tolist() == [0, 0, 1, 0]
    assert lazy.report.skipped == [("a/3.png", "it is not an image")]


def test_image_that_stands_in_for_a_broken_one_brings_its_own_class(image_folder, monkeypatch):
    """Also past the end, where the first image follows, and over several broken ones in a row."""
    folder = image_folder([f"{kind}/{n}.png" for kind in "abc" for n in range(3)])
    for name in ("a/2", "b/0", "b/1", "c/2"):
        (folder / f"{name}.png").write_bytes(b"broken")
    monkeypatch.setattr(opening_module, "MOST_MEMORY_BYTES", 100)
    lazy = opened(folder, labels=True)
    _, labels = lazy.batch(torch.arange(9))
    assert labels.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 0]


@pytest.mark.parametrize("count", [15, 16, 17, 150])
def test_images_are_decoded_in_their_order(image_folder, count):
    """However many threads decode them, and however many are ahead; those that are broken leave no gap."""
    folder = image_folder([f"{'ab'[n % 2]}/{n:03}.png" for n in range(count)], height=8, width=8)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    (folder / names[5]).write_bytes(b"broken")
    dataset = open_dataset(str(folder), image_size=8, labels=True)
    kept = [name for index, name in enumerate(names) if index != 5]
    expected = np.stack([np.asarray(Image.open(folder / name)) for name in kept]).transpose(0, 3, 1, 2)
    assert np.array_equal(dataset.images.numpy(), expected)
    assert dataset.labels.tolist() == ["ab".index(name[0]) for name in kept]


def test_classes_that_lost_all_images_leave_the_others_their_images(image_folder):
    folder = image_folder([f"{kind}/{n}.png" for kind in "abcd" for n in range(2)])
    for name in ("b/0", "b/1", "c/1"):
        (folder / f"{name}.png").write_bytes(b"broken")
    dataset = opened(folder, labels=True)
    assert dataset.class_names == ["a", "c", "d"]
    assert dataset.labels.tolist() == [0, 0, 1, 2, 2]
    assert dataset.report.lost_classes == ["b"]


def test_lazy_fingerprint_changes_with_the_images(tmp_path, image_folder, pixels, encode, write_tar, monkeypatch):
    """Features are kept by the fingerprint: one that looked at names alone would give a set another's."""
    monkeypatch.setattr(opening_module, "MOST_MEMORY_BYTES", 100)

    def every_layout(where, seeds):
        members = {f"{number}.png": encode(pixels(seed)) for number, seed in enumerate(seeds)}
        folder = image_folder(list(members), where=where)
        for name, data in members.items():
            (folder / name).write_bytes(data)
        with zipfile.ZipFile(tmp_path / f"{where}.zip", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        write_tar(tmp_path / f"{where}.tar", members)
        np.savez(tmp_path / f"{where}.npz", np.stack([pixels(seed) for seed in seeds]))
        rows = {"img": [{"bytes": data, "path": None} for data in members.values()]}
        features = datasets.Features({"img": datasets.Image()})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{where}.parquet")
        return [folder, *(tmp_path / f"{where}.{ending}" for ending in ("zip", "tar", "npz", "parquet"))]

    one, other = every_layout("one", [0, 1]), every_layout("other", [2, 3])
    for mine, others in zip(one, other, strict=True):
        before = opened(mine).fingerprint
        assert before != opened(others).fingerprint, mine
        assert before == opened(mine.rename(mine.with_name(f"moved-{mine.name}"))).fingerprint, mine


def test_lazy_dataset_with_nothing_usable_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr(opening_module, "MOST_MEMORY_BYTES", 100)
    with pytest.raises(UserError, match="no image that can be used"):
        opened(tmp_path).batch([0])


def test_open_dataset_checks_options_in_one_line():
    for options, message in [
        ({"image_size": 7}, "image_size"),
        ({"image_size": (32, 4)}, "image_size"),
        ({"channels": 5}, "channels"),
        ({"fit": "stretch"}, "fit"),
        ({"background": [1, 2]}, "background"),
        ({"colour": 1}, "colour"),
    ]:
        with pytest.raises(UserError, match=message):
            open_dataset("digits", **options)
    assert DataConfig(source="x", image_size=[32, 64]).image_shape == (3, 32, 64)


def test_open_dataset_refuses_unknown_kinds(tmp_path, write_idx):
    (tmp_path / "x.xyz").write_bytes(b"")
    with pytest.raises(UserError, match="is not a folder of images"):
        opened(tmp_path / "x.xyz")
    with pytest.raises(UserError, match="images have N, H, W"):
        opened(write_idx(tmp_path / "images-idx2-ubyte", np.zeros((9, 9), np.uint8)))
    with pytest.raises(UserError, match="is not streamed"):
        opened("digits", streaming=True)
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, "PNG")
    (tmp_path / "lone.png").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="is not a folder"):
        opened(tmp_path / "lone.png")
