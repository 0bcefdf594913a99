"""What the fuzzing campaign runs: one target a reader, each a function of bytes, and valid files to start from.

`python tests/campaigns/fuzz_targets.py TARGET CORPUS [libFuzzer's flags]` fuzzes one; fuzz.py runs them all.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ddpm", "PIL", "tarfile", "zipfile", "gzip", "pickletools", "yaml"]):
    import gzip
    import io
    import pickle
    import struct
    import tarfile
    import zipfile

    import datasets  # noqa: F401  # its import takes seconds, which no input is to be blamed for
    import numpy as np
    from PIL import Image

    Image.init()  # Pillow imports its formats when they are first needed

    import ddpm.cli
    from ddpm.common.errors import RunStopped, UserError
    from ddpm.data import open_dataset
    from ddpm.data.arrays import read_batch
    from ddpm.data.images import BrokenFile, decode
    from ddpm.model import load
    from ddpm.training.config import load_config

ALLOWED = (UserError, RunStopped, BrokenFile)


@dataclass(frozen=True)
class Target:
    """run(bytes) may raise nothing but the package's own errors; seeds() are valid inputs to begin with."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def scratch() -> Path:
    """One folder for all inputs of this process."""
    folder = Path(tempfile.gettempdir()) / f"fuzz-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    return folder


def use(source: str, **options) -> None:
    """Open a source as training would and take a batch."""
    open_dataset(source, **{"image_size": 8, **options}).draw(0, range(2))


def as_file(ending: str, **options) -> Callable[[bytes], None]:
    """A target that writes its bytes to a file of that ending and opens it, once with classes and once without."""

    def run(data: bytes) -> None:
        path = scratch() / f"x{ending}"
        path.write_bytes(data)
        for labels in (False, True):
            with contextlib.suppress(*ALLOWED):
                use(str(path), labels=labels, **options)

    return run


# ---- images


def run_image(data: bytes) -> None:
    if data:
        decode(data[1:], 1 + data[0] % 4)


def image_seeds() -> list[bytes]:
    rng, seeds = np.random.default_rng(0), []
    colour = Image.fromarray(rng.integers(0, 256, (9, 10, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "YCbCr"):
        picture = (
            Image.fromarray(rng.integers(0, 65536, (9, 10)).astype(np.uint16))
            if mode == "I;16"
            else colour.convert(mode)
        )
        for format in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
            buffer = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError):
                picture.save(buffer, format, **({"exif": exif} if format in ("PNG", "JPEG", "TIFF", "WEBP") else {}))
                seeds.append(b"\2" + buffer.getvalue())
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        buffer = io.BytesIO()
        colour.save(buffer, "TIFF", compression=compression)
        seeds.append(b"\2" + buffer.getvalue())
    return seeds


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


# ---- arrays and archives


def idx_seeds() -> list[bytes]:
    header = b"\0\0\x08\x03" + struct.pack(">3I", 2, 8, 8)
    return [header + bytes(128), b"\0\0\x08\x04" + struct.pack(">4I", 2, 8, 8, 3) + bytes(384)]


def npz_seeds() -> list[bytes]:
    seeds = []
    for save in (np.savez, np.savez_compressed):
        for arrays in ([np.zeros((2, 8, 8, 3), np.uint8)], [np.zeros((2, 8, 8), np.uint8), np.array([0, 1])]):
            buffer = io.BytesIO()
            save(buffer, *arrays)
            seeds.append(buffer.getvalue())
    return seeds


def pickle_seeds() -> list[bytes]:
    batch = {"data": np.zeros((1, 3072), np.uint8), "labels": [3], "filenames": ["a"], "batch_label": b"x"}
    return [pickle.dumps(batch, protocol) for protocol in (2, 3, 4)]


def run_cifar(data: bytes) -> None:
    folder = scratch() / "cifar"
    folder.mkdir(exist_ok=True)
    (folder / "data_batch_1").write_bytes(data)
    (folder / "batches.meta").write_bytes(data)
    with contextlib.suppress(*ALLOWED):
        read_batch(data, "batch")
    use(str(folder), image_size=32, labels=True)


def run_cifar_binary(data: bytes) -> None:
    folder = scratch() / "cifar-bin"
    folder.mkdir(exist_ok=True)
    (folder / "train.bin").write_bytes(data)
    (folder / "fine_label_names.txt").write_bytes(data[:100])
    use(str(folder), labels=True)


def zip_seeds() -> list[bytes]:
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name in ("a/1.png", "b/2.png"):
                archive.writestr(name, png(ord(name[0])))
        seeds.append(buffer.getvalue())
    return seeds


def tar_seeds() -> list[bytes]:
    seeds = []
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
            for name, content in (("1.png", png(1)), ("1.cls", b"1"), ("é" * 60 + "/2.png", png(2))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        seeds.append(buffer.getvalue())
    return seeds


def run_tar(data: bytes) -> None:
    path = scratch() / "x.tar"
    path.write_bytes(data)
    for streaming in (False, True):
        with contextlib.suppress(*ALLOWED):
            use(str(path), streaming=streaming)


# ---- what users write: sources, configurations, command lines


def run_source(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    if not text.startswith(("/", "~", ".")) and not Path(text).is_absolute():
        use(text)


def run_config(data: bytes) -> None:
    path = scratch() / "x.yaml"
    path.write_bytes(data)
    load_config(path)


def config_seeds() -> list[bytes]:
    presets = Path(ddpm.cli.__file__).parent.parent / "presets"
    return [path.read_bytes() for path in sorted(presets.glob("*.yaml"))]


WORDS = """
train sample trace restore edit interpolate evaluate data convert presets plot app push digits mnist none --help
--num --steps --seed --out --labels --guidance --sampler --batch-size --overwrite --data --image-size --channels --fit
--dry-run --resume --init --task --method --noise --scale --mask --kernel --degrade --strength --metrics --to --forward
--data.image_size --training.steps --network.channels --diffusion.timesteps --network.attention --training.seed --bogus
0 1 -1 3 7.5 nan inf 1e9 all cat 0,1,2 [16,8] {a:1} null true x.png x.npz out/ no.such.file a:b hf: ddim dpm++ pad crop
denoise inpaint ddrm ddnm diffusers 99999999999999999999 é % ' "
"""


def run_command_line(data: bytes) -> None:
    """Each byte picks a word. Training and the page are only looked at: they would not come back."""
    words = WORDS.split()
    arguments = [words[byte % len(words)] for byte in data[:8]]
    if arguments and arguments[0] in ("app", "push"):
        arguments = [arguments[0], "--help"]
    if "train" in arguments[:1]:
        arguments.append("--dry-run")
    if "sample" in arguments[:1]:
        arguments += ["--num", "1", "--steps", "1"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), contextlib.chdir(scratch()):
        code = ddpm.cli.run(arguments)
    if code not in (0, 1, 2) or "Traceback" in output.getvalue():
        raise AssertionError(f"{arguments} ended with {code}: {output.getvalue()[-500:]}")


# ---- model folders


def tiny_model() -> Path:
    """A saved model of a few kilobytes."""
    folder = scratch() / "model"
    if not folder.exists():
        from ddpm.diffusion.config import DiffusionConfig
        from ddpm.model import Model
        from ddpm.networks.config import NetworkConfig
        from ddpm.networks.unet import UNet

        config = NetworkConfig(channels=8, channel_mult=[1], blocks=1, attention=[], groups=4)
        unet = UNet(config, image_size=(8, 8), in_channels=1, out_channels=1, num_classes=3)
        process = DiffusionConfig(timesteps=10).build()
        Model(unet, process, image_shape=(1, 8, 8), class_names=["a", "b"], null_label=2).save(folder)
    return folder


def model_files() -> list[str]:
    folder = tiny_model()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def run_model(data: bytes) -> None:
    """The first byte says which file of a saved model the others replace."""
    folder, names = tiny_model(), model_files()
    path = folder / names[data[0] % len(names)] if data else folder / names[0]
    before = path.read_bytes()
    try:
        path.write_bytes(data[1:])
        load(str(folder), device="cpu")
    finally:
        path.write_bytes(before)


def model_seeds() -> list[bytes]:
    return [bytes([number]) + (tiny_model() / name).read_bytes() for number, name in enumerate(model_files())]


TARGETS = {
    "image": Target(run_image, image_seeds),
    "idx": Target(as_file("-ubyte"), idx_seeds),
    "idx.gz": Target(as_file("-ubyte.gz"), lambda: [gzip.compress(seed) for seed in idx_seeds()]),
    "npz": Target(as_file(".npz"), npz_seeds),
    "cifar": Target(run_cifar, pickle_seeds),
    "cifar-bin": Target(run_cifar_binary, lambda: [bytes(3074 * 2)]),
    "zip": Target(as_file(".zip"), zip_seeds),
    "tar": Target(run_tar, tar_seeds),
    "source": Target(run_source, lambda: [b"mnist:test", b"hf:user/set:train?label=1,2&b=c", b"set-{000..003}.tar"]),
    "config": Target(run_config, config_seeds),
    "model": Target(run_model, model_seeds),
    "cli": Target(run_command_line, lambda: [bytes([verb, 11, 15, 60, 17, 61]) for verb in range(12)]),
}


def main() -> None:
    if sys.argv[1] == "list":
        print(*TARGETS)
        return
    name, corpus, *flags = sys.argv[1:]
    target = TARGETS[name]
    for number, seed in enumerate(target.seeds()):
        (Path(corpus) / f"seed-{number:03}").write_bytes(seed)

    def one(data: bytes) -> None:
        with contextlib.suppress(*ALLOWED):
            target.run(data)

    atheris.Setup([sys.argv[0], *flags, corpus], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
