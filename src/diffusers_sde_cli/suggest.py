"""`diffusers-sde suggest`: a noise schedule from data, and the corrector's signal-to-noise ratio from samples."""

from pathlib import Path

import click

from .options import CORRECTORS, PREDICTORS, ImageSize, model_options, report_errors, together, torch_dtype


class Numbers(click.ParamType):
    """Numbers of at least 0 with commas between, as a list in ascending order."""

    name = "numbers"

    def convert(self, value, param, ctx) -> list[float]:
        if isinstance(value, list):
            return value
        try:
            numbers = sorted({float(part) for part in value.split(",")})
        except ValueError:
            numbers = [-1.0]
        if not 0 <= numbers[0] <= numbers[-1] < float("inf"):
            self.fail(f"{value!r} is not a list like 0,0.1,0.2 of numbers of at least 0.", param, ctx)
        return numbers


def data_options(split: str):
    """Options of the data, with a default for the split."""
    return together(
        click.option("--data", required=True, help="Local images, parquet or npz files, or name on the Hub."),
        click.option("--data-config", default=None, help="Configuration of the data set on the Hub."),
        click.option("--split", default=split, help="Split of the data set."),
        click.option("--image-column", default=None, help="Column of the images.  [default: the first with images]"),
        click.option("--pad", is_flag=True, help="Give small images a black border, as train_sde.py --pad does."),
        click.option("--resize", is_flag=True, help="Resize images of other sizes, and crop them at the centre."),
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def suggest() -> None:
    """Propose a noise schedule for a data set, or a corrector for a model."""


@suggest.command()
@data_options("train")
@click.option("--size", type=ImageSize(), help="To train on, as 32 or 32x48.  [default: the images', up to times 8]")
@click.option("--channels", type=click.IntRange(1, 4), help="To convert to.  [default: the fewest without loss]")
@click.option("--num-images", type=click.IntRange(min=2), help="Search a random subset of so many.  [default: all]")
@click.option("--memory-limit", type=click.FloatRange(min=0), default=2.0, help="GB of images; else a subset, too.")
@click.option("--max-pairs", type=click.IntRange(min=1), default=2 * 10**9, help="Most pairs of images to compare.")
@click.option("--data-range", type=click.Choice(["0,1", "-1,1"]), help="Of the network.  [default: VE 0,1; VP -1,1]")
@click.option("--overlap", type=float, default=0.5, help="Of neighbouring noise levels.")
@click.option("--ald-steps", type=click.IntRange(min=1), default=5, help="Langevin steps per noise level.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the random subset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@report_errors
def noise(**options) -> None:
    """Propose sigma_max, sigma_min, noise levels and beta_max from the images, as flags of train_sde.py.

    sigma_max is the largest distance between two images, found exactly without comparing most of them.
    """
    from diffusers_sde.suggest.command import run_noise

    run_noise(options)


@suggest.command()
@model_options
@data_options("test")
@click.option("--num-data", type=click.IntRange(min=1), help="Images of data, at random.  [default: all]")
@click.option("--snr-grid", type=Numbers(), default="0,0.05,0.1,0.2,0.3", help="Values to try; 0 is no corrector.")
@click.option("--refine", type=click.IntRange(min=0), default=1, help="Rounds of halving the grid about the best.")
@click.option("--metric", type=click.Choice(["sliced", "frechet"]), default="sliced", help="Of pixels; of features.")
@click.option("--extractor", default="classifier", help="Of --metric frechet, as for evaluate.")
@click.option("--num-samples", type=click.IntRange(min=16), default=256, help="Images per value.")
@click.option("--steps", type=click.IntRange(min=1), default=None, help="Predictor steps.  [default: the scheduler's]")
@click.option("--predictor", type=click.Choice(PREDICTORS), default=None, help="Overrides the scheduler's.")
@click.option("--corrector", type=click.Choice(CORRECTORS), default=None, help="Overrides the scheduler's.")
@click.option("--correct-steps", type=click.IntRange(min=1), default=None, help="Overrides likewise.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, help="Images per network evaluation.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Image i is the same function of it at every snr.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file to write.")
@click.option("--overwrite", is_flag=True, help="Replace values of other settings.")
@report_errors
def snr(model, output, device, dtype, **options) -> None:
    """Try values of the corrector's snr, and say how far the samples of each are from data.

    An interrupted run goes on where it stopped when it is started again with the same options, and other values of
    the grid add to what is there.
    """
    from diffusers_sde.suggest.command import run_snr

    run_snr(model, output, device, torch_dtype(dtype), options)
