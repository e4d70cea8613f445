"""The page: one tab per task, one queue for all."""

import gradio as gr
from starlette.middleware import Middleware

from diffusers_sde import __version__

from .guard import Guard, Page
from .models import FASHION, MODELS, load_classifier
from .tabs import class_conditional, colorize, edit, generate, inpaint, interpolate, likelihood, process
from .uploads import MAX_FILE_SIZE

QUEUE_SIZE = 32
SESSIONS = 100  # of which Gradio keeps a copy of the page's settings, 0.4 MB each; we keep nothing in them
TABS = {
    "Generate": generate,
    "Inpaint": inpaint,
    "Colorize": colorize,
    "Class-conditional": class_conditional,
    "Edit": edit,
    "Interpolate": interpolate,
    "Likelihood": likelihood,
    "Forward and reverse": process,
}
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]  # of the user's system: nothing is fetched from elsewhere
MONO_FONTS = ["ui-monospace", "monospace"]
CSS = """
.pixels img { image-rendering: pixelated; }
.pixels .image-frame img { width: 100%; height: 100%; object-fit: contain; }
.results .grid-wrap { min-height: 0 !important; }
.results .caption-label { right: 3px; bottom: 3px; padding: 0 5px; font-size: 0.75em; opacity: 0.85; }
.description p { font-size: 0.9em; color: var(--body-text-color-subdued); }
.status { margin: 0; font-variant-numeric: tabular-nums; }
.figures h3 { font-size: 1.6em; }
"""


def build() -> gr.Blocks:
    """The page, not yet served."""
    MODELS.get(FASHION)
    load_classifier()  # here rather than in the first run: ZeroGPU's processes are copies of this one
    with Page(title="Score-based generative modelling", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(
            "# Score-based generative modelling through SDEs\n"
            "Networks that know in which direction an image becomes more likely, and what can be done with that alone "
            "([Song et al. 2021](https://arxiv.org/abs/2011.13456)). The embedded models are small and were trained "
            "on a CPU: quick to try, not the state of the art."
        )
        for title, tab in TABS.items():
            with gr.Tab(title, id=title):
                tab.build()
        gr.Markdown(
            f"diffusers_sde {__version__}. Images you send are used for your run alone and deleted within hours."
        )
    return page.queue(max_size=QUEUE_SIZE)


def launch_options() -> dict:
    """What `launch` needs besides the address."""
    return {
        "theme": gr.themes.Soft(primary_hue="indigo", secondary_hue="indigo", font=FONTS, font_mono=MONO_FONTS),
        "css": CSS,
        "max_file_size": MAX_FILE_SIZE,
        "state_session_capacity": SESSIONS,
        "app_kwargs": {"middleware": [Middleware(Guard)]},
        "footer_links": ["api", "settings"],
        "run_history": False,
        "ssr_mode": False,
        "show_error": True,
    }
