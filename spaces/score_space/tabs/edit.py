"""A sketch turned into the model's image next to it."""

import gradio as gr

from diffusers_sde import ScoreSdeEditPipeline
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
from ..models import FASHION, MODELS
from ..runs import Run, stream
from ..uploads import MAX_SEED, fit, real, whole


def draw(run: Run, image, strength: float, steps: int, overrides: dict, seed: int):
    """Versions of the image by SDEdit."""
    pipeline = run.pipeline(ScoreSdeEditPipeline, **overrides)
    call = {"num_inference_steps": steps, "generator": image_generators(seed, range(run.count))}
    return pipeline(image, strength, num_samples=run.count, **call).images


def handle(model, image, strength, count, seed, *sampler):
    count = whole("the number of versions", count, 1, 8)
    settings = {
        "image": fit(image, MODELS.get(model)),
        "strength": real("the strength", strength, 0.05, 1),
        "seed": whole("the seed", seed, 0, MAX_SEED),
        **sampler_settings(*sampler),
    }
    yield from show_images(stream(draw, model, count, settings), [f"version {i + 1}" for i in range(count)])


def build() -> None:
    gr.Markdown(
        "SDEdit: add noise to an image, so that its details drown, and let the network bring it back. What is coarse "
        "stays, what is fine is drawn anew."
    )
    with gr.Row():
        with gr.Column(scale=2):
            model, description = model_choice(FASHION)
            image = picture_input("Image or sketch", "sketch")
            strength = gr.Slider(
                0.05, 1, 0.5, step=0.05, label="Strength", info="How much noise: 0 leaves the image, 1 all is new."
            )
            sampler = Sampler.build(FASHION, steps=200)
            with gr.Row():
                count = gr.Slider(1, 8, 4, step=1, label="Versions")
                seed = seed_choice()
        with gr.Column(scale=3):
            controls = Controls.build("Edit")
            gallery = image_gallery("Versions")
    follow_model(model, description, sampler)
    inputs = [model, image, strength, count, seed, *sampler.inputs]
    controls.connect(handle, inputs, [gallery], "edit")
