"""How likely an image is."""

import gradio as gr
import torch

from diffusers_sde import ScoreSdeLikelihoodPipeline
from diffusers_sde.sde import draw_probes, log_likelihood, probability_flow
from diffusers_sde.seeding import image_generators

from ..layout import Controls, follow_model, model_choice, picture_input, progress, seed_choice
from ..models import FASHION, MODELS
from ..runs import Run, stream
from ..uploads import MAX_SEED, fit, whole

TIMES = [k / 8 for k in range(7, 0, -1)]  # of the curve, besides both ends
TIME, DENSITY = "t", "nats per dimension"


def measure(run: Run, image, num_probes: int, seed: int) -> dict:
    """Bits per dimension, published as soon as they are known; then the log-density along t."""
    generators = image_generators(seed, [0])
    output = run.pipeline(ScoreSdeLikelihoodPipeline)(image, num_probes=num_probes, generator=generators)
    names = ("bits_per_dim", "bits_per_dim_standard_error", "log_likelihood", "standard_error", "error", "nfe")
    found = {name: float(getattr(output, name)) for name in names}
    found["success"] = bool(output.success)
    run.publish((found, []))
    curve = []
    for point in density_curve(run, output.latents, generators):
        curve.append(point)
        run.publish((found, list(curve)))
    curve.append((0.0, found["log_likelihood"] / image[0].size))
    return found, curve


@torch.no_grad()
def density_curve(run: Run, latents: torch.Tensor, generators):
    """(t, log p_t(x_t) / D) along the probability flow that ends at `latents`, from t = 1 down; one probe for all."""
    sde, dims = run.model.scheduler.sde, latents.numel()
    score_fn = run.model.scheduler.score_fn(run.network)
    probes = draw_probes("rademacher", (1, *latents.shape), generators[0], torch.device("cpu"), latents.dtype)
    yield 1.0, float(sde.prior_log_prob(latents)) / dims
    x, above = latents, 1.0
    for t in TIMES:
        x, above = probability_flow(sde, score_fn, x, above, t, solver="adams").x, t
        found = log_likelihood(sde, score_fn, x, t_start=t, probes=probes.to(x), solver="adams")
        yield t, float(found.log_likelihood) / dims


def summary(found: dict | None) -> str:
    """The figures as Markdown."""
    if found is None:
        return "### … bits/dim"
    known = found["standard_error"] == found["standard_error"]  # NaN for a single probe
    error = f" ± {found['bits_per_dim_standard_error']:.4f}" if known else ""
    nats = f" ± {found['standard_error']:.1f}" if known else " (one probe tells no standard error)"
    warning = "" if found["success"] else "  \n**The solver did not meet its tolerance.**"
    return (
        f"### {found['bits_per_dim']:.4f}{error} bits/dim\n"
        f"log-density {found['log_likelihood']:.1f}{nats} nats; error of the ODE solver {found['error']:.1f} nats; "
        f"{found['nfe']:.0f} evaluations{warning}"
    )


def handle(model, image, num_probes, seed):
    import pandas as pd

    settings = {
        "image": fit(image, MODELS.get(model)),
        "num_probes": whole("the number of probes", num_probes, 1, 16),
        "seed": whole("the seed", seed, 0, MAX_SEED),
    }
    for snapshot in stream(measure, model, 1, settings):
        found, curve = snapshot.result or snapshot.partial or (None, [])
        plot = pd.DataFrame(sorted(curve), columns=[TIME, DENSITY], dtype=float)
        yield summary(found), plot, progress(snapshot)


def build() -> None:
    gr.Markdown(
        "The probability flow carries the image to pure noise, whose density is known, and adds up on the way how it "
        "stretches space. Fewer bits per dimension: more likely. The divergence is estimated by random probes, "
        "hence the standard error."
    )
    with gr.Row():
        with gr.Column(scale=2):
            model, description = model_choice(FASHION)
            image = picture_input("Image", "grey", "sketch")
            num_probes = gr.Slider(1, 16, 4, step=1, label="Probes", info="More are slower and more precise.")
            seed = seed_choice()
        with gr.Column(scale=3):
            controls = Controls.build("Measure")
            figures = gr.Markdown(summary(None), elem_classes="figures")
            plot = gr.LinePlot(
                x=TIME,
                y=DENSITY,
                x_lim=[0, 1],
                x_title="t: from the image (0) to noise (1)",
                y_title="log p(x at t), nats per dimension",
                title="Log-density along t",
                show_label=False,
                height=360,
            )
    follow_model(model, description)
    controls.connect(handle, [model, image, num_probes, seed], [figures, plot], "likelihood")
