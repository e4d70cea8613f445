"""What `diffusers-sde inpaint`, `colorize`, `class-conditional`, `restore` and `edit` do.

Each reads its inputs, writes one result per input and sample into an `ImageFolder`, and shows them in a grid of one
row per input: what was given first, the results after it. Result i belongs to input i // num_samples.
"""

import math
from collections.abc import Callable
from pathlib import Path

import click
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from ..data import flatten, read_picture
from ..image_folder import FLOW_NOTE, ImageFolder, load, pipeline_settings
from ..pipelines.pipeline_score_sde_colorization import ScoreSdeColorizationPipeline
from ..pipelines.pipeline_score_sde_edit import ScoreSdeEditPipeline
from ..pipelines.pipeline_score_sde_inpaint import ScoreSdeInpaintPipeline, read_mask
from ..pipelines.pipeline_score_sde_inverse_problem import ScoreSdeInverseProblemPipeline
from ..pipelines.pipeline_score_sde_ode import ScoreSdeOdePipeline
from ..sde.operators import BlockAverage, Blur, LinearOperator, Mask, RandomProjection, pseudo_inverse
from ..seeding import derive_seed, image_generators
from ..store import fingerprint
from .given_images import digest, hidden_part, pictures, read_inputs


def run_inpaint(mask: Path | None, hide: str | None, guidance: dict, options: dict) -> None:
    """Inpaint images under a mask file, white = repaint, or with one part of them hidden."""
    if (mask is None) == (hide is None):
        raise click.UsageError("give either --mask FILE, white where to repaint, or --hide and what.")
    pipeline = _load(ScoreSdeInpaintPipeline, options)
    inputs, names = read_inputs(pipeline, options)
    mask_image = flatten(read_picture(mask)) if mask else hidden_part(hide, inputs.shape[2:])
    repaint = read_mask(mask_image, inputs)
    shown = [pictures(inputs), pictures(torch.where(repaint, 127, inputs))]

    def draw(rows: list[int], **call) -> list[Image.Image]:
        return pipeline(inputs[rows], mask_image, **guidance, **call).images

    settings = {"inputs": names, "mask": digest(repaint), **guidance}
    write_results(pipeline, draw, shown, settings, {**options, "mask": mask})


def run_colorize(guidance: dict, options: dict) -> None:
    """Colour images anew, or grey ones."""
    from ..assets import embedded_colour_model_path

    model = embedded_colour_model_path() if options["model"] is None else options["model"]
    pipeline = _load(ScoreSdeColorizationPipeline, {**options, "model": model})
    inputs, names = read_inputs(pipeline, options)
    grey = (inputs.float() / 255).mean(dim=1, keepdim=True)

    def draw(rows: list[int], **call) -> list[Image.Image]:
        return pipeline(grey[rows], **guidance, **call).images

    shown = [pictures(inputs), pictures((255 * grey).round().byte())]
    write_results(pipeline, draw, shown, {"inputs": names, **guidance}, options)


def run_class_conditional(
    labels: list[int], classifier: Path | None, guidance_scale: float, num_images: int, options: dict
) -> None:
    """Draw images of classes."""
    from ..models import NoiseConditionalClassifier
    from ..pipelines.pipeline_score_sde_class_conditional import ScoreSdeClassConditionalPipeline

    if classifier is None and options["model"] is None:
        from ..assets import embedded_classifier_path

        classifier = embedded_classifier_path()
    components = {}
    if classifier is not None:
        components["classifier"] = NoiseConditionalClassifier.from_pretrained(classifier)
    pipeline = _load(ScoreSdeClassConditionalPipeline, options, components=components)

    def draw(rows: list[int], **call) -> list[Image.Image]:
        return pipeline([labels[row] for row in rows], guidance_scale=guidance_scale, **call).images

    settings = {"labels": labels, "guidance_scale": guidance_scale, "classifier": fingerprint(pipeline.classifier)}
    write_results(pipeline, draw, [], settings, {**options, "num_samples": num_images}, num_rows=len(labels))


def run_restore(
    operator: str, factor: int | None, blur_std: float | None, fraction: float | None, measured: bool, options: dict
) -> None:
    """Measure clean images and restore them, or restore given block averages."""
    given = {"factor": factor, "blur_std": blur_std, "fraction": fraction}
    needed = {"block-average": "factor", "blur": "blur_std", "projection": "fraction", "mask": "fraction"}[operator]
    for name, value in given.items():
        if value is not None and name != needed:
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with --operator {operator}.")
    if measured and operator != "block-average":
        raise click.UsageError("--measured goes with --operator block-average only, whose measurements are images.")
    value = {"factor": 4, "blur_std": 1.5, "fraction": 0.25}[needed] if given[needed] is None else given[needed]

    noise_std, seed = options["noise_std"], options["seed"]
    guidance = {name: options[name] for name in ("noise_std", "method", "guidance_scale", "data_std")}
    pipeline = _load(ScoreSdeInverseProblemPipeline, options)
    inputs, names = read_inputs(pipeline, options)
    if measured:
        height, width = (value * side for side in inputs.shape[2:])
        linear, y, shown = BlockAverage(value), inputs.float() / 255, []
    else:
        height, width = inputs.shape[2:]
        linear = make_operator(operator, value, tuple(inputs.shape[1:]), seed)
        y = linear.A(inputs.float() / 255)
        generators = [torch.Generator().manual_seed(derive_seed(seed, row, 1)) for row in range(len(y))]
        y = y + noise_std * randn_tensor(y.shape, generators, y.device, y.dtype)
        shown = [pictures(inputs)]
    seen = y if y.shape[2:] == (height, width) else pseudo_inverse(linear)(y)
    shown.append(pictures((255 * seen.clamp(0, 1)).round().byte()))

    def draw(rows: list[int], **call) -> list[Image.Image]:
        return pipeline(y[rows], linear, height=height, width=width, **guidance, **call).images

    settings = {"inputs": names, "operator": operator, needed: value, "measured": measured, **guidance}
    write_results(pipeline, draw, shown, settings, options)


def run_edit(strength: float, code: dict | None, options: dict) -> None:
    """Edit images by SDEdit, or by CODE with the given settings."""
    pipeline = _load(ScoreSdeEditPipeline, options)
    inputs, names = read_inputs(pipeline, options)
    settings = {"inputs": names, "strength": strength, "code": code}

    def draw(
        rows: list[int], num_inference_steps: int, callback_on_step_end: Callable, generator
    ) -> list[Image.Image]:
        if code is None:
            steps = {"num_inference_steps": num_inference_steps, "callback_on_step_end": callback_on_step_end}
            return pipeline(inputs[rows], strength, generator=generator, **steps).images
        output = pipeline.code(inputs[rows], strength, generator=generator, **code)
        if not bool(output.success.all()):
            click.echo(f"the solver did not reach its tolerance for {int((~output.success).sum())} results.", err=True)
        return output.images

    write_results(pipeline, draw, [pictures(inputs)], settings, options)


def run_interpolate(number: int, options: dict) -> None:
    """Write images between two."""
    pipeline = _load(ScoreSdeOdePipeline, options)
    if options["model"] is None:
        click.echo(FLOW_NOTE, err=True)
    inputs, names = read_inputs(pipeline, options)
    if len(inputs) != 2:
        raise click.UsageError(f"--interpolate goes from one image to another; {len(inputs)} given, not 2.")

    def draw(rows: list[int], **call) -> list[Image.Image]:
        images = pipeline.interpolate(inputs[:1], inputs[1:], number, batch_size=options["batch_size"]).images
        return [images[row] for row in rows]

    run = {**options, "num_samples": 1, "batch_size": number, "steps": 1, "seed": 0}
    start, end = pictures(inputs)
    grid = [[start, *range(number), end]]
    write_results(pipeline, draw, [], {"inputs": names}, run, num_rows=number, grid=grid)


def write_results(
    pipeline,
    draw: Callable,
    shown: list[list[Image.Image]],
    settings: dict,
    options: dict,
    num_rows: int | None = None,
    grid: list[list[Image.Image | int]] | None = None,
) -> None:
    """Draw the results that are missing, and the grid.

    Args:
        pipeline: what draws; its settings are stored.
        draw: `(rows, num_inference_steps, generator, callback_on_step_end) -> images`, one image for each of the
            inputs of these numbers.
        shown: columns of pictures before the results, one picture per input each.
        settings: of the task, besides the pipeline's, to be stored.
        options: of the command: steps, num_samples, seed, batch_size, output, overwrite; and images, data and mask,
            which are files or folders that must not be lost.
        num_rows: number of inputs; by default that of the pictures.
        grid: rows of the grid, see `ImageFolder.write_grid`; by default one for each input.
    """
    pipeline.set_progress_bar_config(disable=True)
    steps, seed, samples = options["steps"], options["seed"], options["num_samples"]
    steps = pipeline.scheduler.config.num_train_timesteps if steps is None else steps
    num_rows = len(shown[0]) if num_rows is None else num_rows
    fixed = {**pipeline_settings(pipeline), **settings, "steps": steps, "seed": seed, "num_samples": samples}
    inputs = [*options.get("images", ()), *(options[name] for name in ("data", "mask") if options.get(name))]

    def draw_indices(indices: list[int], on_step_end: Callable) -> list[Image.Image]:
        call = {"num_inference_steps": steps, "callback_on_step_end": on_step_end}
        return draw([i // samples for i in indices], generator=image_generators(seed, indices), **call)

    with ImageFolder(options["output"], fixed, num_rows * samples, options["overwrite"], inputs) as folder:
        folder.draw(draw_indices, options["batch_size"], steps)
        if grid is None:
            results = [range(i * samples, (i + 1) * samples) for i in range(num_rows)]
            grid = [[*(column[i] for column in shown), *results[i]] for i in range(num_rows)]
        click.echo(f"{folder.count} images in {folder.folder}, with what was given: {folder.write_grid(grid)}")


def make_operator(kind: str, value: float, shape: tuple[int, int, int], seed: int) -> LinearOperator:
    """The operator of a name, for images of a shape (C, H, W); what is random in it is fixed by the seed."""
    if kind == "block-average":
        return BlockAverage(int(value))
    if kind == "blur":
        return Blur(gaussian_kernel(value, max_side=min(shape[1:])))
    generator = torch.Generator().manual_seed(derive_seed(seed, 0, 2))
    if kind == "projection":
        return RandomProjection(shape, max(1, round(value * math.prod(shape))), generator)
    return Mask(torch.rand(1, 1, *shape[1:], generator=generator) < value)


def gaussian_kernel(std: float, max_side: int) -> torch.Tensor:
    """Gaussian of sum 1, to three standard deviations or `max_side` pixels; shape (n, n), n odd."""
    radius = min(math.ceil(3 * std), (max_side - 1) // 2)
    row = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / std).square())
    return torch.outer(row, row) / row.sum().square()


def _load(pipeline_class, options: dict, components: dict | None = None):
    chosen = {name: options.get(name) for name in ("model", "device", "predictor", "corrector", "snr")}
    return load(pipeline_class, components=components, dtype=getattr(torch, options["dtype"]), **chosen)
