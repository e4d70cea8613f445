"""What `diffusers-sde suggest noise` and `diffusers-sde suggest snr` do."""

import json
import shlex
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import torch

from ..evaluation.splits import SplitImages
from ..image_folder import load
from ..pipelines import ScoreSdePipeline
from ..seeding import derive_seed
from ..store import locked_file
from .corrector import CorrectorTuning
from .distance import LargestDistance, largest_distance, widen
from .images import choose_format, open_rows, pixels, survey
from .metrics import FrechetDistance, SlicedWasserstein
from .report import describe_noise, describe_snr
from .schedule import DataSummary, moments, suggest_ve, suggest_vp


def run_noise(options: dict) -> dict:
    """Propose a noise schedule for a data set.

    Args:
        options: of the command, by their names.

    Returns:
        What `--json` prints.
    """
    rows = open_rows(
        options["data"],
        options["split"],
        config_name=options["data_config"],
        image_column=options["image_column"],
    )
    found = survey(rows)
    chosen = {name: options[name] for name in ("size", "channels", "pad", "resize")}
    image_format = choose_format(found, **chosen)
    indices = _subset(len(rows), image_format, options)
    with _progress("reading images", len(indices)) as advance:
        images = pixels(rows, image_format, indices.tolist(), advance)
    largest = _largest(rows, image_format, images, indices, options["max_pairs"])
    data = DataSummary(largest.distance / 255, *moments(images))
    unit, centred = (tuple(map(int, (options["data_range"] or usual).split(","))) for usual in ("0,1", "-1,1"))
    height, width = image_format.size
    report = {
        "data": {
            "name": options["data"],
            "split": options["split"],
            "num_images": len(rows),
            "sizes": [[*size, count] for size, count in found.sizes.most_common()],
            "modes": dict(found.modes.most_common()),
            "height": height,
            "width": width,
            "channels": image_format.channels,
            "pad": image_format.pad,
        },
        "largest_distance": {
            "distance": data.distance,
            "upper_bound": largest.upper_bound / 255 if largest.upper_bound < float("inf") else None,
            "exact": largest.exact,
            "pair": list(largest.pair),
            "num_images": len(indices),
            "num_pairs": largest.num_pairs,
        },
        "ve": suggest_ve(data, unit, options["overlap"], options["ald_steps"]),
        **{name: suggest_vp(name, data, centred) for name in ("vp", "subvp")},
        "data_flags": _data_flags(options, image_format),
    }
    if options["as_json"]:
        click.echo(json.dumps(report, indent=2))
    else:
        describe_noise(report)
    return report


def _subset(num_images: int, image_format, options: dict) -> torch.Tensor:
    """Numbers of the images to read: all, or as many as asked for and as memory takes, at random."""
    height, width = image_format.size
    fitting = int(options["memory_limit"] * 1e9) // (image_format.channels * height * width)
    wanted = num_images if options["num_images"] is None else options["num_images"]
    count = min(num_images, wanted, max(2, fitting))
    if count == num_images:
        return torch.arange(num_images)
    generator = torch.Generator().manual_seed(derive_seed(options["seed"]))
    return torch.randperm(num_images, generator=generator)[:count].sort().values


def _largest(rows, image_format, images: torch.Tensor, indices: torch.Tensor, max_pairs: int) -> LargestDistance:
    """The largest distance between the images read, and then by sweeps over those that were not."""
    with _progress("comparing pairs", None) as advance:
        largest = largest_distance(images, max_pairs, advance)
    if len(images) == len(rows):
        return largest
    largest = replace(largest, pair=tuple(int(indices[number]) for number in largest.pair))
    with _progress("sweeping over all images", None) as advance:
        return widen(largest, lambda numbers: pixels(rows, image_format, numbers, advance), len(rows))


def _data_flags(options: dict, image_format) -> str:
    height, width = image_format.size
    flags = [
        f"--data {shlex.quote(options['data'])}",
        f"--resolution {height if height == width else f'{height}x{width}'}",
    ]
    if options["data_config"] is not None:
        flags.append(f"--dataset_config_name {shlex.quote(options['data_config'])}")
    if options["image_column"] is not None:
        flags.append(f"--image_column {shlex.quote(options['image_column'])}")
    flags += ["--pad"] * image_format.pad + ["--center_crop"] * options["resize"]
    return " ".join([*flags, f"--channels {image_format.channels}"])


def run_snr(model: str | None, output: Path, device: str | None, dtype: torch.dtype, options: dict) -> CorrectorTuning:
    """Tune the corrector of a model.

    Args:
        model: folder or Hub repository; the embedded model if `None`.
        output: JSON file of the values.
        device: a GPU if there is one and `None` is given.
        dtype: precision of the network.
        options: the other options of the command, by their names.

    Returns:
        The tuning, complete.
    """
    sampler = {name: options[name] for name in ("predictor", "corrector", "correct_steps")}
    pipeline = load(ScoreSdePipeline, model, device=device, dtype=dtype, **sampler)
    metric, floor, num_data = _measure_data(pipeline, options)
    preparation = {name: options[name] for name in ("data", "data_config", "split", "image_column", "pad", "resize")}
    with locked_file(output):
        tuning = CorrectorTuning(
            pipeline,
            metric,
            output,
            **{name: options[name] for name in ("num_samples", "steps", "seed", "batch_size", "overwrite")},
            provenance={"model": model or "embedded", **preparation, "num_data": num_data},
            floor=floor,
        )
        _run(tuning, options["snr_grid"])
        for _ in range(options["refine"]):
            _run(tuning, tuning.finer_grid())
    describe_snr(tuning)
    return tuning


def _measure_data(pipeline, options: dict):
    """The metric with the data as its reference, the distance of held-back data from it, and the number of images."""
    size, channels = pipeline._image_size(None, None), pipeline.unet.config.in_channels
    preparation = {name: options[name] for name in ("image_column", "pad", "resize")}
    images = SplitImages(
        options["data"], options["split"], size, channels, config_name=options["data_config"], **preparation
    )
    count = len(images) if options["num_data"] is None else min(options["num_data"], len(images))
    held_back = options["num_samples"]
    if count < 2 * held_back:
        raise ValueError(
            f"{count} images of data are compared with --num-samples {held_back}; as many again are held back to show "
            f"what data score, so that at least {2 * held_back} are needed. Take fewer samples or more data."
        )
    if options["metric"] == "sliced":
        metric = SlicedWasserstein(channels * size[0] * size[1], seed=options["seed"])
    else:
        from ..evaluation.extractors import load_extractor

        metric = FrechetDistance(load_extractor(options["extractor"], pipeline.device))
    generator = torch.Generator().manual_seed(derive_seed(options["seed"], count))
    order = torch.randperm(len(images), generator=generator)[:count].tolist()
    features = []
    with _progress("features of the data", count) as advance:
        for start in range(0, count, options["batch_size"]):
            numbers = order[start : start + options["batch_size"]]
            features.append(metric.features(torch.stack([images[number] for number in numbers])))
            advance(len(numbers))
    features = torch.cat(features)
    metric.set_reference(features[held_back:])
    return metric, metric.distance(features[:held_back]), count


def _run(tuning: CorrectorTuning, grid: list[float]) -> None:
    missing = tuning.missing(grid)
    batches = -(-tuning.num_samples // tuning.batch_size)
    with _progress(f"sampling at {len(missing)} values, steps", len(missing) * batches * tuning.steps) as advance:
        tuning.run(grid, lambda: advance(1))


@contextmanager
def _progress(description: str, total: int | None):
    """A progress bar on the error stream, as a function that moves it on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)
