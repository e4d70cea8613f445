"""New images from noise."""

import gradio as gr

from diffusers_sde import ScoreSdeOdePipeline, ScoreSdePipeline
from diffusers_sde.seeding import image_generators

from ..layout import (
    Controls,
    Sampler,
    follow_model,
    image_gallery,
    model_choice,
    sampler_settings,
    seed_choice,
    show_images,
)
from ..models import FASHION
from ..runs import Run, stream
from ..uploads import MAX_SEED, choice, whole

METHODS = ("Predictor-Corrector (SDE)", "Probability flow (ODE)")


def draw(run: Run, method: str, steps: int, overrides: dict, seed: int):
    """Image i is a function of the seed and i."""
    call = {"batch_size": run.count, "generator": image_generators(seed, range(run.count))}
    if method == METHODS[1]:
        return run.pipeline(ScoreSdeOdePipeline)(**call).images
    return run.pipeline(ScoreSdePipeline, **overrides)(num_inference_steps=steps, **call).images


def handle(model, method, count, seed, *sampler):
    settings = {
        "method": choice("the method", method, METHODS),
        "seed": whole("the seed", seed, 0, MAX_SEED),
        **sampler_settings(*sampler),
    }
    count = whole("the number of images", count, 1, 16)
    captions = [f"seed {settings['seed']}, image {i}" for i in range(count)]
    yield from show_images(stream(draw, model, count, settings), captions)


def build() -> None:
    gr.Markdown(
        "Start from pure noise and let the network remove it, little by little. While it runs you see what the "
        "network takes the images to be."
    )
    with gr.Row():
        with gr.Column(scale=2):
            model, description = model_choice(FASHION)
            method = gr.Radio(
                METHODS, value=METHODS[0], label="Method", info="The ODE chooses its own steps and needs few of them."
            )
            sampler = Sampler.build(FASHION, steps=200)
            with gr.Row():
                count = gr.Slider(1, 16, 4, step=1, label="Images")
                seed = seed_choice()
        with gr.Column(scale=3):
            controls = Controls.build("Generate")
            gallery = image_gallery("Images")
    follow_model(model, description, sampler)
    inputs = [model, method, count, seed, *sampler.inputs]
    controls.connect(handle, inputs, [gallery], "generate")
