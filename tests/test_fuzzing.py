"""The fuzzing campaign goes on where it stopped; a stand-in prints what libFuzzer would print."""

import json
import runpy
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parent / "campaigns" / "fuzz.py"
STAND_IN = """
import sys
from pathlib import Path
if sys.argv[1] == "list":
    sys.exit(print("fast slow"))
corpus = Path(sys.argv[2])
kept = len(list(corpus.iterdir()))
(corpus / f"input-{kept}").write_bytes(b"x")
print(f"#{kept}\\tINITED cov: 5", f"#{kept + 20}\\tDONE cov: {7 + kept}", sep="\\n", file=sys.stderr)
print(f"stat::number_of_executed_units: {kept + 20}", "stat::peak_rss_mb: 30", sep="\\n", file=sys.stderr)
sys.exit(print("ValueError: as planned", file=sys.stderr) or 77 if sys.argv[1] == "slow" and kept == 1 else 0)
"""


def test_a_campaign_goes_on_from_the_inputs_and_the_count_that_it_kept(tmp_path, monkeypatch, capsys):
    stand_in, keep = tmp_path / "targets.py", tmp_path / "kept"
    stand_in.write_text(STAND_IN)
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--seconds", "1", "--keep", str(keep)])
    campaign = runpy.run_path(str(CAMPAIGN))
    campaign["TARGETS"][1] = str(stand_in)
    assert campaign["main"]() == 0
    assert capsys.readouterr().out.splitlines()[-1] == "40 inputs in all"
    assert campaign["main"]() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "80 inputs in all"  # the inputs kept are not counted twice
    assert json.loads((keep / "totals.json").read_text()) == {
        "fast": {"inputs": 40, "branches": 8, "findings": 0},
        "slow": {"inputs": 40, "branches": 8, "findings": 1},
    }
    assert len(list((keep / "corpus" / "fast").iterdir())) == 2


def test_without_the_fuzzer_a_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--keep", str(tmp_path)])
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(SystemExit, match="pip install atheris"):
        runpy.run_path(str(CAMPAIGN), run_name="__main__")
