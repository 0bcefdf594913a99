"""Pickles: no code runs, and only batches of plain data are read."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from data_cases import little_memory, opened

from ddpm.common.errors import UserError
from ddpm.data.arrays import read_batch


class Exploit:
    """Unpickled, it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_npz_never_loads_a_pickle(tmp_path):
    np.savez(tmp_path / "x.npz", np.array([Exploit(tmp_path / "ran")], object))
    with pytest.raises(UserError, match=r"x\.npz"):
        opened(tmp_path / "x.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_cifar_batch_never_runs_code(tmp_path, protocol):
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
        b"\x80\x02})" + b"2\x86" * 60 + b"Ns.",  # nested pairs as a key
        b"\x80\x02})q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60)) + b"Ns.",
        b"\x80\x02)q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60)) + b"}h<Ns.",  # 60 is <
        b"\x80\x02}()" + b"2\x86" * 60 + b"Nu.",
        b"\x80\x02()" + b"2\x86" * 60 + b"Nd.",
        b"\x80\x04\x8f()" + b"2\x86" * 60 + b"\x90.",
        b"\x80\x04()" + b"2\x86" * 60 + b"\x91.",
        b"\x80\x02]q\x00h\x00a.",  # a list that holds itself
        b"\x80\x02" + b"]" + b"2\x86" * 5000 + b"}s.",  # nested pairs, whose hash would take for ever
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02}X\x04\x00\x00\x00dataq\x00]u.",
        b"",
        b".",
    ],
)
def test_read_batch_refuses_hostile_pickles(data):
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
def test_cifar_batch_of_the_wrong_shape_is_refused(tmp_path, batch):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, 2))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({}, 2))
    with pytest.raises(UserError, match="data_batch_1"):
        opened(tmp_path, image_size=32)
