"""What `diffusers-sde stats` does."""

from collections.abc import Iterator
from pathlib import Path

import click
import torch

from .extractors import load_extractor
from .splits import SplitImages
from .statistics import FeatureStatistics, compute_statistics

_PREPARATION = ("image_column", "pad", "resize")


def run_stats(dataset: str, output: Path, extractor: str, options: dict) -> FeatureStatistics:
    """Write the statistics of the images of a data set, as they are: 8-bit, in their order, nothing flipped.

    Args:
        dataset: name on the Hub, a folder of images or parquet files, or one parquet file.
        output: npz file to write.
        extractor: see `extractors.load_extractor`.
        options: the other options of the command, by their names.

    Raises:
        ValueError: if the file exists and may not be replaced, or data set, images and extractor do not fit.
    """
    if output.suffix != ".npz":
        raise ValueError(f"--output is {output}; statistics are npz files, {output.with_suffix('.npz')} for instance.")
    if output.exists() and not options["overwrite"]:
        raise ValueError(f"{output} exists. Choose another --output, or pass --overwrite to replace it.")
    preparation = {name: options[name] for name in _PREPARATION}
    images = SplitImages(
        dataset,
        options["split"],
        options["size"],
        options["channels"],
        config_name=options["data_config"],
        **preparation,
    )
    count = len(images) if options["num_images"] is None else options["num_images"]
    if count > len(images):
        raise ValueError(f"--num-images is {count}; split {options['split']!r} of {dataset} has {len(images)}.")
    shape = [images.format.channels, *images.format.size]
    provenance = {
        "data": dataset,
        "data_config": options["data_config"],
        "split": options["split"],
        "shape": shape,
        **preparation,
    }
    network = load_extractor(extractor, options["device"])
    statistics = _with_progress(_batches(images, count, options["batch_size"]), network, provenance, count)
    statistics.save(output)
    click.echo(f"{count} images of {dataset}, split {options['split']}, {' x '.join(map(str, shape))}")
    click.echo(f"images: sha256 {statistics.provenance['images_sha256']}")
    click.echo(f"{network.num_features} features of {network.name}: sha256 {network.fingerprint}")
    if note := statistics.bias_note():
        click.echo(note)
    click.echo(f"statistics: {output}")
    return statistics


def _batches(images: SplitImages, count: int, batch_size: int) -> Iterator[torch.Tensor]:
    for start in range(0, count, batch_size):
        yield torch.stack([images[index] for index in range(start, min(start + batch_size, count))])


def _with_progress(batches: Iterator[torch.Tensor], extractor, provenance: dict, total: int) -> FeatureStatistics:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("images", total=total)

        def advance(done: int) -> None:
            progress.advance(task, done)

        return compute_statistics(batches, extractor, provenance=provenance, on_progress=advance)
