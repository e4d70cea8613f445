"""`diffusers-sde convert`: a checkpoint of the official code as a safetensors repository."""

from pathlib import Path

import click

from .options import report_errors


@click.command()
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
    from diffusers_sde.conversion.command import run_classifier, run_convert, show_configs

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
