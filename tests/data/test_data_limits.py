"""Headers with false sizes, bombs and damaged archives: nothing large is allocated, and nothing hangs."""

import gzip
import io
import os
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from data_cases import little_memory, opened

from ddpm.common.errors import UserError


@pytest.mark.parametrize(
    "extents", [(2**32 - 1,) * 3, (10**6, 28, 28), (1, 2**31, 2**31), (0, 28, 28), (3, 16, 17), (3, 16, 15)]
)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_with_a_false_header_is_refused(tmp_path, extents, ending):
    content = b"\0\0\x08\x03" + struct.pack(">3I", *extents) + bytes(3 * 16 * 16)
    path = tmp_path / f"train-images-idx3-ubyte{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    with little_memory(), pytest.raises(UserError, match=str(path)):
        opened(path)


def test_idx_gzip_bomb_is_refused(tmp_path):
    """100 MB of zeros behind a header that announces 3 images: reading stops after the header's word is broken."""
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"\0\0\x08\x03" + struct.pack(">3I", 3, 16, 16))
        for _ in range(100):
            file.write(bytes(1_000_000))
    with little_memory(), pytest.raises(UserError, match="does not hold"):
        opened(path)


@pytest.mark.parametrize("shape", [(10**12, 16, 16, 3), (10**5, 16, 16, 3), (2**63, 2, 2, 3), (-1, 16, 16, 3)])
def test_npz_with_a_false_header_is_refused(tmp_path, shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", buffer.getvalue() + bytes(1000))
    with little_memory(), pytest.raises(UserError, match=r"x\.npz"):
        opened(tmp_path / "x.npz")


def test_npz_with_a_false_member_size_is_refused(tmp_path):
    """The directory says 100 bytes, the data unpacks to 50 million: no more than the header's word is read."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((1, 16, 16, 3), np.uint8))
        archive.writestr("arr_0.npy", buffer.getvalue() + bytes(50_000_000))
    with little_memory(), pytest.raises(UserError, match=r"x\.npz"):
        opened(tmp_path / "x.npz")


def test_zip_bomb_of_one_member_is_refused(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.png", "w", force_zip64=True) as file,
    ):
        for _ in range(300):
            file.write(bytes(1_000_000))
    with little_memory(), pytest.raises(UserError, match="unpacks to more than"):
        opened(tmp_path / "x.zip")


def test_zip_with_overlapping_entries_is_refused(tmp_path, encode):
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


def test_zip_skips_encrypted_members(tmp_path, encode, pixels):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", encode(pixels()))
        archive.writestr("b.png", encode(pixels()))
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the first directory entry
    (tmp_path / "x.zip").write_bytes(data)
    assert opened(tmp_path / "x.zip").report.skipped == [("a.png", "it is encrypted")]


def test_tar_with_cyclic_headers_is_refused(tmp_path):
    """A negative size sends a careless reader round in a circle for ever."""
    header = bytearray(tarfile.TarInfo("a.png").tobuf())
    header[124:136] = b"\xff" * 8 + struct.pack(">i", -1024)  # base 256, negative
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) * 4)
    with pytest.raises(UserError, match=r"x\.tar"):
        opened(tmp_path / "x.tar")


def test_tar_that_is_compressed_is_refused(tmp_path, encode, pixels, write_tar):
    plain = write_tar(tmp_path / "a.tar", {"a.png": encode(pixels())})
    (tmp_path / "x.tar").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(UserError, match=r"not a plain \.tar file"):
        opened(tmp_path / "x.tar")


def test_shard_paths_bounds_brace_patterns():
    with little_memory(), pytest.raises(UserError, match="more than 100,000 shards"):
        opened("set-{0..99999999999}.tar")


def test_tar_names_what_it_skips(tmp_path, encode, pixels, write_tar):
    """An empty member is no image; one that is cut off is reported as such, and not as damaged."""
    data = {"a.png": encode(pixels(0)), "b.png": b"", "c.png": encode(pixels(1, 64, 64))}
    write_tar(tmp_path / "x.tar", data)
    whole = opened(tmp_path / "x.tar")
    ((name, reason),) = whole.report.skipped
    assert name.endswith("b.png")
    assert "size" not in reason
    assert len(whole) == 2
    with tarfile.open(tmp_path / "x.tar") as archive:
        last = archive.getmember("c.png")
    for kept, reasons in ((last.size - 1, 1), (last.size, 0)):
        cut = tmp_path / f"{kept}.tar"
        cut.write_bytes((tmp_path / "x.tar").read_bytes()[: last.offset_data + kept])
        skipped = opened(cut).report.skipped
        cut_short = [name for name, reason in skipped if reason == "the archive ends before it does"]
        assert cut_short == [f"{kept}.tar/c.png"] * reasons


def test_cifar_batch_that_is_far_too_large_is_not_read(tmp_path):
    """The largest that is distributed holds 155 MB; 2**28 bytes are read, not one more."""
    path = tmp_path / "data_batch_1.bin"
    for size, said in ((2**28 + 1, "far larger than any CIFAR batch"), (2**28 - 1, "not a whole number of")):
        path.touch()
        os.truncate(path, size)  # a hole: it takes no room
        if size > 2**28:
            with little_memory(), pytest.raises(UserError, match=said):
                opened(tmp_path)
        else:
            with pytest.raises(UserError, match=said):
                opened(tmp_path)
