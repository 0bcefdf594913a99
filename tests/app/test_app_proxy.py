"""Proxies in the environment, as in companies and universities: the page asks its own server without them."""

import os
import socket

import pytest

from ddpm.app import without_proxies

httpx = pytest.importorskip("httpx")
gradio = pytest.importorskip("gradio")

NAMES = [name for word in ("http", "https", "all", "no") for name in (f"{word}_proxy", f"{word}_proxy".upper())]
CLOSED = "127.0.0.1:9"  # where nobody listens


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_page_starts_behind_a_proxy(monkeypatch):
    """An empty page, because only its start matters."""
    from ddpm.app.page import launch

    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{CLOSED}")
    with gradio.Blocks(analytics_enabled=False) as page:
        gradio.HTML("here")
    try:
        address = launch(page, "127.0.0.1", free_port(), block=False)
        assert httpx.get(address, trust_env=False).status_code == 200
    finally:
        page.close()


def test_without_proxies_connects_directly_and_restores_the_environment(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", f"socks5://{CLOSED}")  # a client for it needs a package of its own
    monkeypatch.setenv("no_proxy", "intranet.example")
    before = dict(os.environ)
    with without_proxies():
        assert not httpx.Client()._mounts
    assert dict(os.environ) == before
    with pytest.raises(ImportError, match="SOCKS"):
        httpx.Client()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
