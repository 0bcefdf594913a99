"""Every command and every Python example in README and docs/ runs, at toy size."""

import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from PIL import Image
from torch.distributed.run import parse_args as parse_torchrun

from ddpm.cli import run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "api")]
MAPS = [ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]

TINY_RUN = [
    *("--training.steps", "2"),
    *("--training.batch_size", "4"),
    *("--training.preview_images", "2"),
    *("--training.preview_steps", "2"),
    *("--training.warmup", "1"),
]
TINY_NETWORK = [
    *("--network.channels", "8"),
    *("--network.groups", "4"),
    *("--network.channel_mult", "[1,2]"),
    *("--network.blocks", "1"),
]
OF_OTHERS = {"train_unconditional.py"}  # Diffusers' training example
UNENDING = {"app", "push"}  # a server, and an upload
TOY = {
    "sample": ["--num", "2", "--steps", "2", "--overwrite"],
    "trace": ["--steps", "4", "--frames", "3", "--overwrite"],
    "restore": ["--steps", "2", "--samples", "2", "--overwrite"],
    "edit": ["--steps", "3", "--evaluations", "4", "--batch-size", "2", "--overwrite"],
    "evaluate": ["--num", "70", "--steps", "2", "--overwrite"],
    "interpolate": ["--num", "3", "--steps", "2", "--overwrite"],
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def console(page: Path) -> list[str]:
    """The commands of a page, without the prompt and the comment."""
    lines = "".join(blocks(page, "console")).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*$", "", line).removeprefix("$ ") for line in lines if line.startswith("$ ")]


def commands(page: Path) -> list[str]:
    """The `ddpm` commands of a page, each once, without the launcher."""
    found = [re.sub(r"^(accelerate launch|torchrun) .*? -m (-- )?ddpm ", "ddpm ", line) for line in console(page)]
    return [line for line in dict.fromkeys(found) if line.startswith("ddpm ") and line.split()[1] not in UNENDING]


def toy(command: str) -> list[str]:
    """The command's words with what makes it short; the last value of a flag counts."""
    _, verb, *words = shlex.split(command)
    extra = list(TOY.get(verb, []))
    if verb == "train" and "--minutes" in words:  # the few steps of a toy are given below
        at = words.index("--minutes")
        del words[at : at + 2]
    if verb == "evaluate" and words[0].endswith(".npz"):  # drawn before, in so many steps
        extra = ["--overwrite"]
    if verb == "distill":
        extra = [*TINY_RUN, "--training.steps", "15", "--training.batch_size", "2", "--overwrite"]
    if verb == "train" and "runs/digits-4" in words:  # a distillation is as long as it was planned
        return [verb, *words]
    if verb == "train" and "--dry-run" not in words:
        extra = TINY_RUN if {"--init", "--resume"} & set(words) else TINY_RUN + TINY_NETWORK
        extra = [*extra, *(["--overwrite"] if "--resume" not in words else [])]
        if not {"--init", "--resume"} & set(words):
            extra = [*extra, "--network.attention", "[14]" if words[0] in ("digits", "mnist") else "[16]"]
    return [verb, *words, *extra]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """A folder with the files that the pages speak of, and data sets by the names that they use."""
    folder = tmp_path_factory.mktemp("docs")
    random = np.random.default_rng(0)
    for source in ("photos", "data/mnist", "data/cifar10"):
        for kind in ("cats", "dogs"):
            (folder / source / kind).mkdir(parents=True)
            for index in range(4):
                pixels = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / source / kind / f"{index}.png")
    (folder / "shards").mkdir()
    for kind in ("cats", "dogs"):
        with tarfile.open(folder / "shards" / f"{kind}.tar", "w") as shard:
            shard.add(folder / "photos" / kind, kind)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs(page, workshop, monkeypatch, capfd):
    monkeypatch.chdir(workshop)
    monkeypatch.setenv("DDPM_DATA", str(workshop / "data"))
    monkeypatch.setenv("DDPM_CACHE", str(workshop / "cache"))
    for command in commands(page):
        code = run(toy(command))
        assert code == 0, f"{command}\n{capfd.readouterr().err[-2000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_launchers_pass_the_command_on(page):
    """torchrun takes what begins like a flag of its own, unless it is told where its flags end."""
    for command in console(page):
        launcher, *words = shlex.split(command)
        if launcher == "torchrun":
            found = parse_torchrun(words)
        elif launcher == "accelerate":
            found = launch_command_parser().parse_args(words[1:])
        else:
            continue
        assert (found.module, found.training_script) == (True, "ddpm")
        assert found.training_script_args == words[words.index("ddpm") + 1 :]


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "examples").glob("*.ipynb"))], ids=lambda page: page.name)
def test_nobody_is_sent_to_a_stranger(page):
    """The distribution is ddpm-kit: the name ddpm on PyPI belongs to another project."""
    assert not re.search(r"pip install '?ddpm(?!-kit)", page.read_text())


@pytest.mark.parametrize("page", [*PAGES, *MAPS], ids=lambda page: page.name)
def test_files_and_names_in_backticks_exist(page):
    """`data/folder.py` is a file of the package or of the checkout; a bare `folder.py` is in some package."""
    text = page.read_text()
    for name in re.findall(r"`([\w./-]+\.py)`", text):
        assert file_called(name) or name in OF_OTHERS, f"{page.name} speaks of {name}"
    for name, place in re.findall(r"`([A-Za-z_][\w.]*)` in `([\w/]+\.py)`", text):
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", file_called(place).read_text()), f"{name} is not in {place}"
    for module in re.findall(r"python -m (experiments[\w.]*)", text):
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), f"{page.name}: no {module}"


def file_called(name: str) -> Path | None:
    places = [ROOT / name, ROOT / "src" / "ddpm" / name]
    found = [path for path in places if path.is_file()] or ([] if "/" in name else [*ROOT.rglob(f"src/ddpm/*/{name}")])
    return found[0] if found else None


@pytest.mark.parametrize("page", [*PAGES, *MAPS], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_description_on_pypi_leads_nowhere_but_to_the_web():
    """PyPI shows README.md without the repository around it."""
    description = ProjectMetadata(str(ROOT), PluginManager()).core.readme
    targets = re.findall(r"\]\(([^)]*)\)", description)
    assert targets == re.findall(r"\]\((https?:[^)]*)\)", (ROOT / "README.md").read_text())
    assert "![" not in description
    assert "Read a first model; the index lists all guides." in " ".join(description.split())
