"""How the page looks: system fonts, one accent, few lines."""

import gradio as gr
from gradio.themes.utils.fonts import Font

# Gradio takes a plain string for a font file of its own, and asks for it
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
    """The page's theme."""
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
