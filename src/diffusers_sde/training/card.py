"""README.md of a trained model: how to use it, what it was trained on and how, its curves and samples."""

import re
import shlex
from pathlib import Path

from .data import where_of
from .history import read_history
from .output import OutputFolder
from .plan import describe_plan
from .presets import preset_defaults, read_preset

CARD_NAME, CURVES_NAME = "README.md", "curves.png"


def write_card(output: OutputFolder, args, network, scheduler, step: int, num_processes: int) -> None:
    """Write README.md, and the curves as a picture, each complete or as before.

    Args:
        output: folder of the run, with its history and sample grids.
        args: of the run, with precision and batch sizes resolved.
        network: that was trained.
        scheduler: of its SDE.
        step: optimiser steps taken.
        num_processes: of the run.
    """
    from huggingface_hub import ModelCardData

    output_dir, history = output.folder, read_history(output.folder)
    curves = draw_curves(history, output)
    sde = type(scheduler.sde).__name__.removesuffix("SDE").replace("Sub", "sub-")
    where = where_of(args)
    data = where["dataset_name"] or Path(where["train_data_dir"]).name
    metadata = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["diffusers", "score-sde", "unconditional-image-generation"],
        datasets=[where["dataset_name"]] if where["dataset_name"] else None,
    )
    grids = output.grids()
    name = args.hub_model_id or output_dir.resolve().name
    plan = describe_plan(args, network, scheduler, num_processes)
    parts = [
        f"---\n{metadata}\n---",
        f"# {name}",
        f"A score-based generative model of images ({sde} SDE) after [Song et al. 2021]"
        f"(https://arxiv.org/abs/2011.13456), trained for {step} steps on `{data}`. "
        f"The weights are an exponential moving average with decay {args.ema_decay:g}.",
        f"![Samples]({grids[-1]})" if grids else "",
        "## Use\n\n```python\nimport diffusers_sde\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipeline = DiffusionPipeline.from_pretrained("{name}")\nimage = pipeline().images[0]\n```',
        "## Training\n\n" + "\n".join(f"- {line}" for line in plan),
        f"```bash\n{command(args)}\n```",
        f"![Loss and gradient norm]({CURVES_NAME})" if curves else "",
        _table(history),
    ]
    with output.file(CARD_NAME) as path:
        path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def command(args) -> str:
    """The command line of a run, with what differs from the defaults, or from those of its configuration."""
    from .options import SECRETS, build_parser

    parser, words = build_parser(), []
    if args.config is not None:
        parser.set_defaults(**preset_defaults(read_preset(args.config, args.set)))
    for action in parser._actions:
        value, default = getattr(args, action.dest, None), parser.get_default(action.dest)
        if value == default or value is None or action.dest in SECRETS:
            continue
        flag = action.option_strings[0]
        if value is True:
            words.append(flag)
        elif value is False:
            words.append(flag.replace("--", "--no-", 1))
        else:
            values = value if isinstance(value, list) else [_text(value)]
            words += [flag, *map(str, values)]
    return re.sub(r" (?=--)", " \\\n    ", f"accelerate launch training/train_sde.py {shlex.join(words)}")


def _text(value) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def draw_curves(history: list[dict], output: OutputFolder) -> bool:
    """Draw loss, loss by noise level and gradient norm over the steps; whether there was anything to draw with."""
    entries = [entry for entry in history if entry.get("loss") is not None]
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if len(entries) < 2:
        return False
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps = [entry["step"] for entry in entries]
    left.plot(steps, [entry["loss"] for entry in entries], color="black", label="all")
    levels = sorted({key for entry in entries for key in entry if key.startswith("loss/level_")})
    for i, key in enumerate(levels):
        values = [entry.get(key) for entry in entries]
        left.plot(
            steps,
            [float("nan") if v is None else v for v in values],
            alpha=0.6,
            label=f"t < {(i + 1) / len(levels):g}",
        )
    right.plot(steps, [entry["gradient_norm"] for entry in entries], color="black")
    for axes, title in ((left, "loss, by noise level"), (right, "gradient norm")):
        lowest = min(min(line.get_ydata()) for line in axes.lines)
        axes.set(title=title, xlabel="step", yscale="log" if lowest > 0 else "linear")
        axes.grid(alpha=0.3)
    left.legend(fontsize=7)
    with output.file(CURVES_NAME) as path:
        figure.savefig(path, dpi=110, format="png")
    return True


def _table(history: list[dict], rows: int = 10) -> str:
    """At most `rows` entries of the history, evenly spread, the last one included."""
    entries = [entry for entry in history if entry.get("loss") is not None]
    if not entries:
        return ""
    chosen = entries[:: -max(1, len(entries) // rows)][:rows][::-1]
    lines = [
        f"| {e['step']} | {e['loss']:.4g} | {e['gradient_norm']:.3g} | {e['images_per_second']:.3g} |" for e in chosen
    ]
    return "\n".join(["| step | loss | gradient norm | images/s |", "|---|---|---|---|", *lines])
