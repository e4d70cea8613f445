"""What `diffusers-sde convert` does: messages and progress around the conversion."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..configs import official_config, official_config_names
from ..store import locked_file
from .classifier import convert_classifier
from .convert import Conversion, convert, read_config
from .model_card import LAYOUTS, checkpoint_number, network_title, sde_title
from .output import check_output
from .paper import paper_row
from .repository import GRID_NAME, make_repository, push_to_hub, write_classifier

__all__ = ["LAYOUTS", "run_classifier", "run_convert", "show_configs"]


def run_convert(
    checkpoint: Path,
    config: str,
    output: Path,
    *,
    use_ema: bool = True,
    layout: str = "diffusers_sde",
    push: str | None = None,
    verify: bool = False,
    verify_steps: int = 20,
    overwrite: bool = False,
) -> Conversion:
    """Convert a checkpoint into a repository and say what was found.

    Args:
        checkpoint: the official file.
        config: name of an official configuration, or path of a JSON file of one.
        output: folder to write.
        use_ema: whether to take the moving average of the weights.
        layout: one of `LAYOUTS`.
        push: name of a repository on the Hub to upload to.
        verify: whether to draw a small grid with the converted network first.
        verify_steps: predictor steps for that.
        overwrite: whether a repository in `output` may be replaced.

    Raises:
        ValueError: for whatever is wrong with the file, the configuration, the folder or the name.
        OSError: if a file cannot be read or written, or the Hub refuses.
    """
    _check_name(push)
    read_config(config)
    given = [Path(config)] if Path(config).is_file() else []
    with locked_file(output), _progress() as stage:
        check_output(output, overwrite, keep=(checkpoint, *given))
        stage(f"reading {checkpoint.name}")
        conversion = convert(checkpoint, config, use_ema)
        repository = make_repository(conversion, layout)
        advance = stage("drawing a check", verify_steps) if verify else stage("writing")
        repository.write(output, push, verify_steps if verify else None, advance)
        if push is not None:
            stage(f"uploading to {push}")
            address = push_to_hub(output, push, layout)
    _print_summary(conversion, layout)
    click.echo(f"written: {output}" + (f" (see {GRID_NAME})" if verify else ""))
    if push is not None:
        click.echo(f"uploaded: {address}")
    return conversion


def run_classifier(checkpoint: Path, output: Path, *, push: str | None = None, overwrite: bool = False) -> None:
    """Convert the official noise-conditional classifier; arguments and errors as those of `run_convert`."""
    _check_name(push)
    with locked_file(output), _progress() as stage:
        check_output(output, overwrite, keep=(checkpoint,))
        stage(f"reading {checkpoint.name}")
        classifier = convert_classifier(checkpoint)
        stage("writing")
        write_classifier(classifier, output, push)
        if push is not None:
            stage(f"uploading to {push}")
            address = push_to_hub(output, push, "diffusers_sde")
    config = classifier.config
    count = sum(parameter.numel() for parameter in classifier.parameters())
    _print_rows(
        "NoiseConditionalClassifier",
        {
            "classes": config.num_classes,
            "network": f"{config.blocks_per_group} blocks per group, {config.channel_multiplier} times as wide",
            "parameters": f"{count:,}",
        },
    )
    click.echo(f"written: {output}")
    if push is not None:
        click.echo(f"uploaded: {address}")


def show_configs() -> None:
    """Print the official configurations, one a line, with what tells them apart."""
    for name in official_config_names():
        config = official_config(name)
        size, sde = config["data"]["image_size"], config["training"]["sde"].removesuffix("sde")
        time = "continuous" if config["training"]["continuous"] else "discrete"
        row = paper_row(name)
        fid = f"FID {row.fid:.2f}" if row is not None and row.fid is not None else ""
        click.echo(f"{name:42}{config['model']['name']:12}{sde:7}{time:12}{size:5} px  {fid}".rstrip())


def _check_name(name: str | None) -> None:
    if name is not None:
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(name)  # a ValueError before the work rather than after it


@contextmanager
def _progress() -> Iterator:
    """Yields a function that begins a stage and returns one that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        current = []

        def stage(description: str, total: int | None = None):
            finish()
            current.append(progress.add_task(description, total=total))
            return lambda: progress.advance(current[-1])

        def finish():
            if current:
                progress.update(current[-1], total=1, completed=1)

        yield stage
        finish()


def _print_summary(conversion: Conversion, layout: str) -> None:
    number, row = checkpoint_number(conversion), paper_row(conversion.official_name)
    step = "not in the file" if conversion.step is None else f"{conversion.step:,}"
    published = {}
    if row is not None:
        published = {"FID": row.fid, "IS": row.inception_score, "FID (ODE)": row.fid_ode, "bits/dim": row.bits_per_dim}
    values = ", ".join(f"{key} {value:.2f}" for key, value in published.items() if value is not None)
    _print_rows(
        conversion.config_name or "configuration from a file",
        {
            "network": f"{network_title(conversion)} ({type(conversion.pipeline.unet).__name__})",
            "parameters": f"{conversion.num_parameters:,}",
            "SDE": sde_title(conversion),
            "weights": "moving average" if conversion.use_ema else "raw",
            "EMA decay": conversion.ema_decay if conversion.ema_decay is not None else "not in the file",
            "step": f"{step} (checkpoint_{number})" if number is not None else step,
            "format": conversion.format,
            "layout": layout,
            "published": values or "no numbers",
            "not used": ", ".join(conversion.unused) or "nothing",
        },
    )
    for note in (*conversion.changes, *conversion.notes):
        click.echo(f"note: {note}")


def _print_rows(title: str, rows: dict) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, show_header=False, title_justify="left")
    for key, value in rows.items():
        table.add_row(key, Text(str(value)))  # words of a file are no markup
    Console().print(table)
