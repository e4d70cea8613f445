"""Garments of one's choice."""

import gradio as gr

from diffusers_sde import ScoreSdeClassConditionalPipeline
from diffusers_sde.seeding import image_generators

from ..layout import Controls, Sampler, image_gallery, sampler_settings, seed_choice, show_images
from ..models import FASHION, LABELS, load_classifier
from ..runs import Run, stream
from ..uploads import MAX_SEED, choice, real, whole

MOST = 20


def draw(run: Run, labels: list[int], guidance_scale: float, steps: int, overrides: dict, seed: int):
    """One image per label; image i is a function of the seed, i and its label."""
    pipeline = run.pipeline(ScoreSdeClassConditionalPipeline, {"classifier": load_classifier()}, **overrides)
    call = {"num_inference_steps": steps, "generator": image_generators(seed, range(run.count))}
    return pipeline(labels, guidance_scale=guidance_scale, **call).images


def handle(names, number, guidance_scale, seed, *sampler):
    if not names:
        raise ValueError("no class is chosen: tick at least one.")
    number = whole("the number of images per class", number, 1, 4)
    if len(names) * number > MOST:
        raise ValueError(
            f"{len(names) * number} images are asked for; at most {MOST}: choose fewer classes, or fewer of each."
        )
    labels = [LABELS.index(choice("a class", name, LABELS)) for name in names for _ in range(number)]
    settings = {
        "labels": labels,
        "guidance_scale": real("the guidance scale", guidance_scale, 0, 10),
        "seed": whole("the seed", seed, 0, MAX_SEED),
        **sampler_settings(*sampler),
    }
    captions = [LABELS[label] for label in labels]
    yield from show_images(stream(draw, FASHION, len(labels), settings), captions)


def build() -> None:
    gr.Markdown(
        "The network knows nothing of classes. A classifier of noisy images pulls its draws towards the chosen ones: "
        "∇ log p(x | class) = ∇ log p(x) + scale · ∇ log p(class | x)."
    )
    with gr.Row():
        with gr.Column(scale=2):
            names = gr.CheckboxGroup(LABELS, value=["Trouser", "Sneaker", "Bag", "Ankle boot"], label="Classes")
            number = gr.Slider(1, 4, 1, step=1, label="Images of each")
            scale = gr.Slider(
                0, 10, 3, step=0.5, label="Guidance scale", info="0: any class. Larger: more typical, less diverse."
            )
            sampler = Sampler.build(FASHION)
            seed = seed_choice()
        with gr.Column(scale=3):
            controls = Controls.build("Draw")
            gallery = image_gallery("Images")
    inputs = [names, number, scale, seed, *sampler.inputs]
    controls.connect(handle, inputs, [gallery], "class_conditional")
