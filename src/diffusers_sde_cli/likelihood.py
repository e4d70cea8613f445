"""`diffusers-sde likelihood`: bits per dimension of a data set, image by image."""

from pathlib import Path

import click

from .options import model_options, report_errors, torch_dtype


@click.command()
@model_options
@click.option("--data", required=True, help="Name on the Hub, folder of images or parquet files, or a parquet file.")
@click.option("--data-config", default=None, help="Configuration of the data set on the Hub.")
@click.option("--split", default="test", help="Split of the data set.")
@click.option("--image-column", default=None, help="Column of the images.  [default: the first that holds images]")
@click.option("--pad", is_flag=True, help="Give small images a black border, as train_sde.py --pad does.")
@click.option("--resize", is_flag=True, help="Resize, crop and convert images that the network does not take.")
@click.option("--num-images", type=click.IntRange(min=1), default=None, help="The first so many.  [default: all]")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, help="Images per network evaluation.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file to write.")
@click.option("--method", type=click.Choice(["ode", "elbo"]), default="ode", help="Likelihood, or denoising bound.")
@click.option("--dequantization", type=click.Choice(["uniform", "none"]), default="uniform", help="Of 8-bit images.")
@click.option("--num-dequantizations", type=click.IntRange(min=1), default=1, help="Draws, averaged as densities.")
@click.option("--num-probes", type=click.IntRange(min=1), default=1, help="Random vectors for the divergence.")
@click.option("--num-times", type=click.IntRange(min=2), default=64, help="Times of the bound.")
@click.option("--solver", type=click.Choice(["adams", "dopri5"]), default="adams", help="Multistep; Runge-Kutta.")
@click.option("--rtol", type=float, default=None, help="Relative tolerance.  [default: the solver's]")
@click.option("--atol", type=float, default=None, help="Absolute tolerance.  [default: the solver's]")
@click.option("--max-nfe", type=click.IntRange(min=1), default=10_000, help="Most evaluations per image.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Fixes noise and probes of image i with i alone.")
@click.option("--overwrite", is_flag=True, help="Replace rows of other settings.")
@report_errors
def likelihood(model, output, device, dtype, overwrite, **options) -> None:
    """Bits per dimension of a data set, image by image.

    An interrupted run goes on where it stopped when it is started again with the same options. Started by
    `accelerate launch` or `torchrun`, the processes share the images.
    """
    from diffusers_sde.evaluation.command import run_likelihood

    run_likelihood(model, output, device, torch_dtype(dtype), overwrite, options)
