"""Options that several commands share, and user errors as one line."""

import functools
from pathlib import Path

import click

# Written out, so that `--help` needs no import of torch; tests compare them with what the library has.
PREDICTORS = ("ancestral_sampling", "euler_maruyama", "none", "reverse_diffusion")
CORRECTORS = ("ald", "langevin", "none")
DTYPES = ("float32", "bfloat16", "float16")


def torch_dtype(name: str):
    """The `torch.dtype` of one of `DTYPES`."""
    import torch

    return getattr(torch, name)


def report_errors(function):
    """Report user errors as one line, without a traceback."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).strip().split("\n")[0][:300]
            raise click.ClickException(f"out of memory: {reason} Take fewer or smaller images at once.") from error

    return wrapper


def _is_out_of_memory(error: Exception) -> bool:
    """Whether host or device had too little memory; PyTorch has a class of its own for devices alone."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "not enough memory" in str(error)


class Integers(click.ParamType):
    """Integers of at least 0 with commas between, as a list."""

    name = "integers"

    def convert(self, value, param, ctx) -> list[int]:
        if isinstance(value, list):
            return value
        try:
            numbers = [int(part) for part in value.split(",")]
        except ValueError:
            numbers = [-1]
        if min(numbers) < 0:
            self.fail(f"{value!r} is not a list like 0,3,5 of integers of at least 0.", param, ctx)
        return numbers


class ImageSize(click.ParamType):
    """A number of pixels, or height x width, as (height, width)."""

    name = "size"

    def convert(self, value, param, ctx) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        sides = value.lower().split("x")
        if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
            self.fail(f"{value!r} is neither a number of pixels, like 32, nor height x width, like 32x48.", param, ctx)
        return int(sides[0]), int(sides[-1])


def together(*options):
    """Several options as one decorator, shown in this order."""

    def decorate(function):
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


image_options = together(
    click.argument("images", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path)),
    click.option("--data", default=None, help="Take images of a data set: folder, parquet file, or name on the Hub."),
    click.option("--split", default="test", help="Split of the data set."),
    click.option("--index", type=Integers(), help="Which images of the split, as 0,3,5.  [default: 0]"),
    click.option("--pad", is_flag=True, help="Give small images a black border, as train_sde.py --pad does."),
    click.option("--resize", is_flag=True, help="Resize, crop and convert images to what the network was trained on."),
)

model_options = together(
    click.option(
        "--model", default=None, help="Folder or Hub repository of a pipeline.  [default: the embedded model]"
    ),
    click.option("--device", default=None, help="For instance cpu or cuda.  [default: a GPU if there is one]"),
    click.option("--dtype", type=click.Choice(DTYPES), default="float32", help="Precision of the network."),
)

sampler_options = together(
    click.option(
        "--steps", type=click.IntRange(min=1), default=None, help="Predictor steps.  [default: the scheduler's]"
    ),
    click.option("--predictor", type=click.Choice(PREDICTORS), default=None, help="Overrides the scheduler's."),
    click.option("--corrector", type=click.Choice(CORRECTORS), default=None, help="Overrides the scheduler's."),
    click.option(
        "--snr", type=float, default=None, help="Signal-to-noise ratio of the corrector; overrides likewise."
    ),
)

samples_option = click.option(
    "--num-samples", type=click.IntRange(min=1), default=4, help="Results for each given image."
)

output_options = together(
    click.option("--batch-size", type=click.IntRange(min=1), default=16, help="Images per network evaluation."),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, help="Result i is a function of the seed, i and its input."
    ),
    click.option(
        "--output", type=click.Path(file_okay=False, path_type=Path), default="samples", help="Folder to write."
    ),
    click.option("--overwrite", is_flag=True, help="Replace what another run wrote into the folder."),
)
