"""Write ddpm.json and README.md of a bundled model again, with today's names of fields and wording of cards.

python tools/refresh_card.py [digits | digits4]

The weights stay as they are.
"""

import sys

from ddpm.common.files import atomic_write
from ddpm.distillation.config import StudentConfig
from ddpm.interop.card import HERE, model_card
from ddpm.interop.diffusers import load_folder
from ddpm.interop.diffusers_config import obstacle
from ddpm.interop.storage import write_json
from ddpm.model import BUNDLED
from ddpm.training.config import RENAMED, Config


def renamed(config: dict) -> dict:
    """Return a configuration with its old names replaced; every field is checked."""
    tree = {RENAMED.get(section, section): dict(fields) for section, fields in config.items()}
    for section, fields in tree.items():
        for name in list(fields):
            new = RENAMED.get(f"{section}.{name}", f"{section}.{name}").partition(".")[2]
            fields[new] = fields.pop(name)
    checked = StudentConfig if "distillation" in tree else Config
    return checked.model_validate(tree).model_dump(mode="json")


def main(name: str = "digits") -> None:
    """Write the two files of the bundled model `name`."""
    folder = BUNDLED[name]
    parts = load_folder(folder)
    provenance = parts.extra["provenance"]
    extra = {**parts.extra, "provenance": {**provenance, "config": renamed(provenance["config"])}}
    card = model_card(parts.network, parts.diffusion, extra, diffusers=obstacle(parts.network) is None)
    card = card.replace(f'ddpm.load("{HERE}")', f'ddpm.load("{name}")')
    card = card.replace(f'"{HERE}"', f'ddpm.model.BUNDLED["{name}"]')
    write_json(folder / "ddpm.json", extra)
    atomic_write(folder / "README.md", card)


if __name__ == "__main__":
    main(*sys.argv[1:])
