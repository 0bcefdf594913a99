"""Build the distribution and check it as a user gets it. Nothing is uploaded.

python tools/release.py check    build into a scratch folder, and use the wheel with the packages of this environment
python tools/release.py release  build into dist/, write the notes, and install the wheel into an empty environment
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

from ddpm.common.names import VERSION

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
PYTHON = sys.executable
BIN = Path(PYTHON).parent
ORIGIN = """import ddpm, importlib.metadata as metadata
found = (f"{entry.name} {entry.version}" for entry in metadata.distributions() if "ddpm" in entry.name)
print(ddpm.__file__, *found)"""


def build(out: Path) -> Path:
    """Build the sdist, and the wheel from it; check both, and return the wheel."""
    run(PYTHON, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    run(PYTHON, "-m", "twine", "check", "--strict", *sorted(out.iterdir()))
    (wheel,) = out.glob(f"ddpm_kit-{VERSION}-*.whl")
    check_files(wheel)
    return wheel


def check_files(wheel: Path) -> None:
    """Exit if a file of the package is missing from the wheel, or if the wheel installs anything else."""
    present = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.is_file())
    expected = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    if present != expected:
        sys.exit(f"{wheel.name} differs from src/: {', '.join(sorted(present ^ expected))}")


def borrowing_environment(folder: Path) -> Path:
    """Make an environment with links to this one's packages, but to nothing of this package; return its Python."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "ddpm" not in path.name:  # an editable install, and what is left of older ones
            (packages / path.name).symlink_to(path)
    return folder / "bin" / "python"


def use(python: Path, folder: Path) -> None:
    """Sample a digit with the installed command, in an empty folder."""
    folder.mkdir()
    ddpm = python.parent / "ddpm"
    module, _, installed = run(python, "-c", ORIGIN, cwd=folder).partition(" ")
    if not Path(module).is_relative_to(python.parent.parent) or installed != f"ddpm-kit {VERSION}":
        sys.exit(f"the wheel was not used: ddpm is {module}, and installed is {installed or 'nothing'}")
    if run(ddpm, "--version", cwd=folder) != VERSION:
        sys.exit(f"the installed command is not version {VERSION}")
    run(ddpm, "sample", "digits", "--num", "1", "--steps", "2", "--out", "digit.png", cwd=folder)
    if not (folder / "digit.png").is_file():
        sys.exit("ddpm sample digits wrote no digit.png")


def notes() -> str:
    """Return the part of CHANGELOG.md on this version."""
    parts = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = [part for part in parts if part.split()[:1] == [VERSION]]
    if not found:
        sys.exit(f"CHANGELOG.md says nothing on version {VERSION}")
    return f"# ddpm {found[0].rstrip()}\n"


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command without the checkout's sources; return its last line, or exit with what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def main() -> None:
    """Check the distribution, or make a release of it."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if sys.argv[1:] == ["check"]:
            wheel, python = build(scratch / "dist"), borrowing_environment(scratch / "environment")
            run(BIN / "uv", "pip", "install", "--quiet", "--no-index", "--no-deps", "--python", python, wheel)
            use(python, scratch / "empty")
        elif sys.argv[1:] == ["release"]:
            dist, python = ROOT / "dist", scratch / "environment" / "bin" / "python"
            for old in dist.glob("*"):
                old.unlink()
            wheel = build(dist)
            (ROOT / "dist" / "NOTES.md").write_text(notes(), encoding="utf-8")
            run(BIN / "uv", "venv", "--quiet", "--python", PYTHON, python.parent.parent)
            run(BIN / "uv", "pip", "install", "--quiet", "--python", python, wheel)
            use(python, scratch / "empty")
            print("\n".join(f"dist/{path.name}" for path in sorted(dist.iterdir())))
            if "(unreleased)" in notes():
                print(f"Before uploading, replace (unreleased) in CHANGELOG.md by the date, and tag v{VERSION}.")
            print(f"To upload: {os.path.relpath(BIN)}/twine upload dist/ddpm_kit-{VERSION}*")
        else:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
