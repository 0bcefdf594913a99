"""Cut the built-in `digits` from MNIST's training set: the first 1,000 of each digit, in the order of the file.

    python tools/make_digits.py FOLDER_WITH_MNIST_IDX_FILES

writes src/ddpm/assets/digits.npz: arr_0 uint8 (10000, 28, 28, 1), arr_1 int64 (10000,). The bytes do not depend on when
or where it is run, only on zlib's version.
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from ddpm.data.arrays import find_idx, open_idx

OUT = Path(__file__).resolve().parent.parent / "src" / "ddpm" / "assets" / "digits.npz"
A_DIGIT = 1000


def main(folder: str) -> None:
    path = find_idx(Path(folder), "train")
    if path is None:
        sys.exit(f"{folder} holds no train-images-idx3-ubyte file")
    mnist = open_idx(path)
    rows = np.sort(np.concatenate([np.flatnonzero(mnist.labels == digit)[:A_DIGIT] for digit in range(10)]))
    with zipfile.ZipFile(OUT, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in (("arr_0", mnist.images[rows]), ("arr_1", mnist.labels[rows])):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)
    print(f"{OUT}: {len(rows):,} digits, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
