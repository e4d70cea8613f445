"""The command line: `diffusers-sde`."""

import functools
from pathlib import Path

import click
import torch

from . import __version__
from .sde import corrector_names, predictor_names

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def report_errors(function):
    """Show what a user can mend as one message instead of a traceback."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error

    return wrapper


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="diffusers-sde")
def main() -> None:
    """Score-based generative modelling through SDEs, on diffusers."""


@main.command()
@click.option("--model", default=None, help="Folder or Hub repository of a pipeline.  [default: the embedded model]")
@click.option("--num-images", type=click.IntRange(min=1), default=16, help="Number of images.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, help="Images per network evaluation.")
@click.option("--steps", type=click.IntRange(min=1), default=None, help="Predictor steps.  [default: the scheduler's]")
@click.option("--predictor", type=click.Choice(predictor_names()), default=None, help="Overrides the scheduler's.")
@click.option("--corrector", type=click.Choice(corrector_names()), default=None, help="Overrides the scheduler's.")
@click.option("--snr", type=float, default=None, help="Signal-to-noise ratio of the corrector; overrides likewise.")
@click.option("--probability-flow/--no-probability-flow", default=None, help="Follow the ODE; overrides likewise.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Image i is a function of the seed and i alone.")
@click.option("--device", default=None, help="For instance cpu or cuda.  [default: a GPU if there is one]")
@click.option("--dtype", type=click.Choice(list(_DTYPES)), default="float32", help="Precision of the network.")
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
    from .sampling import SampleSet, load_pipeline

    pipeline = load_pipeline(
        model,
        device=device,
        dtype=_DTYPES[dtype],
        predictor=predictor,
        corrector=corrector,
        snr=snr,
        probability_flow=probability_flow,
    )
    samples = SampleSet(pipeline, output, num_images=num_images, steps=steps, seed=seed, overwrite=overwrite)
    samples.draw(batch_size)
    click.echo(f"{num_images} images in {output}")
    if grid:
        click.echo(f"grid: {samples.write_grid()}")


if __name__ == "__main__":
    main()
