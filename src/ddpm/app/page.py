"""The page: its tabs under one roof, and the server that shows it."""

import socket
from html import escape
from pathlib import Path

import gradio as gr

from ddpm.app.functions.uploads import MOST_BYTES
from ddpm.app.style import CSS, theme
from ddpm.app.tabs import edit, explore, generate, restore, runs
from ddpm.errors import UserError
from ddpm.model import Model

MOST_WAITING = 64  # requests; further ones are told to come back
CACHE_AGE = 3600  # seconds that pictures and uploads are kept


def build(model: Model, name: str, folder: Path) -> gr.Blocks:
    """The page of a model called `name`, with the runs in `folder`."""
    channels, height, width = model.image_shape
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    with gr.Blocks(title="ddpm", analytics_enabled=False, delete_cache=(CACHE_AGE, CACHE_AGE)) as page:
        gr.HTML(
            f"<h1>ddpm</h1><p>{escape(Path(name).resolve().name)}: {width}×{height} {kind} images{classes}, "
            f"T = {len(model.process.schedule):,}, on {model.device.type}</p>",
            elem_classes="masthead",
            padding=False,
        )
        with gr.Tabs():
            with gr.Tab("Generate"):
                generate.tab(model, name)
            with gr.Tab("Restore"):
                restore.tab(model)
            with gr.Tab("Edit"):
                edit.tab(model)
            with gr.Tab("Explore"):
                explore.tab(model)
            with gr.Tab("Runs"):
                runs.tab(folder, page)
    # one sampler at a time: the model is one, and two at once would only share its device
    return page.queue(default_concurrency_limit=1, max_size=MOST_WAITING, api_open=False)


def launch(page: gr.Blocks, host: str, port: int, *, block: bool = True) -> str:
    """Serve the page until Ctrl-C (or, with `block=False`, beside the caller); returns its address."""
    check_port(host, port)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        show_error=True,
        quiet=True,
        max_file_size=MOST_BYTES,
        theme=theme(),
        css=CSS,
        footer_links=[],
        prevent_thread_lock=True,
    )
    if block:
        print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return address


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be had, before anything is built."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot serve at {host}:{port}: {reason}; choose another --port") from error
