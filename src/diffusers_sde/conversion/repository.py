"""A converted checkpoint as a repository: in a folder, in one of three layouts, with its card, and on the Hub."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from ..schedulers import ScoreSdeVeScheduler
from ..store import LEDGER_NAME
from .convert import Conversion
from .model_card import LAYOUTS, SampleGrid, classifier_card, model_card
from .native import native_pipeline
from .output import whole_folder

GRID_NAME = "samples.png"
# What the remote-code layout has beside the others; a repository on the Hub may have been in that layout before.
_STUBS = ["pipeline.py", "*/diffusers_sde.py"]


@dataclass(frozen=True)
class Repository:
    """What is written.

    Args:
        pipeline: of this package, or of diffusers' own for the native layout.
        conversion: where it comes from.
        layout: `"diffusers_sde"`, `"native"` or `"remote_code"`.
    """

    pipeline: DiffusionPipeline
    conversion: Conversion
    layout: str

    def write(self, folder: str | Path, name: str | None = None, check_steps: int | None = None, on_step=None) -> None:
        """Write the repository; the folder appears when it is complete.

        Args:
            folder: where. What an earlier conversion wrote there is replaced.
            name: what the code on the card loads; the folder's name if `None`.
            check_steps: if given, images are drawn in so many steps first, and go into the repository.
            on_step: called after each of these steps.

        Raises:
            ValueError: if the images are not finite, or the folder holds what no conversion wrote.
        """
        grid = picture = None
        if check_steps is not None:
            picture = draw_check(self.pipeline.unet, self.conversion.pipeline.scheduler, check_steps, on_step)
            grid = SampleGrid(GRID_NAME, check_steps)
        card = model_card(self.conversion, self.layout, name or Path(folder).name, grid)
        with whole_folder(folder) as partial:
            (partial / "README.md").write_text(card, encoding="utf-8")
            if picture is not None:
                picture.save(partial / GRID_NAME)
            options = {"remote_code": True} if self.layout == "remote_code" else {}
            self.pipeline.save_pretrained(partial, **options)  # the index, without which nothing loads, comes last


def make_repository(conversion: Conversion, layout: str = "diffusers_sde") -> Repository:
    """The repository of a converted checkpoint, not yet written.

    Raises:
        ValueError: if there is no such layout, or for `"native"` if diffusers does not express network and sampler.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` is {layout!r}; allowed are {', '.join(map(repr, LAYOUTS))}.")
    pipeline = conversion.pipeline
    if layout == "native":
        pipeline = native_pipeline(pipeline.unet, pipeline.scheduler)
    return Repository(pipeline, conversion, layout)


def write_classifier(classifier, folder: str | Path, name: str | None = None) -> None:
    """Write a converted classifier and its card; the folder appears when it is complete."""
    with whole_folder(folder) as partial:
        (partial / "README.md").write_text(classifier_card(classifier, name or Path(folder).name), encoding="utf-8")
        classifier.save_pretrained(partial)


def draw_check(unet, scheduler, steps: int, on_step: Callable[[], None] | None = None):
    """A few images in a few steps, as one picture, to see that a converted network works.

    Args:
        unet: the network.
        scheduler: of the SDE that it was trained for.
        steps: predictor steps. The sampler is the scheduler's for VE, and Euler-Maruyama for VP and sub-VP, whose
            discrete samplers need more steps.
        on_step: called after each.

    Raises:
        ValueError: if the images are not finite.
    """
    from diffusers.utils import make_image_grid

    from ..pipelines import ScoreSdePipeline

    quick = {"correct_steps": min(scheduler.config.correct_steps, 1)}
    if not isinstance(scheduler, ScoreSdeVeScheduler):
        quick |= {"predictor": "euler_maruyama", "corrector": "none"}
    pipeline = ScoreSdePipeline(unet=unet, scheduler=type(scheduler).from_config(scheduler.config, **quick))
    pipeline.set_progress_bar_config(disable=True)

    def advance(pipeline, step, timestep, tensors):
        if on_step is not None:
            on_step()
        return {}

    size = unet.config.sample_size
    count = 4 if (size if isinstance(size, int) else max(size)) <= 64 else 1
    images = pipeline(
        batch_size=count,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=advance,
    ).images
    side = math.isqrt(count)
    return make_image_grid(images, side, side)


def push_to_hub(folder: str | Path, name: str, layout: str, token: str | None = None) -> str:
    """Upload a repository in one commit, creating it if there is none of that name.

    Args:
        folder: as `Repository.write` left it.
        name: such as `"organisation/model"`.
        layout: of the folder; for others than `"remote_code"`, stubs of an earlier upload are removed.
        token: of the Hub; the one that is logged in if `None`.

    Returns:
        Address of the repository.

    Raises:
        OSError: if the Hub refuses, with its reason.
        ValueError: if the name is none that the Hub allows.
    """
    import huggingface_hub

    url = huggingface_hub.create_repo(name, exist_ok=True, token=token)
    huggingface_hub.upload_folder(
        repo_id=url.repo_id,
        folder_path=str(folder),
        commit_message="Upload a checkpoint converted by diffusers_sde",
        delete_patterns=None if layout == "remote_code" else _STUBS,
        ignore_patterns=[LEDGER_NAME],
        token=token,
    )
    return str(url)
