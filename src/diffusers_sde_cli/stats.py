"""`diffusers-sde stats`: the reference of FID and its kin, once per data set."""

from pathlib import Path

import click

from .options import ImageSize, report_errors


@click.command()
@click.argument("dataset")
@click.option(
    "--extractor",
    required=True,
    help="inception, dinov2:NAME, clip:NAME, classifier; each also with :PATH; or package.module:function.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="npz file to write.")
@click.option("--split", default="train", help="Split of the data set.")
@click.option("--data-config", default=None, help="Configuration of the data set on the Hub.")
@click.option("--image-column", default=None, help="Column of the images.  [default: the first that holds images]")
@click.option("--size", type=ImageSize(), default=None, help="Side, or HEIGHTxWIDTH.  [default: the first image's]")
@click.option("--channels", type=click.Choice(["1", "3"]), default=None, help="[default: the first image's]")
@click.option("--pad", is_flag=True, help="Give small images a black border, as train_sde.py --pad does.")
@click.option("--resize", is_flag=True, help="Resize, crop and convert images of other sizes or colours.")
@click.option("--num-images", type=click.IntRange(min=2), default=None, help="The first so many.  [default: all]")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, help="Images per network evaluation.")
@click.option("--device", default=None, help="For instance cpu or cuda.  [default: a GPU if there is one]")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@report_errors
def stats(dataset, extractor, output, channels, **options) -> None:
    """Features of all images of DATASET in one file, to compare generated images with.

    DATASET is a name on the Hub, a folder of images or parquet files, or a parquet file.
    """
    from diffusers_sde.evaluation.stats_command import run_stats

    run_stats(dataset, output, extractor, options | {"channels": None if channels is None else int(channels)})
