"""The notebooks run, at toy size, and what they claim is so; as committed they show what they found."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LARGEST = 400_000  # bytes of a notebook with its pictures


def run(name: str, parameters: str, wanted: str, folder: Path) -> Any:
    """Execute a notebook in `folder`, its first code cell replaced by `parameters`; what `wanted` then evaluates to."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    next(cell for cell in notebook.cells if cell.cell_type == "code").source = parameters
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({wanted}))"))
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return json.loads(notebook.cells[-1].outputs[0].text)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """A kernel is a process of its own, and pytest runs a worker a core."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_the_first_model_learns_and_comes_back_from_its_folder(tmp_path):
    losses, same = run("first_model", "STEPS = 12", "[losses, same]", tmp_path)
    assert losses[-1] < 0.9 * losses[0]
    assert same


def test_restored_digits_are_closer_to_the_originals_than_damaged_ones(tmp_path):
    methods = {name: {"steps": steps} for name, steps in (("ddrm", 4), ("ddnm", 4), ("repaint", 4), ("dps", 20))}
    wanted = "[before, after, known_spread, lost_spread, gain]"
    before, after, known_spread, lost_spread, gain = run(
        "restoration", f"METHODS, DRAWS = {methods}, 2", wanted, tmp_path
    )
    assert set(after) == set(methods)
    assert min(after.values()) > before + 1
    assert known_spread < 1e-3 < 0.02 < lost_spread
    assert gain > 0


def test_every_parameterisation_finds_the_same_image(tmp_path):
    wanted = (
        "[errors, [factors[name].max().item() for name in factors], [m.diffusion.prediction for m in models.values()]]"
    )
    errors, factors, predictions = run("schedules_and_parameterisations", "STEPS = 4", wanted, tmp_path)
    assert max(errors.values()) < 1e-4
    assert factors[0] > 50
    assert factors[1:] == pytest.approx([1, 1], abs=1e-3)
    assert predictions == ["epsilon", "x_0", "v"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_is_committed_was_executed_and_is_small(path):
    assert path.stat().st_size < LARGEST
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    cells = json.loads(text)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    prose = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (path.parent / target).exists(), target
