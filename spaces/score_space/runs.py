"""One run over a shared network: counted, stoppable, limited in time, with a look at what it is doing.

Every run has a pipeline of its own, with the user's settings of the sampler; only the network is shared. All
that a run does passes through `MeteredNetwork`, whatever the pipeline: there evaluations are counted, and there the
run ends when it shall. It is stopped by closing its generator, which is what Gradio does when the user presses Stop or
leaves the page, and ZeroGPU hands on to its own process.
"""

import functools
import html
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import gradio as gr
import torch
from PIL import Image

from diffusers_sde.sde import score_to_denoised

from .models import MAX_NUMBERS, MODELS, Model
from .pictures import to_pictures
from .zero_gpu import GPU

RUN_SECONDS = 240
PREVIEW_SECONDS = 0.4


class Stopped(Exception):
    """Raised in place of a network evaluation when the run shall end."""


class MeteredNetwork(torch.nn.Module):
    """A shared network as one run sees it; everything but the call is the network's.

    Args:
        model: whose network it is.
        seconds: after which no evaluation begins.
    """

    def __init__(self, model: Model, seconds: float = RUN_SECONDS):
        super().__init__()
        self.network, self.turns = model.network, model.turns
        self.deadline = time.monotonic() + seconds
        self.seconds = seconds
        self.evaluations = 0
        self.stopped = False
        self.last: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def forward(self, sample, timestep, *args, **kwargs):
        with self.turns:
            if self.stopped:
                raise Stopped
            if time.monotonic() > self.deadline:
                raise ValueError(
                    f"the run took more than {self.seconds:g} s and was ended after {self.evaluations} network "
                    "evaluations. Take fewer steps or images, or a smaller model."
                )
            self.evaluations += 1
            output = self.network(sample, timestep, *args, **kwargs)
        self.last = sample.detach(), torch.as_tensor(timestep), output.sample.detach()
        return output


class Run:
    """What a task is given to work with.

    Args:
        model: shared with other runs.
        count: number of images that are drawn at once, for the preview and the limit of size.

    Raises:
        ValueError: if so many images of that size are too much.
    """

    def __init__(self, model: Model, count: int):
        self.model, self.count = model, count
        most = MAX_NUMBERS // (model.channels * model.size[0] * model.size[1])
        if count > most:
            raise ValueError(f"{count} images of this model at once are too many here; ask for at most {most}.")
        self.network = MeteredNetwork(model)
        self.start = time.monotonic()
        self.partial: Any = None

    def pipeline(self, pipeline_class: type, components: dict | None = None, **overrides):
        """A pipeline of this run alone, with some of the scheduler's settings replaced."""
        scheduler = type(self.model.scheduler).from_config(self.model.scheduler.config, **overrides)
        pipeline = pipeline_class(unet=self.network, scheduler=scheduler, **(components or {}))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def publish(self, partial: Any) -> None:
        """Show a part of the result before the run ends."""
        self.partial = partial

    def guess(self) -> list[Image.Image] | None:
        """What the network takes the images to be, from its last evaluation: E[x_0 | x_t]."""
        if self.network.last is None or len(self.network.last[0]) < self.count:
            return None
        x, timestep, output = (part.float() for part in self.network.last)
        scheduler = self.model.scheduler
        t = time_of(scheduler, timestep).to(x).expand(len(x))
        x_0 = score_to_denoised(scheduler.sde, scheduler.step_score(output, x, t), x, t)
        return to_pictures(x_0[: self.count], self.model)

    def snapshot(self, result: Any = None) -> "Snapshot":
        """How far the run is."""
        guess = self.guess() if result is None else None
        seconds = time.monotonic() - self.start
        return Snapshot(self.network.evaluations, seconds, guess, self.partial, result)


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Args:
        evaluations: of the network so far.
        seconds: since the start.
        guess: what the network takes the images to be, or `None`.
        partial: what the task published last.
        result: of the task, `None` before its end.
    """

    evaluations: int
    seconds: float
    guess: list[Image.Image] | None
    partial: Any
    result: Any


def friendly(function: Callable[..., Iterator]) -> Callable[..., Iterator]:
    """A generator function whose `ValueError`s are shown to the user as they are, and other errors as such."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            yield from function(*args, **kwargs)
        except gr.Error:  # a ValueError, too
            raise
        except ValueError as error:
            text = str(error)
            raise gr.Error(html.escape(text[:1].upper() + text[1:]), print_exception=False) from error
        except RuntimeError as error:  # the memory of a device, above all
            text = f"The run failed: {str(error)[:200]} Take fewer or smaller images."
            raise gr.Error(html.escape(text)) from error

    return wrapper


@GPU(duration=RUN_SECONDS)
@friendly
def stream(task: Callable[..., Any], model: str, count: int, settings: dict) -> Iterator[Snapshot]:
    """Run `task(run, **settings)` and say every now and then how far it is; the last snapshot has the result.

    All arguments can be pickled, as ZeroGPU needs it.

    Args:
        task: a function of a module.
        model: name of the model.
        count: number of images that are drawn at once.
        settings: of the task.
    """
    run = Run(MODELS.get(model), count)
    yield run.snapshot()  # before any work: Gradio can close a generator only after its first value
    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(task, run, **settings)
        try:
            while wait([future], timeout=PREVIEW_SECONDS).not_done:
                yield run.snapshot()
        finally:
            run.network.stopped = True
    yield run.snapshot(future.result())


def time_of(scheduler, timestep: torch.Tensor) -> torch.Tensor:
    """The time of what a network is conditioned on, to 1/2000; float64 of shape (B,) or (1,)."""
    grid = torch.linspace(1e-3, 1, 2000, dtype=torch.float64)
    conditioning = scheduler.model_timestep(grid).double()
    distance = (timestep.double().cpu().reshape(-1, 1) - conditioning).abs()
    return grid[distance.argmin(dim=1)]
