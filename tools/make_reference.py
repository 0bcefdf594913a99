"""Write the references, the JSON schema, and the list of files in ARCHITECTURE.md; `--check` only compares.

python tools/make_reference.py [--check]
"""

import ast
import sys
from pathlib import Path
from typing import Any

import typer

from ddpm.cli import app
from ddpm.training.config import SCHEMA
from ddpm.training.fields import fields, json_schema, sections

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "ddpm"
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


def architecture() -> str:
    """Return ARCHITECTURE.md with the list of files as it is now."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- tree -->")
    return (
        f"{before}<!-- tree -->\n```text\n{tree()}```\n<!-- end of tree -->{rest.partition('<!-- end of tree -->')[2]}"
    )


def tree() -> str:
    """Return every module with the first line of its docstring, packages in the order of the layers."""
    lines = []
    for package in (*LAYERS, ""):
        modules = sorted((PACKAGE / package).glob("*.py"))
        lines += [f"{package}/"] if package else []
        for module in modules:
            about = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
            if about:
                lines.append(f"{'    ' if package else ''}{module.name:<22} {about.splitlines()[0]}")
    return "\n".join(lines) + "\n"


PAGES = {
    ROOT / "docs" / "reference" / "configuration.md": configuration,
    ROOT / "docs" / "reference" / "cli.md": commands,
    ROOT / "ARCHITECTURE.md": architecture,
    PACKAGE / "presets" / SCHEMA: json_schema,
}
LAYERS = ("common", "diffusion", "networks", "data", "samplers", "interop", "plotting", "training", "evaluation")
LAYERS += ("restoration", "editing", "export", "distillation", "app", "cli")


def main() -> int:
    """Write the pages, or with --check return 1 if one of them is out of date."""
    stale = [page for page, text in PAGES.items() if not page.is_file() or page.read_text(encoding="utf-8") != text()]
    for page in stale:
        if "--check" in sys.argv:
            print(f"{page.relative_to(ROOT)} is out of date: run python tools/make_reference.py")
        else:
            page.write_text(PAGES[page](), encoding="utf-8")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
