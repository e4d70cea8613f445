"""What `diffusers-sde likelihood` does."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch

from ..pipelines import ScoreSdeLikelihoodPipeline
from ..pipelines.base import place
from .likelihood import LikelihoodEvaluation
from .shards import working_in
from .splits import SplitImages

_OPTIONS = {
    "ode": ("dequantization", "num_dequantizations", "num_probes", "solver", "rtol", "atol", "max_nfe"),
    "elbo": ("dequantization", "num_times"),
}
_PROVENANCE = ("data", "data_config", "split", "image_column", "pad", "resize")


def process() -> tuple[int, int, int]:
    """(index, number, index on this machine) of this process, as `accelerate launch` and `torchrun` tell it.

    Read from the environment: the processes never speak to each other, so none can wait for another.
    """
    return tuple(int(os.environ.get(*item)) for item in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))


def run_likelihood(
    model: str | None, output: Path, device: str | None, dtype: torch.dtype, overwrite: bool, options: dict
) -> dict | None:
    """Measure this process's share of a data set, and say what came out.

    Args:
        model: folder or Hub repository; the embedded model if `None`.
        output: JSON file to write.
        device: a GPU if there is one and `None` is given.
        dtype: precision of the network.
        overwrite: whether rows of other settings may be replaced.
        options: the other options of the command, by their names.

    Returns:
        The result if it is complete, else `None`.
    """
    from ..assets import embedded_model_path

    index, count, local = process()
    if device is None:
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    path = embedded_model_path() if model is None else model
    pipeline = place(ScoreSdeLikelihoodPipeline.from_pretrained(path), device, dtype)
    size = pipeline._image_size(None, None)
    preparation = {key: options[key] for key in ("image_column", "pad", "resize")}
    images = SplitImages(
        options["data"],
        options["split"],
        size,
        pipeline.unet.config.in_channels,
        config_name=options["data_config"],
        **preparation,
    )
    method = options["method"]
    evaluation = LikelihoodEvaluation(
        pipeline,
        images,
        output,
        num_images=options["num_images"],
        method=method,
        options={name: options[name] for name in _OPTIONS[method]},
        provenance={"model": "embedded" if model is None else model} | {name: options[name] for name in _PROVENANCE},
        seed=options["seed"],
        batch_size=options["batch_size"],
        process_index=index,
        num_processes=count,
    )
    with working_in(evaluation.folder, index, count):
        evaluation.claim(overwrite)
        with progress_bar("images", len(evaluation.share), show=index == 0) as advance:
            result = evaluation.run(advance)
    click.echo(describe(result, output) if result else f"process {index} of {count} is done; others are not yet.")
    return result


@contextmanager
def progress_bar(description: str, total: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal; gives the function that moves it on by a number."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not show) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)


def describe(result: dict, output: Path) -> str:
    """The result in words."""
    mean, error = (result["bits_per_dim"][key] for key in ("mean", "standard_error"))
    bound = "at most, by the denoising bound" if result["settings"]["method"] == "elbo" else "by the probability flow"
    lines = [f"{_number(mean)} +- {_number(error)} bits/dim {bound}, {result['num_images']} images: {output}"]
    if result["num_not_finite"]:
        lines.append(f"{result['num_not_finite']} images gave no finite number and are left out of the mean.")
    if result.get("num_not_converged"):
        lines.append(f"{result['num_not_converged']} images did not reach the tolerance; see `success` in the rows.")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
