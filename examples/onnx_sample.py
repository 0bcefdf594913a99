"""Sample images with numpy and onnxruntime alone, from the files that `ddpm export MODEL --to onnx --out FOLDER` wrote.

python onnx_sample.py FOLDER samples.png [--num 16] [--labels 0,1,2] [--guidance 1.5] [--seed 0]
"""

import argparse
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import onnxruntime


def sample(session, model, labels, noise, guidance):
    """Return images float32 (N, C, H, W) in [-1, 1].

    Args:
        session: model.onnx, opened by onnxruntime.
        model: the content of model.json.
        labels: the class of each image, int64 (N,); ignored by a model without classes.
        noise: called without arguments, returns standard normal noise, float32 (N, C, H, W).
        guidance: 1 is off; ignored by a model without a null class.
    """
    takes = {entry.name for entry in session.get_inputs()}
    x_t, x_0 = noise(), 0.0
    for step in model["steps"]:
        alpha, sigma = step["alpha"], step["sigma"]
        given = {"x_t": x_t, "t": np.full(len(x_t), step["t"], np.float32)}
        given |= {"labels": labels, "guidance": np.float32(guidance)}
        output = session.run(["prediction"], {name: np.asarray(given[name]) for name in takes})[0]
        last = x_0
        if model["prediction"] == "epsilon":
            x_0 = (x_t - sigma * output) / alpha
        elif model["prediction"] == "v":
            x_0 = alpha * x_t - sigma * output
        else:
            x_0 = output
        x_0 = np.clip(x_0, -1, 1)
        x_t = step["x_t"] * x_t + step["x_0"] * x_0 + step["x_0_last"] * last
        if step["noise"]:
            x_t = x_t + step["noise"] * noise()
        x_t = x_t.astype(np.float32)
    return np.clip(x_t, -1, 1)


def write_png(path, images):
    """Write images (N, C, H, W) in [-1, 1], grey or colour, side by side."""
    pixels = np.round(127.5 * (images + 1)).astype(np.uint8).transpose(2, 0, 3, 1)  # rows, images, columns, channels
    height, count, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # each row begins with its filter: none
    colours = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", count * width, height, 8, colours, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def main():
    parser = argparse.ArgumentParser(description="Sample images from a folder that ddpm export wrote.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, default=16)
    parser.add_argument("--labels", help="numbers of classes that images take in turn, as in 0,1,2; default: all")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = json.loads((given.folder / "model.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(given.folder / "model.onnx", providers=["CPUExecutionProvider"])
    known = range(len(model["class_names"] or [0]))
    labels = np.resize(list(map(int, given.labels.split(","))) if given.labels else known, given.num)
    generator, shape = np.random.default_rng(given.seed), (given.num, *model["image_shape"])
    guidance = model["guidance"] if given.guidance is None else given.guidance
    write_png(given.out, sample(session, model, labels, lambda: generator.standard_normal(shape, np.float32), guidance))


if __name__ == "__main__":
    main()
