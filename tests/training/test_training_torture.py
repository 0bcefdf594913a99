"""A short form of the crash campaign; `make torture` is the long one."""

import json
import os
import subprocess
import sys
from pathlib import Path

CAMPAIGN = Path(__file__).parent.parent / "campaigns" / "torture.py"


def test_torture_campaign_loses_nothing(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(CAMPAIGN), "--kills", "4", "--faults", "3", "--out", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert found["kills"] >= 4
    assert found["lost"] == 0
    assert any("inside a checkpoint write" in name for name in found["counts"])
