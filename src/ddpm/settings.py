"""Settings as a text, and as a short name: what is kept on the disk is known by what it was made with."""

import hashlib
import json
from typing import Any


def as_text(settings: dict[str, Any]) -> str:
    """JSON, alike for like settings."""
    return json.dumps(settings, indent=1, sort_keys=True, ensure_ascii=False)


def content_key(settings: dict[str, Any]) -> str:
    """Twenty hexadecimal digits that name these settings and no others."""
    return hashlib.blake2b(as_text(settings).encode(), digest_size=10).hexdigest()
