"""The web page: its tabs, its style and the server that shows it."""

import json
import logging
import os
import signal
import socket
import webbrowser
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils.fonts import Font
from PIL import Image

from ddpm.app import compare, edit, explore, generate, restore, runs, without_proxies
from ddpm.app.components import ASSETS, address, knows_digits
from ddpm.app.models import Models, opening
from ddpm.app.outcome import QUIET
from ddpm.app.press import stop_all
from ddpm.app.uploads import MOST_BYTES
from ddpm.common.errors import UserError
from ddpm.model import Model

# Gradio would request a plain string as a font file of its own
SANS = [Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")]
MONO = [Font(name) for name in ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")]

BLUE = gr.themes.Color(
    c50="#eef6fb",
    c100="#d7eaf6",
    c200="#afd5ec",
    c300="#7cbadf",
    c400="#3d98cc",
    c500="#0072b2",  # of the Okabe-Ito palette, as in the figures
    c600="#006299",
    c700="#00517f",
    c800="#003f63",
    c900="#002c46",
    c950="#001d2e",
)


def theme() -> gr.themes.Base:
    """Return the theme: system fonts, one accent colour, few lines."""
    return gr.themes.Base(
        primary_hue=BLUE,
        secondary_hue=BLUE,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_sm,
        font=SANS,
        font_mono=MONO,
    ).set(
        body_background_fill="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        block_background_fill_dark="*body_background_fill",
        block_label_background_fill_dark="*body_background_fill",
        block_border_width="0px",
        block_padding="4px",
        block_shadow="none",
        block_label_background_fill="white",
        block_label_border_width="0px",
        block_title_text_weight="500",
        button_primary_background_fill="*primary_500",
        button_primary_background_fill_hover="*primary_600",
        button_primary_text_color="white",
        button_secondary_background_fill="white",
        button_secondary_border_color="*neutral_300",
        button_secondary_background_fill_hover="*neutral_100",
        button_border_width="1px",
        button_large_text_size="*text_md",
        button_large_text_weight="500",
        input_background_fill="white",
        input_border_width="1px",
        input_border_color="*neutral_400",
        slider_color="*primary_500",
        slider_color_dark="*primary_400",
    )


MOST_WAITING = 64  # requests; more are refused
NAMED = 10  # classes that the heading names
PATIENCE = 5.0  # seconds for the step at which a drawing stops
CACHE_AGE = 3600  # seconds that images and uploads are kept


def build(model: Model, name: str, folder: Path, models: Models | None = None, *, trains: bool = False) -> gr.Blocks:
    """Build the page of a model called `name`, with the runs in `folder`.

    models: those that the page can switch to. trains: whether trainings can be started and stopped on it.
    """
    called = Path(name).resolve().name
    with gr.Blocks(title=f"{called} · ddpm", analytics_enabled=False, delete_cache=(CACHE_AGE, CACHE_AGE)) as page:
        masthead(f"<h1>{escape(called)}</h1><p>{escape(describe(model))}</p>", name, models)
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Generate"):
                remember(page, name, "generate", generate.tab(model, name, page))
            with gr.Tab("Restore"):
                remember(page, name, "restore", restore.tab(model, name))
            with gr.Tab("Edit"):
                remember(page, name, "edit", edit.tab(model, name))
            with gr.Tab("Compare"):
                remember(page, name, "compare", compare.tab(model, name))
            with gr.Tab("Explore"):
                remember(page, name, "explore", explore.tab(model))
            with gr.Tab("Runs"):
                runs.tab(folder, page, switches=models is not None, trains=trains)
        page.load(None, None, None, js="() => ddpm.reopen()", **QUIET)
    return page.queue(default_concurrency_limit=1, max_size=MOST_WAITING, api_open=False)


def remember(page: gr.Blocks, model: str, tab: str, fields: list[Any]) -> None:
    """Let the browser keep the settings of a tab, so that a reload does not lose them."""
    key = json.dumps(f"ddpm/{model}/{tab}")
    page.load(None, fields, fields, js=f"(...own) => ddpm.recall({key}, own)", **QUIET)
    gr.on([field.change for field in fields], None, fields, None, js=f"(...all) => ddpm.keep({key}, all)", **QUIET)


def masthead(words: str, name: str, models: Models | None) -> gr.HTML:
    """Create the head of the page: HTML beside the icon, and the switcher of models if there is one."""
    with Image.open(ASSETS / "icon.png") as icon:
        words = f'<div class="brand"><img src="{address(icon)}" alt="">{words}</div>'
    if models is None:
        return gr.HTML(words, js_on_load=None, elem_classes="masthead")

    def listing(_: Any) -> dict[str, dict[str, str]]:
        return models.groups()

    def open_model(name: str) -> dict[str, str]:
        return models.open(name)

    known = f"{json.dumps(name)}, {json.dumps(models.groups())}"
    return gr.HTML(
        words,
        html_template='${value}<div class="switch"></div>',
        js_on_load=f"ddpm.models(element.querySelector('.switch'), server, {known});",
        server_functions=[listing, open_model],
        elem_classes="masthead",
    )


def describe(model: Model) -> str:
    """Say in one sentence what the model draws, from what, and where."""
    channels, height, width = model.image_shape
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    what = f"{width}×{height} {kind} images"
    if knows_digits(model):
        what = f"handwritten digits, {what},"
    elif model.class_names:
        shown = ", ".join(model.class_names[:NAMED]) + (", …" if len(model.class_names) > NAMED else "")
        what += f" of {len(model.class_names)} classes ({shown})"
    steps = f"in up to {len(model.diffusion.schedule):,} steps"
    if model.student:
        count = model.student.steps
        steps = f"made for {count} step{'s' * (count > 1)}"
    return f"Draws {what} from noise, {steps}, on the {'CPU' if model.device.type == 'cpu' else 'GPU'}."


def look() -> dict[str, Any]:
    """Return what all pages have in common, as arguments of `gr.mount_gradio_app`."""
    return {
        "show_error": True,
        "ssr_mode": False,
        "max_file_size": MOST_BYTES,
        "theme": theme(),
        "css": (ASSETS / "page.css").read_text(),
        "head": "".join(
            f"<script>{(ASSETS / name).read_text()}</script>" for name in ("pad.js", "result.js", "page.js")
        ),
        "footer_links": [],
        "run_history": False,  # the page has its own
    }


def launch(
    page: gr.Blocks, host: str, port: int, *, block: bool = True, browser: bool = False, models: Models | None = None
) -> str:
    """Serve the page until Ctrl-C and return its address; with `block=False`, return at once."""
    check_port(host, port)
    with without_proxies():
        app, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            favicon_path=ASSETS / "icon.png",
            prevent_thread_lock=True,
            app_kwargs=opening(),
            **look(),
        )
    if models is not None:
        models.server = app
    if block:
        print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
        if browser:
            webbrowser.open(address)
        _until_interrupted(page)
    return address


def _until_interrupted(page: gr.Blocks) -> None:
    """Wait for Ctrl-C or SIGTERM; then stop every drawing and the server."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print("\nstopping …", flush=True)
        stop_all(PATIENCE)
        if page.server:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # about the open pages that it leaves
            page.server.config.timeout_graceful_shutdown = 1
        page.close(verbose=False)
        print("the page has ended", flush=True)
        os._exit(0)  # threads of the server's pool may still wait for a step


def check_port(host: str, port: int) -> None:
    """Raise UserError if the address is not available, before anything is built."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot serve at {host}:{port}: {reason}; choose another --port") from error
