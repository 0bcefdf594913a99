"""The long description of the distribution: README.md without what leads nowhere outside the repository.

hatchling runs it for the wheel and the sdist. PyPI shows no picture and follows no link that is relative to a
repository. As long as the project has no public address, pictures are left out, and links to files are their text.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n+", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")
WHERE = "\nThe guides, reports and pictures are in the repository, beside the source.\n"


class LongDescription(MetadataHookInterface):
    """Set the `readme` of the distribution."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Read README.md, and write the description into the metadata."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = LINK.sub(r"\1", PICTURE.sub("", text)) + WHERE
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
