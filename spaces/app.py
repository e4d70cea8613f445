"""The Gradio Space of `diffusers_sde`: `python spaces/app.py`, or push this folder to a Space."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import score_space.zero_gpu  # noqa: F401  (before torch)
from score_space.page import build, launch_options

demo = build()

if __name__ == "__main__":
    demo.launch(**launch_options())
