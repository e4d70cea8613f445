"""From one image to another, over the latents of the probability flow."""

import gradio as gr
import torch
from diffusers.utils.torch_utils import randn_tensor

from diffusers_sde import ScoreSdeOdePipeline
from diffusers_sde.pipelines.pipeline_score_sde_ode import slerp
from diffusers_sde.seeding import image_generators

from ..layout import Controls, follow_model, image_gallery, model_choice, picture_input, seed_choice, show_images
from ..models import FASHION, MODELS
from ..runs import Run, stream
from ..uploads import MAX_SEED, fit, whole


def draw(run: Run, ends: list):
    """Images along the great circle between two latents; an end is an image, or the seed of a latent."""
    pipeline = run.pipeline(ScoreSdeOdePipeline)
    fractions = torch.linspace(0, 1, run.count, dtype=torch.float64)
    latents = slerp(*(_latent(pipeline, end) for end in ends), fractions)
    return pipeline.decode(latents).images


def _latent(pipeline: ScoreSdeOdePipeline, end) -> torch.Tensor:
    """Shape (1, C, H, W); that of a seed is image 0 of it in Generate."""
    if not isinstance(end, int):
        return pipeline.encode(end).latents
    shape = (1, pipeline.unet.config.in_channels, *pipeline._image_size(None, None))
    noise = randn_tensor(shape, image_generators(end, [0]), pipeline.device, torch.float32)
    return noise * pipeline.scheduler.init_noise_sigma


def handle(model, first, first_seed, last, last_seed, count):
    chosen = MODELS.get(model)
    count = whole("the number of images", count, 2, 16)
    ends = [
        whole("a seed", seed, 0, MAX_SEED) if image is None else fit(image, chosen)
        for image, seed in ((first, first_seed), (last, last_seed))
    ]
    captions = [f"{i / (count - 1):.0%} of the way" for i in range(count)]
    yield from show_images(stream(draw, model, count, {"ends": ends}), captions)


def build() -> None:
    gr.Markdown(
        "The probability-flow ODE takes every image to one latent and back. Walk from one latent to another, and "
        "decode on the way. An end is an image, or, where none is given, the seed below it. The grey model is poor at "
        "high noise: seeds end in noise for nearly every second draw, and between two kinds of garment the path jumps."
    )
    with gr.Row():
        with gr.Column(scale=2):
            model, description = model_choice(FASHION)
            with gr.Row():
                with gr.Column(min_width=140):
                    first = picture_input("First image (or none)", "grey", height=170)
                    first_seed = seed_choice("First seed", 1)
                with gr.Column(min_width=140):
                    last = picture_input("Last image (or none)", "grey", height=170)
                    last_seed = seed_choice("Last seed", 2)
            count = gr.Slider(2, 16, 8, step=1, label="Images")
        with gr.Column(scale=3):
            controls = Controls.build("Interpolate")
            gallery = image_gallery("On the way")
    follow_model(model, description)
    inputs = [model, first, first_seed, last, last_seed, count]
    controls.connect(handle, inputs, [gallery], "interpolate")
