"""Write docs/reference/configuration.md and docs/reference/cli.md from the code; `--check` only compares.

python tools/make_reference.py [--check]
"""

import sys
from pathlib import Path
from typing import Any

import typer

from ddpm.cli import app
from ddpm.training.fields import fields, sections

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
NOTE = "<!-- Written by tools/make_reference.py; do not edit. -->\n\n"


def configuration() -> str:
    """Return the page of all configuration fields."""
    parts = [
        "# Configuration\n",
        NOTE + "A configuration is YAML with four sections. Every field is also a flag of `ddpm train`:\n"
        "`--training.steps 1000`. `ddpm train PRESET --help` shows the values of a preset, and `ddpm presets PRESET`\n"
        "prints it as YAML.\n",
    ]
    for section, about in sections().items():
        parts.append(f"## {section}\n\n{about}\n\n| field | type and range | default | meaning |\n|---|---|---|---|")
        for field in fields():
            if field.section == section:
                kind = field.kind.replace("|", "\\|")
                parts.append(f"| `{field.name}` | {kind} | `{field.default}` | {field.description} |")
        parts.append("")
    return "\n".join(parts)


def commands() -> str:
    """Return the page of all commands and their options."""
    root: Any = typer.main.get_command(app)
    parts = ["# Commands\n", NOTE + "`ddpm COMMAND --help` prints the same. Paths may begin with `~`.\n"]
    for name, command in root.commands.items():
        for title, part in [
            (name, command),
            *((f"{name} {sub}", c) for sub, c in getattr(command, "commands", {}).items()),
        ]:
            if not hasattr(part, "commands"):
                parts += [f"## ddpm {title}\n", (part.help or "").strip() + "\n", *_options(part), ""]
    return "\n".join(parts)


def _options(command: Any) -> list[str]:
    rows = ["| option | meaning |", "|---|---|"]
    context = typer.Context(command)
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            name, text = (" ".join(part.split()).replace("|", "\\|") for part in record)
            rows.append(f"| `{name}` | {text} |")
    return rows


PAGES = {"configuration.md": configuration, "cli.md": commands}


def main() -> int:
    """Write the pages, or with --check return 1 if one of them is out of date."""
    stale = [name for name, page in PAGES.items() if not _is_current(REFERENCE / name, page())]
    if "--check" not in sys.argv:
        REFERENCE.mkdir(parents=True, exist_ok=True)
        for name in stale:
            (REFERENCE / name).write_text(PAGES[name](), encoding="utf-8")
        return 0
    for name in stale:
        print(f"docs/reference/{name} is out of date: run python tools/make_reference.py")
    return 1 if stale else 0


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
