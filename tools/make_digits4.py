"""Make the bundled student `digits4`: distil the bundled `digits`, and write the student in half precision.

    python tools/make_digits4.py RUN

takes about six minutes of one core, and resumes a run that was stopped. It writes src/ddpm/assets/digits4_model. The
network is small, so that both bundled models fit in 6 MB. It predicts x_0.
"""

import sys
from pathlib import Path

import torch
from refresh_card import main as refresh_card

from ddpm.cli import run
from ddpm.model import BUNDLED, load

DISTILL = """
    distill digits --steps 4 --teacher-steps 8 --guidance 2 --data digits
    --diffusion.prediction x_0 --network.channels 16 --network.channel_mult [1,1.25,2] --network.groups 4
    --training.steps 450 --training.batch_size 32 --training.optimizer muon --training.learning_rate 3e-3
    --training.warmup 30 --training.lr_schedule cosine --training.ema_decay 0.99
    --training.log_every 25 --training.preview_every 200 --training.checkpoint_every 100
"""


def main(folder: str) -> None:
    """Train the student in the run directory `folder`, and bundle it."""
    begun = Path(folder, "checkpoints").exists()
    if code := run(["train", "--resume", folder] if begun else [*DISTILL.split(), "--out", folder]):
        sys.exit(code)
    load(folder).save(BUNDLED["digits4"], dtype=torch.float16)
    refresh_card("digits4")


if __name__ == "__main__":
    main(*sys.argv[1:])
