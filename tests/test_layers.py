"""The house's order: rooms import downwards only, and the core needs no extra."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm

SOURCE = Path(ddpm.__file__).parent
FLOORS = [
    {"common"},
    {"diffusion", "networks", "data", "presets", "assets"},
    {"samplers", "interop"},
    {"model"},
    {"plotting"},
    {"training", "evaluation", "restoration", "editing", "generate"},
    {"distillation"},
    {"app"},
    {"cli"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
EXTRAS = ["torchvision", "diffusers", "datasets", "matplotlib", "gradio", "imageio", "torch_fidelity", "deepinv"]


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def modules_imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "ddpm":
            found |= {f"ddpm.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


SOURCES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or not path.name.startswith("__"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_import_downwards_only(path):
    own = room_of(path)
    for module in modules_imported(path):
        if not module.startswith("ddpm."):
            continue
        other = module.split(".")[1]
        below = FLOOR_OF[other] < FLOOR_OF[own] or FLOOR_OF[other] == 0  # the ground floor is one room
        assert other == own or below, f"{own} (floor {FLOOR_OF[own]}) imports {module}"


def test_core_imports_without_extras():
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in EXTRAS)
    code = f"import sys; {blocked}; import ddpm, ddpm.cli; assert ddpm.load('digits').num_classes == 10"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
