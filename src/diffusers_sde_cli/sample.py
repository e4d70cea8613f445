"""`diffusers-sde sample`: images of a model by Predictor-Corrector sampling."""

from pathlib import Path

import click

from .options import CORRECTORS, PREDICTORS, model_options, report_errors, torch_dtype


@click.command()
@model_options
@click.option("--num-images", type=click.IntRange(min=1), default=16, help="Number of images.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, help="Images per network evaluation.")
@click.option("--steps", type=click.IntRange(min=1), default=None, help="Predictor steps.  [default: the scheduler's]")
@click.option("--predictor", type=click.Choice(PREDICTORS), default=None, help="Overrides the scheduler's.")
@click.option("--corrector", type=click.Choice(CORRECTORS), default=None, help="Overrides the scheduler's.")
@click.option("--snr", type=float, default=None, help="Signal-to-noise ratio of the corrector; overrides likewise.")
@click.option("--probability-flow/--no-probability-flow", default=None, help="Follow the ODE; overrides likewise.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Image i is a function of the seed and i alone.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default="samples", help="Folder to write.")
@click.option("--grid/--no-grid", default=True, help="Whether to write all images as one picture, too.")
@click.option("--overwrite", is_flag=True, help="Replace what another run wrote into the folder.")
@report_errors
def sample(
    model,
    num_images,
    batch_size,
    steps,
    predictor,
    corrector,
    snr,
    probability_flow,
    seed,
    device,
    dtype,
    output,
    grid,
    overwrite,
) -> None:
    """Draw images by Predictor-Corrector sampling and write them as PNG.

    An interrupted run goes on where it stopped when it is started again with the same options.
    """
    from diffusers_sde.image_folder import FLOW_NOTE
    from diffusers_sde.sampling import SampleSet, load_pipeline

    pipeline = load_pipeline(
        model,
        device=device,
        dtype=torch_dtype(dtype),
        predictor=predictor,
        corrector=corrector,
        snr=snr,
        probability_flow=probability_flow,
    )
    if model is None and pipeline.scheduler.config.probability_flow:
        click.echo(FLOW_NOTE, err=True)
    options = {"num_images": num_images, "steps": steps, "seed": seed, "overwrite": overwrite, "grid": grid}
    with SampleSet(pipeline, output, **options) as samples:
        samples.draw(batch_size)
        click.echo(f"{num_images} images in {output}")
        if grid:
            click.echo(f"grid: {samples.write_grid()}")
