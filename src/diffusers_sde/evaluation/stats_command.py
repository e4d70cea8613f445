"""What `diffusers-sde stats` does."""

from pathlib import Path

import click
from torch.utils.data import Subset

from ..store import check_file
from .command import progress_bar
from .extractors import load_extractor
from .quality import blocks
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
    check_file(output, "statistics of this command", FeatureStatistics.wrote)
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
    batches = blocks(Subset(images, range(count)), options["batch_size"])
    with progress_bar("images", count, show=True) as advance:
        statistics = compute_statistics(batches, network, provenance=provenance, on_progress=advance)
    statistics.save(output)
    click.echo(f"{count} images of {dataset}, split {options['split']}, {' x '.join(map(str, shape))}")
    click.echo(f"images: sha256 {statistics.provenance['images_sha256']}")
    click.echo(f"{network.num_features} features of {network.name}: sha256 {network.fingerprint}")
    if note := statistics.bias_note():
        click.echo(note)
    click.echo(f"statistics: {output}")
    return statistics
