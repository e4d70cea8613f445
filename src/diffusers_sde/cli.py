"""The command line: `diffusers-sde`."""

from pathlib import Path

import click

from . import __version__
from .commands.conditional import class_conditional, colorize, edit, inpaint, restore
from .commands.evaluate import evaluate
from .commands.options import DTYPES, model_options, report_errors
from .commands.stats import stats
from .commands.suggest import suggest
from .sde import corrector_names, predictor_names


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="diffusers-sde")
def main() -> None:
    """Score-based generative modelling through SDEs, on diffusers."""


for command in (inpaint, colorize, class_conditional, restore, edit, evaluate, stats, suggest):
    main.add_command(command)


@main.command()
@model_options
@click.option("--num-images", type=click.IntRange(min=1), default=16, help="Number of images.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, help="Images per network evaluation.")
@click.option("--steps", type=click.IntRange(min=1), default=None, help="Predictor steps.  [default: the scheduler's]")
@click.option("--predictor", type=click.Choice(predictor_names()), default=None, help="Overrides the scheduler's.")
@click.option("--corrector", type=click.Choice(corrector_names()), default=None, help="Overrides the scheduler's.")
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
    from .sampling import SampleSet, load_pipeline

    pipeline = load_pipeline(
        model,
        device=device,
        dtype=DTYPES[dtype],
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


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option("--config", default=None, help="Name of an official configuration (see --list), or a JSON file of one.")
@click.option("--classifier", is_flag=True, help="The file is the noise-conditional classifier; no --config then.")
@click.option("--output", type=click.Path(path_type=Path), default=None, help="Folder to write.")
@click.option("--ema/--no-ema", default=True, help="Moving average of the weights, or the raw ones.")
@click.option(
    "--layout",
    type=click.Choice(["diffusers_sde", "native", "remote_code"]),
    default="diffusers_sde",
    help="native loads without this package, where diffusers can express the network exactly.",
)
@click.option("--push-to-hub", metavar="ORG/NAME", default=None, help="Upload the folder, too.")
@click.option("--verify", is_flag=True, help="Draw a small grid with the result, and check that it is finite.")
@click.option("--verify-steps", type=click.IntRange(min=1), default=20, help="Predictor steps for --verify.")
@click.option("--overwrite", is_flag=True, help="Replace the model in the output folder.")
@click.option("--list", "list_configs", is_flag=True, help="List the official configurations.")
@report_errors
def convert(
    checkpoint, config, classifier, output, ema, layout, push_to_hub, verify, verify_steps, overwrite, list_configs
) -> None:
    """Convert an official checkpoint, PyTorch or JAX, into a safetensors repository.

    The output folder appears when it is complete; an interrupted run leaves nothing that loads.
    """
    from .conversion.command import run_classifier, run_convert, show_configs

    if list_configs:
        show_configs()
        return
    for value, name in ((checkpoint, "CHECKPOINT"), (output, "--output"), (config or classifier, "--config")):
        if not value:
            raise click.UsageError(f"{name} is missing; `diffusers-sde convert --list` shows the configurations.")
    if classifier:
        if config is not None or layout != "diffusers_sde" or verify or not ema:
            raise click.UsageError("--classifier goes with --output, --push-to-hub and --overwrite only.")
        run_classifier(checkpoint, output, push=push_to_hub, overwrite=overwrite)
        return
    run_convert(
        checkpoint,
        config,
        output,
        use_ema=ema,
        layout=layout,
        push=push_to_hub,
        verify=verify,
        verify_steps=verify_steps,
        overwrite=overwrite,
    )


@main.command()
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
    from .evaluation.command import run_likelihood

    run_likelihood(model, output, device, DTYPES[dtype], overwrite, options)


if __name__ == "__main__":
    main()
