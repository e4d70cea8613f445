"""Colours for a grey image."""

import gradio as gr
from PIL import Image

from diffusers_sde import ScoreSdeColorizationPipeline
from diffusers_sde.seeding import image_generators

from ..layout import (
    Controls,
    Sampler,
    follow_model,
    image_gallery,
    model_choice,
    picture_input,
    sampler_settings,
    seed_choice,
    show_images,
)
from ..models import CIFAR, MODELS
from ..runs import Run, stream
from ..uploads import MAX_SEED, fit_grey, whole


def draw(run: Run, grey, steps: int, overrides: dict, seed: int):
    """Colourings of the grey image, whose mean over the channels it is."""
    pipeline = run.pipeline(ScoreSdeColorizationPipeline, **overrides)
    call = {"num_inference_steps": steps, "generator": image_generators(seed, range(run.count))}
    return pipeline(grey, num_samples=run.count, **call).images


def handle(model, image, count, seed, *sampler):
    chosen = MODELS.get(model)
    if chosen.channels != 3:
        raise ValueError(f"this model draws images of {chosen.channels} channel; colours need one of 3 channels.")
    count = whole("the number of versions", count, 1, 8)
    grey = fit_grey(image, chosen)
    settings = {"grey": grey, "seed": whole("the seed", seed, 0, MAX_SEED), **sampler_settings(*sampler)}
    captions = ["as given", *(f"version {i + 1}" for i in range(count))]
    yield from show_images(stream(draw, model, count, settings), captions, first=[Image.fromarray(grey[0])])


def build() -> None:
    gr.Markdown(
        "A colour image is taken as grey and coloured anew. The brightness stays as it is given; the colours are the "
        "network's."
    )
    with gr.Row():
        with gr.Column(scale=2):
            model, description = model_choice(CIFAR)
            image = picture_input("Image", "colour")
            sampler = Sampler.build(CIFAR)
            with gr.Row():
                count = gr.Slider(1, 8, 4, step=1, label="Versions")
                seed = seed_choice()
        with gr.Column(scale=3):
            controls = Controls.build("Colorize")
            gallery = image_gallery("Versions", columns=5)
    follow_model(model, description, sampler)
    inputs = [model, image, count, seed, *sampler.inputs]
    controls.connect(handle, inputs, [gallery], "colorize")
