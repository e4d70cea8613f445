"""What the tabs share: the choice of a model, sliders, results, and how a run is started, shown and stopped."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from diffusers_sde.sde import corrector_names, predictor_names

from .models import EMBEDDED, MODELS
from .runs import Snapshot, friendly
from .uploads import MAX_SEED, Picture, choice, real, whole

EXAMPLES = Path(__file__).parents[1] / "examples"
CONCURRENT_RUNS = 4


@dataclass
class Sampler:
    """Fields for the settings of Predictor-Corrector sampling, as the handlers take them in this order."""

    steps: gr.Slider
    predictor: gr.Dropdown
    corrector: gr.Dropdown
    snr: gr.Slider

    @classmethod
    def build(cls, model: str, steps: int = 100) -> "Sampler":
        """Place the components, set as `model` has them."""
        config = MODELS.get(model).scheduler.config
        number = gr.Slider(10, 1000, steps, step=1, label="Steps", info="10 to 1000; more are slower and better.")
        with gr.Accordion("Predictor and corrector", open=False):
            return cls(
                number,
                gr.Dropdown(predictor_names(), value=config.predictor, label="Predictor", info="Moves to less noise."),
                gr.Dropdown(
                    corrector_names(), value=config.corrector, label="Corrector", info="Improves at the same noise."
                ),
                gr.Slider(0.01, 0.5, config.snr, step=0.01, label="Signal-to-noise ratio", info="Of the corrector."),
            )

    @property
    def inputs(self) -> list:
        return [self.steps, self.predictor, self.corrector, self.snr]


def sampler_settings(steps, predictor, corrector, snr) -> dict:
    """The values of a `Sampler`, checked: `steps`, and `overrides` of the scheduler's config."""
    overrides = {
        "predictor": choice("the predictor", predictor, predictor_names()),
        "corrector": choice("the corrector", corrector, corrector_names()),
        "snr": real("the signal-to-noise ratio", snr, 0.01, 0.5),
    }
    return {"steps": whole("the number of steps", steps, 10, 1000), "overrides": overrides}


def model_choice(default: str) -> tuple[gr.Dropdown, gr.Markdown]:
    """Field for the name of a model, and what the model is."""
    model = gr.Dropdown(
        list(EMBEDDED),
        value=default,
        allow_custom_value=True,
        label="Model",
        info="An embedded one, or type a repository of the Hub (owner/name) or a folder.",
    )
    return model, gr.Markdown(MODELS.get(default).describe(), elem_classes="description")


def follow_model(model: gr.Dropdown, description: gr.Markdown, sampler: Sampler | None = None) -> None:
    """Show what a newly chosen model is, and its own sampler."""
    fields = [] if sampler is None else sampler.inputs[1:]

    @friendly
    def describe(name: str) -> Iterator:
        chosen = MODELS.get(name)
        config = chosen.scheduler.config
        values = [chosen.describe(), config.predictor, config.corrector, config.snr]
        yield values if fields else values[0]

    model.change(describe, model, [description, *fields], show_progress="hidden", api_visibility="private")


def seed_choice(label: str = "Seed", value: int = 0) -> gr.Number:
    """Field for a seed."""
    return gr.Number(value, minimum=0, maximum=MAX_SEED, label=label, info="The same seed gives the same result.")


def picture_input(label: str, *kinds: str, height: int = 240) -> Picture:
    """Upload field with examples of some kinds: grey, colour, sketch."""
    picture = Picture(
        label=label, height=height, sources=["upload", "clipboard"], format="png", buttons=[], elem_classes="pixels"
    )
    gr.Examples(example_files(*kinds), [picture], label="Examples")
    return picture


def example_files(*kinds: str) -> list[list[str]]:
    """Files of the examples whose names begin so, as rows of one."""
    return [[str(path)] for kind in kinds for path in sorted(EXAMPLES.glob(f"{kind}-*.png"))]


@dataclass
class Controls:
    """Buttons that start and end a run, and a line on how it goes."""

    start: gr.Button
    stop: gr.Button
    status: gr.HTML

    @classmethod
    def build(cls, label: str) -> "Controls":
        """Place the components."""
        with gr.Row():
            start, stop = gr.Button(label, variant="primary", scale=3), gr.Button("Stop", variant="stop", scale=1)
        return cls(start, stop, gr.HTML(status("Ready.")))

    def connect(self, handler: Callable[..., Iterator], inputs: list, outputs: list, api_name: str) -> None:
        """Let the first button start `handler`, whose last output is the status, and the second one end it.

        Ending it closes its generator, and with it the run: see `runs`.
        """
        event = self.start.click(
            _cleared(friendly(handler), len(outputs)),
            inputs,
            [*outputs, self.status],
            api_name=api_name,
            concurrency_id="runs",
            concurrency_limit=CONCURRENT_RUNS,
            show_progress_on=self.status,
        )
        ended = self.stop.click(None, cancels=[event], api_visibility="private")
        ended.then(lambda: status("Stopped."), None, self.status, queue=False, api_visibility="private")


def _cleared(handler: Callable[..., Iterator], num_outputs: int) -> Callable[..., Iterator]:
    """A handler that clears its outputs before an error: what an earlier run showed would pass for the answer.

    A run that is stopped ends by `GeneratorExit`, and keeps what it showed.
    """

    @functools.wraps(handler)
    def wrapper(*args, **kwargs):
        try:
            yield from handler(*args, **kwargs)
        except Exception:
            yield [*(None for _ in range(num_outputs)), status("Refused or failed; see the message.")]
            raise

    return wrapper


def image_gallery(label: str, columns: int = 4) -> gr.Gallery:
    """Place for the images of a run."""
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=columns,
        height="auto",
        format="png",
        object_fit="contain",
        elem_classes=["pixels", "results"],
        buttons=["download", "download_all", "fullscreen"],
    )


def status(text: str) -> str:
    """A line that screen readers read out when it changes."""
    return f'<p role="status" class="status">{text}</p>'


def progress(snapshot: Snapshot) -> str:
    """How far a run is, or what it cost."""
    word = "Running" if snapshot.result is None else "Done"
    return status(f"{word}: {snapshot.evaluations} network evaluations, {snapshot.seconds:.1f} s.")


def show_images(snapshots: Iterator[Snapshot], captions: list[str], first: list | None = None) -> Iterator[tuple]:
    """Gallery and status of a run whose result is a list of images; before, what the network guesses.

    Args:
        snapshots: of the run.
        captions: of all pictures.
        first: pictures that go before those of the run.
    """
    for snapshot in snapshots:
        images = snapshot.guess if snapshot.result is None else snapshot.result
        pairs = gr.skip() if images is None else list(zip([*(first or []), *images], captions, strict=True))
        yield pairs, progress(snapshot)
