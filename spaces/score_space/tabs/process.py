"""The forward and the reverse process of one image, side by side."""

import gradio as gr
import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from diffusers_sde import ScoreSdeEditPipeline
from diffusers_sde.seeding import image_generators

from ..layout import (
    Controls,
    Sampler,
    follow_model,
    model_choice,
    picture_input,
    progress,
    sampler_settings,
    seed_choice,
)
from ..models import FASHION, MODELS
from ..pictures import is_centered, noisy_picture, strip
from ..runs import Run, stream
from ..uploads import MAX_SEED, fit, whole

TIMES = np.linspace(0, 1, 9)  # of the columns


def draw(run: Run, image, steps: int, overrides: dict, seed: int):
    """The strip, published column by column while the reverse process makes them."""
    pipeline = run.pipeline(ScoreSdeEditPipeline, **overrides)
    sde = pipeline.scheduler.sde
    x_0 = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255
    x_0 = 2 * x_0 - 1 if is_centered(run.model) else x_0
    noise = randn_tensor(x_0.shape, image_generators(seed, [0]))  # what the pipeline draws first, too

    def picture(x: torch.Tensor, t: float):
        return noisy_picture(x[0].float().cpu(), t, run.model)

    forward = [picture(x_0 if t == 0 else sde.perturb(x_0, noise, torch.tensor(t)), t) for t in TIMES]
    reverse, guesses = [None] * len(TIMES), [None] * len(TIMES)
    reverse[-1] = forward[-1]
    columns = [f"t = {t:.3g}" for t in TIMES]

    def sheet():
        rows = {
            "forward,\nto the right": forward,
            "reverse,\nto the left": reverse,
            "the network's\nguess there": guesses,
        }
        return strip(rows, columns)

    def on_step_end(pipeline, step, timestep, tensors):
        times = pipeline.scheduler.times
        t, s = float(times[step]), float(times[step + 1]) if step + 1 < len(times) else 0.0
        for k in np.flatnonzero((TIMES < t) & (TIMES >= s)):
            reverse[k] = picture(tensors["latents"], s)
        for k in np.flatnonzero((TIMES <= t) & (TIMES > s) | (s == 0) & (TIMES == 0)):
            guesses[k] = run.guess()[0]
        run.publish(sheet())
        return {}

    run.publish(sheet())
    call = {"num_inference_steps": steps, "generator": image_generators(seed, [0])}
    pipeline(image, strength=1.0, callback_on_step_end=on_step_end, **call)
    return sheet()


def handle(model, image, seed, *sampler):
    settings = {
        "image": fit(image, MODELS.get(model)),
        "seed": whole("the seed", seed, 0, MAX_SEED),
        **sampler_settings(*sampler),
    }
    for snapshot in stream(draw, model, 1, settings):
        sheet = snapshot.result or snapshot.partial
        yield gr.skip() if sheet is None else sheet, progress(snapshot)


def build() -> None:
    gr.Markdown(
        "The forward process drowns an image in noise. The reverse process starts from that very noise and ends in "
        "an image of the model: not the same one, since the noise remembers nothing. Each picture is shown in its own "
        "contrast."
    )
    with gr.Row():
        with gr.Column(scale=2):
            model, description = model_choice(FASHION)
            image = picture_input("Image", "grey")
            sampler = Sampler.build(FASHION, steps=150)
            seed = seed_choice()
        with gr.Column(scale=5):
            controls = Controls.build("Run both")
            sheet = gr.Image(
                label="Forward and reverse process",
                show_label=False,
                format="png",
                interactive=False,
                elem_classes="strip",
                alt_text="States of the forward and the reverse process, and the network's guesses, along t",
                buttons=["download", "fullscreen"],
            )
    follow_model(model, description, sampler)
    controls.connect(handle, [model, image, seed, *sampler.inputs], [sheet], "process")
