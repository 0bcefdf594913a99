"""Write a model as a web page without a server: static files that sample in the browser, also when opened as a file."""

import base64
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from importlib.resources import files
from pathlib import Path

from ddpm.common.errors import UserError, first_line
from ddpm.common.files import atomic_write
from ddpm.export.onnx_files import check_packages, checked_folder, onnx_model
from ddpm.model import Model, SamplingOptions

RUNTIME = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIMES = {  # the page takes the second where the browser has WebGPU
    "runtime-wasm.js": ("ort.wasm.min.js", "ort-wasm-simd-threaded"),
    "runtime-webgpu.js": ("ort.webgpu.min.js", "ort-wasm-simd-threaded.asyncify"),
}
NAMES = ("index.html", "model.js", *RUNTIMES)


def export_web(model: Model, folder: str | Path, options: SamplingOptions, *, overwrite: bool = False) -> float:
    """Write FOLDER/index.html and the scripts that it needs; npm fetches onnxruntime-web.

    Binary parts are compressed and written as text into scripts: a page that is opened as a file may load scripts, and
    nothing else.

    Returns and raises what `export_onnx` does.
    """
    folder = checked_folder(folder, NAMES, overwrite)
    check_packages()
    runtimes = runtime_scripts(fetched_runtime())
    graph, description, difference = onnx_model(model, options)
    content = json.dumps(description, ensure_ascii=False).replace("</", "<\\/")
    scripts = {"model.js": f'const MODEL = {content};\nconst NETWORK = "{packed(graph)}";\n', **runtimes}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in scripts.items():
        atomic_write(folder / name, text)
    atomic_write(folder / "index.html", files("ddpm.export").joinpath("page.html").read_bytes())
    return difference


def fetched_runtime() -> bytes:
    """Return onnxruntime-web's package, of one version and one content; UserError if npm cannot fetch it."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("the page needs onnxruntime-web, which npm fetches: install Node.js, or use --to onnx")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", RUNTIME, "--silent", "--prefer-offline", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        found = list(Path(folder).glob("*.tgz"))
        if done.returncode or not found:
            reason = first_line(RuntimeError(done.stderr or done.stdout or "no reason given"))
            raise UserError(f"npm could not fetch {RUNTIME}: {reason}")
        package = found[0].read_bytes()
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != SHA512:
        raise UserError(f"npm fetched another {RUNTIME} than this version of ddpm knows: nothing was written")
    return package


def runtime_scripts(package: bytes) -> dict[str, str]:
    """Return the scripts of `RUNTIMES` by name, made of the files in the package."""
    scripts = {}
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:

        def member(name: str) -> bytes:
            file = archive.extractfile(f"package/dist/{name}")
            assert file is not None  # the package's content is known
            return file.read()

        for name, (library, binary) in RUNTIMES.items():
            code = member(library).decode().rpartition("//# sourceMappingURL")[0]  # browsers would look for that file
            loader, wasm = packed(member(f"{binary}.mjs")), packed(member(f"{binary}.wasm"))
            scripts[name] = f'{code}\nconst RUNTIME = {{loader: "{loader}", wasm: "{wasm}"}};\n'
    return scripts


def packed(data: bytes) -> str:
    """Return bytes as text for a script: compressed, then in base64."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()
