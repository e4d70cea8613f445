"""The command `evaluate`: metrics of a model or a set of images, results side by side, rows of the paper's tables."""

from pathlib import Path

import click

from .options import CORRECTORS, PREDICTORS, model_options, report_errors, together, torch_dtype


class Names(click.ParamType):
    """Names with commas between, as a list."""

    name = "names"

    def convert(self, value, param, ctx) -> list[str]:
        return value if isinstance(value, list) else [name.strip() for name in value.split(",") if name.strip()]


data_options = together(
    click.option("--data", default=None, help="Name on the Hub, folder of images or parquet files, or parquet file."),
    click.option("--data-config", default=None, help="Configuration of the data set on the Hub."),
    click.option("--image-column", default=None, help="Column of the images.  [default: the first that holds images]"),
    click.option("--pad", is_flag=True, help="Give small images a black border, as train_sde.py --pad does."),
    click.option("--resize", is_flag=True, help="Resize, crop and convert images that the network does not take."),
    click.option("--split", default="test", help="Split for loss and bpd."),
    click.option("--num-images", type=click.IntRange(min=1), default=None, help="Its first so many.  [default: all]"),
    click.option("--reference-split", default="train", help="Split that samples are compared with."),
    click.option("--num-reference", type=click.IntRange(min=2), default=None, help="Its first so many, likewise."),
    click.option(
        "--statistics",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        default=None,
        help="Statistics that samples are compared with, instead of a split.",
    ),
)

sampling_options = together(
    click.option(
        "--samples",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=None,
        help="Measure the images in this folder, pictures or shards of another run, instead of drawing.",
    ),
    click.option("--num-samples", type=click.IntRange(min=2), default=50_000, help="Images to draw."),
    click.option(
        "--sampler", type=click.Choice(["pc", "ode"]), default="pc", help="Predictor-Corrector, or adaptive."
    ),
    click.option("--steps", type=click.IntRange(min=1), default=None, help="Of pc.  [default: the scheduler's]"),
    click.option("--predictor", type=click.Choice(PREDICTORS), default=None, help="Overrides the scheduler's."),
    click.option("--corrector", type=click.Choice(CORRECTORS), default=None, help="Overrides likewise."),
    click.option("--snr", type=float, default=None, help="Signal-to-noise ratio of the corrector; likewise."),
    click.option("--correct-steps", type=click.IntRange(min=0), default=None, help="Per predictor step; likewise."),
    click.option("--probability-flow/--no-probability-flow", default=None, help="Predict along the ODE; likewise."),
    click.option(
        "--denoise/--no-denoise", default=None, help="Remove the last noise.  [default: pc: the scheduler's; ode: no]"
    ),
    click.option("--shard-size", type=click.IntRange(min=1), default=500, help="Images per file; lost by a kill."),
)

metric_options = together(
    click.option("--metrics", type=Names(), default="fid,is", help="Of loss, bpd, fid, is, kid, precision_recall."),
    click.option(
        "--extractor",
        default=None,
        help="inception[:PATH], dinov2:NAME, clip:NAME, classifier[:PATH], or module:function.  [default: classifier "
        "for the embedded model, else inception]",
    ),
    click.option("--noise-levels", type=click.IntRange(min=1), default=10, help="Parts of the time axis for loss."),
    click.option("--bpd-method", type=click.Choice(["ode", "elbo"]), default="ode", help="Likelihood, or its bound."),
    click.option("--solver", type=click.Choice(["adams", "dopri5"]), default="adams", help="Of ode, for both."),
)


@click.command()
@click.argument("results", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--compare", is_flag=True, help="Show RESULTS of earlier runs side by side; nothing is measured.")
@click.option(
    "--paper-row", metavar="NAME", default=None, help="Reproduce a row of the paper's tables, or `list` them."
)
@model_options
@metric_options
@data_options
@sampling_options
@click.option("--batch-size", type=click.IntRange(min=1), default=50, help="Images per network evaluation.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Whatever is drawn for image i depends on both.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=None, help="JSON file to write.")
@click.option(
    "--work-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder for what is kept.  [default: OUTPUT.parts]",
)
@click.option("--overwrite", is_flag=True, help="Replace what was kept under other settings.")
@click.pass_context
@report_errors
def evaluate(context, results, compare, paper_row, **options) -> None:
    """Measure a model: loss, bits per dimension, FID, Inception score, KID, precision and recall.

    An interrupted run goes on where it stopped when it is started again with the same options, and gives the same
    numbers. Started by `accelerate launch` or `torchrun`, the processes share the work.
    """
    if compare or results:
        if not compare:
            raise click.UsageError("RESULTS go with --compare.")
        from diffusers_sde.evaluation.compare import run_compare

        run_compare(results)
        return
    from diffusers_sde.evaluation import paper_table

    if paper_row == "list":
        paper_table.show_rows()
        return
    from diffusers_sde.evaluation.evaluate_command import run_evaluate

    if options["output"] is None:
        raise click.UsageError("--output is missing; it names the JSON file to write.")
    row = None
    if paper_row is not None:
        row = paper_table.paper_row(paper_row)
        source = context.get_parameter_source
        given = {name for name in options if source(name) is not click.core.ParameterSource.DEFAULT}
        options = paper_table.with_row(options, row, given)
    options["torch_dtype"] = torch_dtype(options.pop("dtype"))
    run_evaluate(options, row)
