"""Files made to do harm: nothing runs, nothing outside is read, nothing huge is allocated, nothing hangs."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm.common.errors import UserError
from ddpm.data import open_dataset
from ddpm.data.arrays import read_batch
from ddpm.data.images import BrokenFile
from ddpm.data.sources import find_stored

fuzzed = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def opened(source, **options):
    return open_dataset(str(source), **{"image_size": 16, **options})


@contextmanager
def little_memory(limit: int = 8_000_000):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


# ---- headers that lie


@pytest.mark.parametrize(
    "extents", [(2**32 - 1,) * 3, (10**6, 28, 28), (1, 2**31, 2**31), (0, 28, 28), (3, 16, 17), (3, 16, 15)]
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_headers_that_announce_what_is_not_there(tmp_path, extents, ending):
    content = b"\0\0\x08\x03" + struct.pack(">3I", *extents) + bytes(3 * 16 * 16)
    path = tmp_path / f"train-images-idx3-ubyte{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    with little_memory(), pytest.raises(UserError, match=str(path)):
        opened(path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    """100 MB of zeros behind a header that announces 3 images: reading stops after the header's word is broken."""
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"\0\0\x08\x03" + struct.pack(">3I", 3, 16, 16))
        for _ in range(100):
            file.write(bytes(1_000_000))
    with little_memory(), pytest.raises(UserError, match="does not hold"):
        opened(path)


@pytest.mark.parametrize("shape", [(10**12, 16, 16, 3), (10**5, 16, 16, 3), (2**63, 2, 2, 3), (-1, 16, 16, 3)])
def test_npz_headers_that_announce_what_is_not_there(tmp_path, shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", buffer.getvalue() + bytes(1000))
    with little_memory(), pytest.raises(UserError, match=r"x\.npz"):
        opened(tmp_path / "x.npz")


def test_a_lie_about_a_members_size_in_a_zip(tmp_path):
    """The directory says 100 bytes, the data unpacks to 50 million: no more than the header's word is read."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((1, 16, 16, 3), np.uint8))
        archive.writestr("arr_0.npy", buffer.getvalue() + bytes(50_000_000))
    with little_memory(), pytest.raises(UserError, match=r"x\.npz"):
        opened(tmp_path / "x.npz")


# ---- pickles


class Exploit:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_in_an_npz_is_never_loaded(tmp_path):
    np.savez(tmp_path / "x.npz", np.array([Exploit(tmp_path / "ran")], object))
    with pytest.raises(UserError, match=r"x\.npz"):
        opened(tmp_path / "x.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_cifar_batch_never_runs_code(tmp_path, protocol):
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], "more": Exploit(tmp_path / "ran")}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": Exploit(tmp_path / "ran")}, protocol))
    with pytest.raises(UserError, match="is not a CIFAR batch of plain data"):
        opened(tmp_path, image_size=32)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02r\xff\xff\xff\x7f.",  # a memo index that makes pickle's own reader allocate gigabytes
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",  # a byte string of 2**63 bytes
        b"(" * 100_000 + b"." + b"t" * 100_000,
        b"\x80\x02}q\x01(U\x04datac__builtin__\neval\n(U\x011tRu.",
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
        b"\x80\x02" + b"]" + b"2\x86" * 5000 + b"}s.",  # nested pairs, whose hash would take for ever
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02}X\x04\x00\x00\x00dataq\x00]u.",
        b"",
        b".",
    ],
)
def test_pickles_made_to_hurt(data):
    with little_memory(60_000_000), pytest.raises(UserError, match="plain data"):
        read_batch(data, "batch")


@pytest.mark.parametrize(
    "batch",
    [
        {"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]},
        {"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10**30]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, -1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": "ab"},
        {"data": np.zeros((0, 3072), np.uint8), "labels": []},
        {"data": [1, 2], "labels": [0, 1]},
        {"data": np.array([None, 1], object), "labels": [0, 1]},
        {},
    ],
)
def test_cifar_batches_of_the_wrong_shape(tmp_path, batch):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, 2))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({}, 2))
    with pytest.raises(UserError, match="data_batch_1"):
        opened(tmp_path, image_size=32)


# ---- paths that lead out


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


def test_a_folder_given_as_a_link_is_the_users_own_choice(tmp_path, image_folder):
    (tmp_path / "link").symlink_to(image_folder(["a.png"]))
    assert len(opened(tmp_path / "link")) == 1


def test_pipes_are_not_waited_for(image_folder):
    folder = image_folder(["a.png"])
    os.mkfifo(folder / "pipe.png")
    dataset = opened(folder)
    assert dataset.report.skipped == [("pipe.png", "it is not a regular file")]


def test_names_that_lead_out_of_an_archive(tmp_path, encode, pixels):
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


def test_a_path_written_in_a_data_file_is_not_followed(tmp_path):
    datasets = pytest.importorskip("datasets")
    Image.new("RGB", (16, 16)).save(tmp_path / "secret.png")
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    for streaming in (False, True):
        with pytest.raises(UserError, match=r"the row holds no image|holds no images"):
            opened(tmp_path / "x.parquet", streaming=streaming).draw(0, range(1))


# ---- bombs


def test_a_zip_of_one_member_that_unpacks_to_gigabytes(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.png", "w", force_zip64=True) as file,
    ):
        for _ in range(300):
            file.write(bytes(1_000_000))
    with little_memory(), pytest.raises(UserError, match="unpacks to more than"):
        opened(tmp_path / "x.zip")


def test_a_zip_whose_entries_overlap(tmp_path, encode):
    """A thousand directory entries that all point at one member: read one by one, they would cost a thousandfold."""
    data = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("0.png", data)
        first = archive.infolist()[0]
        for number in range(1, 1000):
            twin = zipfile.ZipInfo(f"{number % 10}.png")
            twin.file_size, twin.compress_size, twin.CRC = first.file_size, first.compress_size, first.CRC
            twin.header_offset = first.header_offset
            archive.filelist.append(twin)
        archive._didModify = True
    (tmp_path / "x.zip").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="entries overlap"):
        opened(tmp_path / "x.zip")


def test_an_encrypted_member_is_skipped(tmp_path, encode, pixels):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", encode(pixels()))
        archive.writestr("b.png", encode(pixels()))
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the first directory entry
    (tmp_path / "x.zip").write_bytes(data)
    assert opened(tmp_path / "x.zip").report.skipped == [("a.png", "it is encrypted")]


def test_a_tar_whose_sizes_run_backwards(tmp_path):
    """A negative size sends a careless reader round in a circle for ever."""
    header = bytearray(tarfile.TarInfo("a.png").tobuf())
    header[124:136] = b"\xff" * 8 + struct.pack(">i", -1024)  # base 256, negative
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) * 4)
    with pytest.raises(UserError, match=r"x\.tar"):
        opened(tmp_path / "x.tar")


def test_compressed_tars_are_refused(tmp_path, encode, pixels, write_tar):
    plain = write_tar(tmp_path / "a.tar", {"a.png": encode(pixels())})
    (tmp_path / "x.tar").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(UserError, match=r"not a plain \.tar file"):
        opened(tmp_path / "x.tar")


def test_brace_patterns_are_bounded():
    with little_memory(), pytest.raises(UserError, match="more than 100,000 shards"):
        opened("set-{0..99999999999}.tar")


def test_names_that_no_terminal_can_show(tmp_path):
    folder = os.fsencode(tmp_path / "set")
    for name in (b"\xff\xfe", b"a\x1b[31mred\nline"):
        os.makedirs(os.path.join(folder, name))
        Image.new("RGB", (16, 16)).save(Path(os.fsdecode(os.path.join(folder, name, b"x.png"))))
    dataset = opened(tmp_path / "set", labels=True)
    assert len(dataset) == 2
    for name in dataset.class_names:
        assert name.isprintable()
        name.encode()


def test_names_that_are_not_utf8_are_told_apart(tmp_path):
    """Köln and Käln as Latin-1 has them, and names of controls alone."""
    names = [b"K\xf6ln", b"K\xe4ln", b"a\x1b", b"a\x07", "a\u202e".encode()]
    for name in names:
        os.makedirs(folder := os.path.join(os.fsencode(tmp_path), b"set", name))
        Image.new("RGB", (16, 16)).save(Path(os.fsdecode(os.path.join(folder, b"x.png"))))
    dataset = opened(tmp_path / "set", labels=True)
    assert dataset.class_names == [r"K\xe4ln", r"K\xf6ln", r"a\u202e", r"a\x07", r"a\x1b"]
    assert sorted(dataset.labels.tolist()) == [0, 1, 2, 3, 4]


def test_spaces_and_joiners_of_other_scripts_stay(image_folder):
    names = ["東京\u3000駅", "Pommes\u00a0frites", "می\u200cخواهم", "\U0001f469\u200d\U0001f33e"]
    dataset = opened(image_folder([f"{name}/1.png" for name in names]), labels=True)
    assert dataset.class_names == sorted(names)


# ---- random damage


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """A few bytes changed, some cut out, some doubled."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, max(len(content) - 1, 0)))
        match data.draw(st.sampled_from(["change", "cut", "double", "end"])):
            case "change" if content:
                content[place] = data.draw(st.integers(0, 255))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 40))]
            case "double":
                content[place:place] = content[place : place + data.draw(st.integers(1, 40))]
            case "end":
                del content[place:]
    return bytes(content)


def opens_or_says_why(path: Path, **options) -> None:
    try:
        dataset = opened(path, **options)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert dataset.batch([0])[0].shape[0] == 1


@fuzzed
@given(st.data())
def test_damaged_archives_and_arrays(tmp_path, encode, pixels, write_tar, write_idx, data):
    kind = data.draw(st.sampled_from(["npz", "zip", "tar", "idx", "idx.gz"]))
    path = tmp_path / f"x.{kind}"
    images = np.stack([pixels(seed) for seed in range(3)])
    if kind == "npz":
        np.savez_compressed(path, images, np.arange(3))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for seed in range(3):
                archive.writestr(f"a/{seed}.png", encode(images[seed]))
    elif kind == "tar":
        write_tar(
            path,
            {
                f"{seed}.{end}": encode(images[seed]) if end == "png" else b"1"
                for seed in range(3)
                for end in ("png", "cls")
            },
        )
    else:
        write_idx(path, images[..., 0])
        if kind == "idx.gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
    path.write_bytes(damaged(data, path.read_bytes()))
    opens_or_says_why(path, labels=data.draw(st.booleans()))


@fuzzed
@given(st.data())
def test_damaged_pickles(data):
    batch = {"data": np.zeros((2, 12), np.uint8), "labels": [0, 1], "names": ["a", "b"]}
    content = damaged(data, pickle.dumps(batch, data.draw(st.sampled_from([2, 3, 4]))))
    try:
        found = read_batch(content, "batch")
    except UserError:
        return
    assert isinstance(found, dict)


@fuzzed
@given(st.text(max_size=60))
def test_any_text_as_a_source(tmp_path, text):
    source = str(tmp_path / "no") + "/" + text if "hf:" in text or text in (".", "..", "/") else text + "\u2603"
    with pytest.raises(UserError):
        opened(source)
