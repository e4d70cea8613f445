"""What is behind a mask."""

import gradio as gr

from diffusers_sde import ScoreSdeInpaintPipeline
from diffusers_sde.seeding import image_generators

from ..layout import (
    Controls,
    Sampler,
    example_files,
    follow_model,
    image_gallery,
    model_choice,
    sampler_settings,
    seed_choice,
    show_images,
)
from ..models import FASHION, MODELS
from ..runs import Run, stream
from ..uploads import EDITOR_SIZE, MAX_SEED, MaskedPicture, fit, fit_mask, whole


def draw(run: Run, image, mask, steps: int, overrides: dict, seed: int):
    """Several versions of what the mask hides; known pixels stay as they are."""
    pipeline = run.pipeline(ScoreSdeInpaintPipeline, **overrides)
    call = {"num_inference_steps": steps, "generator": image_generators(seed, range(run.count))}
    return pipeline(image, mask, num_samples=run.count, **call).images


def handle(model, masked, count, seed, *sampler):
    if masked is None:
        raise ValueError("an image is missing: upload one, or take one of the examples, and paint on it.")
    image, mask = masked
    chosen = MODELS.get(model)
    count = whole("the number of versions", count, 1, 8)
    painted = fit_mask(mask, chosen)
    low, high = painted.getextrema()
    if low == high:
        raise ValueError(
            "nothing is painted on the image: paint what shall be drawn anew."
            if high == 0
            else "all of the image is painted over: leave something that is known, or use Generate."
        )
    settings = {
        "image": fit(image, chosen),
        "mask": painted,
        "seed": whole("the seed", seed, 0, MAX_SEED),
        **sampler_settings(*sampler),
    }
    yield from show_images(stream(draw, model, count, settings), [f"version {i + 1}" for i in range(count)])


def build() -> None:
    gr.Markdown("Paint over a part of the image; the network draws it anew so that it fits the rest.")
    with gr.Row():
        with gr.Column(scale=2):
            model, description = model_choice(FASHION)
            masked = MaskedPicture(
                label="Image and mask",
                type="pil",
                format="png",
                sources=["upload", "clipboard"],
                transforms=(),
                layers=False,
                buttons=[],
                brush=gr.Brush(default_size=48, colors=["#ff7a45"], default_color="#ff7a45", color_mode="fixed"),
                canvas_size=(EDITOR_SIZE, EDITOR_SIZE),
                fixed_canvas=True,
                height=EDITOR_SIZE + 100,
            )
            examples = [{"background": path, "layers": [], "composite": path} for (path,) in example_files("large")]
            gr.Examples([[example] for example in examples], [masked], label="Examples")
            sampler = Sampler.build(FASHION)
            with gr.Row():
                count = gr.Slider(1, 8, 4, step=1, label="Versions")
                seed = seed_choice()
        with gr.Column(scale=3):
            controls = Controls.build("Inpaint")
            gallery = image_gallery("Versions")
    follow_model(model, description, sampler)
    inputs = [model, masked, count, seed, *sampler.inputs]
    controls.connect(handle, inputs, [gallery], "inpaint")
