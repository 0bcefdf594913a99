"""The web page: `page` puts it together, one file per tab; the functions beside each tab are what it does."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def without_proxies() -> Iterator[None]:
    """Inside, this process connects directly, whatever proxies the environment names.

    Gradio makes HTTP clients when it is imported, which fails for a SOCKS proxy, and asks its own server at the start.
    """
    names = ("no_proxy", "NO_PROXY")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, "*"))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(before)
