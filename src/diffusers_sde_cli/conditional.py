"""Commands for images under a condition: `inpaint`, `colorize`, `class-conditional`, `restore`, `edit`."""

from pathlib import Path

import click

from .options import (
    Integers,
    image_options,
    model_options,
    output_options,
    report_errors,
    sampler_options,
    samples_option,
    together,
)

_METHODS = ("replacement", "pigdm", "dps")
_GUIDANCE = ("method", "guidance_scale", "data_std")


def _guidance_options(method: str):
    return together(
        click.option("--method", type=click.Choice(_METHODS), default=method, help="How the condition is kept to."),
        click.option("--guidance-scale", type=float, default=1.0, help="Of pigdm and dps."),
        click.option("--data-std", type=float, default=0.25, help="Of pixels of the data in [0, 1]; for pigdm."),
    )


@click.command()
@image_options
@click.option(
    "--mask", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Mask file; white is repainted."
)
@click.option(
    "--hide", type=click.Choice(["left", "right", "upper", "lower", "centre"]), help="Repaint this part; no --mask."
)
@_guidance_options("replacement")
@samples_option
@sampler_options
@model_options
@output_options
@report_errors
def inpaint(mask, hide, **options) -> None:
    """Repaint the white part of a mask in IMAGES; the rest stays as it is.

    An interrupted run goes on where it stopped when it is started again with the same options.
    """
    from diffusers_sde.commands.tasks import run_inpaint

    run_inpaint(mask, hide, {name: options[name] for name in _GUIDANCE}, options)


@click.command()
@image_options
@_guidance_options("replacement")
@samples_option
@sampler_options
@model_options
@output_options
@report_errors
def colorize(**options) -> None:
    """Colour IMAGES, grey ones or the mean over the channels of colour ones.

    The default model is the embedded one of CIFAR-10.

    An interrupted run goes on where it stopped when it is started again with the same options.
    """
    from diffusers_sde.commands.tasks import run_colorize

    run_colorize({name: options[name] for name in _GUIDANCE}, options)


@click.command("class-conditional")
@click.option("--labels", type=Integers(), required=True, help="Classes, as 0,1,2; one row of images for each.")
@click.option("--num-images", type=click.IntRange(min=1), default=8, help="Images of each class.")
@click.option("--guidance-scale", type=float, default=1.0, help="Factor on the classifier's gradient.")
@click.option(
    "--classifier",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of a noise-conditional classifier.  [default: the embedded one, or the model's own]",
)
@sampler_options
@model_options
@output_options
@report_errors
def class_conditional(labels, num_images, guidance_scale, classifier, **options) -> None:
    """Draw images of classes, guided by a classifier of noisy images.

    An interrupted run goes on where it stopped when it is started again with the same options.
    """
    from diffusers_sde.commands.tasks import run_class_conditional

    run_class_conditional(labels, classifier, guidance_scale, num_images, options)


@click.command()
@image_options
@click.option(
    "--operator",
    type=click.Choice(["block-average", "blur", "projection", "mask"]),
    default="block-average",
    help="What is measured: means of blocks of pixels, a blurred image, random projections, random pixels.",
)
@click.option("--factor", type=click.IntRange(min=1), help="Side of a block of block-average.  [default: 4]")
@click.option("--blur-std", type=click.FloatRange(0, min_open=True), help="Of blur, in pixels.  [default: 1.5]")
@click.option(
    "--fraction", type=click.FloatRange(0, 1, min_open=True), help="Measured by projection, mask.  [default: 0.25]"
)
@click.option("--noise-std", type=float, default=0.0, help="Noise of the measurement, of images in [0, 1].")
@click.option("--measured", is_flag=True, help="IMAGES are measurements: small ones, for block-average.")
@_guidance_options("pigdm")
@samples_option
@sampler_options
@model_options
@output_options
@report_errors
def restore(operator, factor, blur_std, fraction, measured, **options) -> None:
    """Measure IMAGES with noise, and draw images that have the same measurement; or restore given small images.

    An interrupted run goes on where it stopped when it is started again with the same options.
    """
    from diffusers_sde.commands.tasks import run_restore

    run_restore(operator, factor, blur_std, fraction, measured, options)


_NOT_OF_INTERPOLATE = ("method", "strength", "num_samples", "steps", "predictor", "corrector", "snr", "seed")
_CODE = {"langevin_steps": "num_langevin_steps", "langevin_snr": "snr", "confidence": "confidence"}


@click.command()
@image_options
@click.option("--method", type=click.Choice(["sdedit", "code"]), default="sdedit", help="SDEdit, or CODE.")
@click.option(
    "--strength", type=float, default=0.5, help="In (0, 1]: time, with sdedit fraction of the steps, to go back from."
)
@click.option("--langevin-steps", type=click.IntRange(min=0), help="Of code.  [default: 200]")
@click.option("--langevin-snr", type=float, help="Size of these steps.  [default: 0.05]")
@click.option("--confidence", type=float, help="Standard deviations to which code clips.  [default: 2]")
@click.option("--interpolate", is_flag=True, help="Instead, go from one of two IMAGES to the other, by their latents.")
@click.option("-n", "number", type=click.IntRange(min=2), default=8, help="Images of --interpolate, ends included.")
@samples_option
@sampler_options
@model_options
@output_options
@click.pass_context
@report_errors
def edit(context, method, strength, interpolate, number, **options) -> None:
    """Turn IMAGES, photographs, sketches or damaged ones, into the model's images next to them.

    An interrupted run goes on where it stopped when it is started again with the same options.
    """
    from diffusers_sde.commands.tasks import run_edit, run_interpolate

    code = {name: options[key] for key, name in _CODE.items() if options[key] is not None}
    if code and (method != "code" or interpolate):
        raise click.UsageError("--langevin-steps, --langevin-snr and --confidence go with --method code only.")
    if interpolate:
        source, given = context.get_parameter_source, click.core.ParameterSource.COMMANDLINE
        ignored = [name for name in _NOT_OF_INTERPOLATE if source(name) is given]
        if ignored:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
            raise click.UsageError(f"{flags} has no meaning with --interpolate, which draws nothing; leave it out.")
        run_interpolate(number, options)
    else:
        run_edit(strength, code if method == "code" else None, options)
