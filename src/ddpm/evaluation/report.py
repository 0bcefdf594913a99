"""What an evaluation came to: a table to read and a JSON file to keep, both with all that makes figures comparable."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ddpm.evaluation.comparison import Figure
from ddpm.files import write_whole
from ddpm.samplers import find_sampler

# options of sampling that a card names beside sampler and steps, each with what goes without saying; the spacing does
# where it is the sampler's own
OPTIONS = {
    "guidance": (1.0,),
    "guidance_rescale": (0.0,),
    "eta": (0.0,),
    "variant": (),
    "clip": ("static",),
    "seed": (0,),
    "labels": ("all", None),
}


@dataclass(frozen=True)
class Report:
    """settings: how the figures were made; figures: in the order of the metrics; pictures: files drawn on the way."""

    settings: dict[str, Any]
    figures: list[Figure]
    pictures: list[Path]

    def value(self, key: str) -> float:
        """The figure of this key."""
        return next(figure.value for figure in self.figures if figure.key == key)

    def table(self) -> str:
        """Settings, then a line a figure."""
        lines = [f"{name.replace('_', ' '):<12} {_shown(value)}" for name, value in self.settings.items()]
        lines.append("")
        width = max((len(figure.title) for figure in self.figures), default=0)
        for figure in self.figures:
            error = "" if figure.error is None else f" ± {figure.error:.2g}"
            lines.append(f"{figure.title:<{width}}  {f'{figure.value:.5g}{error}':<22} {figure.note}".rstrip())
        lines += [f"picture: {path}" for path in self.pictures]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        figures = {figure.key: {k: v for k, v in asdict(figure).items() if k != "key"} for figure in self.figures}
        return {"settings": self.settings, "figures": figures, "pictures": [str(path) for path in self.pictures]}

    def for_card(self) -> dict[str, float]:
        """The figures of a model by titles that say how they were made, as its card shows them."""
        made = self.settings
        drawn = [f"{made['n']:,} images", f"{made['steps']} steps of {made['sampler']}"]
        usual = {"spacing": (find_sampler(made["sampler"]).spacing,), **OPTIONS}
        drawn += [f"{name} {made[name]}" for name in usual if name in made and made[name] not in usual[name]]
        how = ", ".join([*drawn, f"against {made['reference']}"])
        # the likelihood draws nothing; what it is of stands in its note
        return {f"{f.title}: {f.note if f.key == 'nll' else how}": f.value for f in self.figures}

    def save(self, path: Path) -> None:
        """Write the JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n").encode())


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
