"""The web page: its tabs, its style and the server that shows it."""

import socket
from html import escape
from pathlib import Path

import gradio as gr
from gradio.themes.utils.fonts import Font

from ddpm.app import edit, explore, generate, restore, runs, without_proxies
from ddpm.app.components import MOST_BYTES
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
        radius_size=gr.themes.sizes.radius_sm,
        font=SANS,
        font_mono=MONO,
    ).set(
        body_background_fill="white",
        block_border_width="1px",
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
        input_background_fill="white",
        input_border_width="1px",
        input_border_color="*neutral_300",
    )


CSS = """
.gradio-container { width: 100% !important; max-width: 1120px !important; margin: 0 auto !important; }
.gradio-container .main.app { padding: 24px 24px 40px !important; }
.gradio-container main.contain { padding: 0 !important; }
.masthead .html-container, .masthead .prose { padding: 0 !important; }
.masthead h1 { font-size: 1.35rem; font-weight: 650; margin: 0; }
.masthead p { color: var(--body-text-color-subdued); margin: 2px 0 0; }
.hint p { color: var(--body-text-color-subdued); font-size: 0.9rem; margin: 0; }
.status { min-height: 1.6em; }
.status p { font-variant-numeric: tabular-nums; margin: 0; }
.upload img { width: 100%; height: 100%; object-fit: contain; }
.upload img, .lowered img { padding-top: 28px; }  /* below the label */
.titled label.float { position: static; }
.gradio-container button.label-wrap > span { text-align: left; }
.figure svg { display: block; width: 100%; height: auto; max-width: 900px; margin: 0 auto; }
.figure .narrow { display: none; }
.grids .gallery-container, .grids .grid-wrap {
  height: auto !important; min-height: 0 !important; max-height: none !important; overflow: visible;
}
.grids .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(min(210px, 44%), 1fr)) !important; padding-top: 30px;
}
.grids .thumbnail-lg { height: auto; aspect-ratio: auto; background: none; }
.grids .caption-label {
  position: static; border: 0; padding: 2px 0 0; max-width: none; background: none; text-align: left;
}
@media (max-width: 640px) {
  .gradio-container .main.app { padding: 14px 14px 28px !important; }
  .figure .wide { display: none; }
  .figure .narrow { display: block; }
}
"""


MOST_WAITING = 64  # requests; more are refused
CACHE_AGE = 3600  # seconds that images and uploads are kept


def build(model: Model, name: str, folder: Path) -> gr.Blocks:
    """Build the page of a model called `name`, with the runs in `folder`."""
    channels, height, width = model.image_shape
    classes = f", {model.num_classes} classes" if model.num_classes else ""
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    with gr.Blocks(title="ddpm", analytics_enabled=False, delete_cache=(CACHE_AGE, CACHE_AGE)) as page:
        gr.HTML(
            f"<h1>ddpm</h1><p>{escape(Path(name).resolve().name)}: {width}×{height} {kind} images{classes}, "
            f"T = {len(model.diffusion.schedule):,}, on {model.device.type}</p>",
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
    # one sampler at a time: two would only share the device
    return page.queue(default_concurrency_limit=1, max_size=MOST_WAITING, api_open=False)


def launch(page: gr.Blocks, host: str, port: int, *, block: bool = True) -> str:
    """Serve the page until Ctrl-C and return its address; with `block=False`, return at once."""
    check_port(host, port)
    with without_proxies():
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
    """Raise UserError if the address is not available, before anything is built."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot serve at {host}:{port}: {reason}; choose another --port") from error
