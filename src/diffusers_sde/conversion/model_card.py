"""README.md of a converted checkpoint: metadata for the Hub, code to run, sampler, published results, origin."""

from dataclasses import asdict, dataclass

from ..models import NoiseConditionalClassifier
from .convert import Conversion
from .paper import SOURCE, paper_row

LAYOUTS = ("diffusers_sde", "native", "remote_code")

_DATA_SETS = {"CIFAR10": "CIFAR-10", "CELEBA": "CelebA", "CelebAHQ": "CelebA-HQ", "FFHQ": "FFHQ"}
_NETWORKS = {
    "NCSNppModel": "NCSN++",
    "DDPMModel": "DDPM",
    "NCSNv2Model": "NCSNv2",
    "NCSNModel": "NCSN",
}
_SAMPLER_KEYS = (
    *("num_train_timesteps", "predictor", "corrector", "snr", "correct_steps", "sampling_eps", "probability_flow"),
    *("denoise_final", "continuous", "sigma_min", "sigma_max", "beta_min", "beta_max"),
)
_CITATION = """```bibtex
@inproceedings{song2021scorebased,
  title={Score-Based Generative Modeling through Stochastic Differential Equations},
  author={Song, Yang and Sohl-Dickstein, Jascha and Kingma, Diederik P and Kumar, Abhishek and Ermon, Stefano and
    Poole, Ben},
  booktitle={International Conference on Learning Representations},
  year={2021},
  url={https://openreview.net/forum?id=PxTIG12RRHS}
}
```"""


@dataclass(frozen=True)
class SampleGrid:
    """A picture in the repository.

    Args:
        file_name: its name there.
        steps: predictor steps with which it was drawn.
    """

    file_name: str
    steps: int


def model_card(
    conversion: Conversion,
    layout: str = "diffusers_sde",
    repository: str | None = None,
    grid: SampleGrid | None = None,
) -> str:
    """The content of README.md.

    Args:
        conversion: what was converted.
        layout: `"diffusers_sde"`, `"native"` or `"remote_code"`.
        repository: name on the Hub, or folder, for the code to run.
        grid: a picture of samples to show.
    """
    title = f"{network_title(conversion)} with the {sde_title(conversion)} on {_data_title(conversion.config)}"
    image_size = conversion.config["data"]["image_size"]
    parts = [
        _metadata(("diffusers", "score-sde", "unconditional-image-generation")),
        f"# {title}\n\n"
        f"An unconditional score-based generative model of {image_size} x {image_size} images, from [Score-Based "
        "Generative Modeling through Stochastic Differential Equations](https://arxiv.org/abs/2011.13456) (Song et "
        "al., ICLR 2021). Converted from an official checkpoint by `diffusers-sde convert`.",
    ]
    if grid is not None:
        all_steps = conversion.pipeline.scheduler.config.num_train_timesteps
        parts.append(
            f"![Samples]({grid.file_name})\n\n*Drawn in {grid.steps} steps to check the conversion; the model is "
            f"meant for {all_steps}.*"
        )
    parts += [
        _usage(layout, repository or "PATH_OR_REPOSITORY"),
        _sampler(conversion, layout),
        _results(conversion),
        _origin(conversion, layout),
        f"## Citation\n\n{_CITATION}",
    ]
    return "\n\n".join(parts) + "\n"


def classifier_card(classifier: NoiseConditionalClassifier, repository: str | None = None) -> str:
    """The content of README.md for a converted noise-conditional classifier."""
    where = repository or "PATH_OR_REPOSITORY"
    config = classifier.config
    parts = [
        _metadata(("diffusers", "score-sde", "image-classification")),
        "# Noise-conditional classifier\n\nA wide residual network that tells the class of an image with noise of "
        f"standard deviation sigma ({config.num_classes} classes), for class-conditional sampling with the VE SDE "
        "([Song et al. 2021](https://arxiv.org/abs/2011.13456)). Converted from the official JAX checkpoint by "
        "`diffusers-sde convert --classifier`.",
        "## Use\n\n```python\nfrom diffusers_sde import NoiseConditionalClassifier\n\n"
        f'classifier = NoiseConditionalClassifier.from_pretrained("{where}")\n```',
        f"## Citation\n\n{_CITATION}",
    ]
    return "\n\n".join(parts) + "\n"


def network_title(conversion: Conversion) -> str:
    """The network as the paper calls it."""
    model = conversion.config["model"]
    deep = " deep" if (conversion.config_name or "").endswith("_deep_continuous") else ""
    if model["name"] == "ncsnpp" and model["embedding_type"] == "positional" and not model["fir"]:
        return f"DDPM++{deep}"
    return _NETWORKS[type(conversion.pipeline.unet).__name__] + deep


def sde_title(conversion: Conversion) -> str:
    """The SDE, and whether its time was continuous in training."""
    config = conversion.pipeline.scheduler.config
    sde = {"vesde": "VE", "vpsde": "VP", "subvpsde": "sub-VP"}[conversion.config["training"]["sde"].lower()]
    return f"{sde} SDE in {'continuous' if config.continuous else 'discrete'} time"


def checkpoint_number(conversion: Conversion) -> int | None:
    """The number in the official name of the file, `checkpoint_N`: every so many steps one was kept."""
    frequency = conversion.config["training"].get("snapshot_freq")
    if not frequency or not conversion.step or conversion.step % frequency:
        return None
    return conversion.step // frequency


def _metadata(tags: tuple[str, ...]) -> str:
    lines = ["---", "license: apache-2.0", "library_name: diffusers"]
    if "unconditional-image-generation" in tags:
        lines.append("pipeline_tag: unconditional-image-generation")
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "- arxiv:2011.13456", "---"])


def _data_title(config: dict) -> str:
    data = config["data"]
    name = str(data.get("dataset", "unknown data"))
    category = str(data.get("category", "")).replace("_", " ")
    return f"LSUN {category}" if name == "LSUN" else _DATA_SETS.get(name, name)


def _usage(layout: str, where: str) -> str:
    if layout == "native":
        code = f'from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained("{where}")\n'
        note = "diffusers alone loads it."
    elif layout == "remote_code":
        code = (
            "from diffusers import DiffusionPipeline\n\n"
            f'pipe = DiffusionPipeline.from_pretrained("{where}", trust_remote_code=True)\n'
        )
        note = "The package `diffusers_sde` must be installed; what the repository runs is its import."
    else:
        code = (
            "import diffusers_sde  # makes the classes known to diffusers\n"
            f'from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained("{where}")\n'
        )
        note = "The package `diffusers_sde` must be installed; no code of the repository is run."
    return f'## Use\n\n{note}\n\n```python\n{code}image = pipe().images[0]\nimage.save("image.png")\n```'


def _sampler(conversion: Conversion, layout: str) -> str:
    scheduler = conversion.pipeline.scheduler
    rows = [f"| `{key}` | `{scheduler.config[key]}` |" for key in _SAMPLER_KEYS if key in scheduler.config]
    note = "The defaults are those of the official configuration. One step is one predictor step"
    if scheduler.config.corrector != "none" and scheduler.config.correct_steps:
        note += f" and {scheduler.config.correct_steps} corrector step(s), an evaluation of the network each"
    if layout == "native":
        note += ". The repository has diffusers' own scheduler; in terms of `diffusers_sde` its settings are these"
    head = [f"## Sampler: `{type(scheduler).__name__}`\n", f"{note}.\n", "| setting | value |", "|---|---|"]
    return "\n".join([*head, *rows])


def _results(conversion: Conversion) -> str:
    row = paper_row(conversion.official_name)
    head = "## Published results\n\n"
    if row is None:
        return head + "None that belong to this configuration are known."
    name = row.official_name or conversion.official_name
    values = {key: value for key, value in asdict(row).items() if key != "official_name"}
    if not any(values.values()):
        return head + f"The official table has `{name}` with pictures and without numbers ([source]({SOURCE}))."
    cells = " | ".join("-" if value is None else f"{value:.2f}" for value in values.values())
    num_samples = conversion.config.get("eval", {}).get("num_samples", 50000)
    weights = "" if conversion.use_ema else " They belong to the averaged weights; this repository holds the raw ones."
    return (
        f"{head}Row `{name}` of the [official table]({SOURCE}). These are the authors' numbers; none was measured on "
        f"this repository.{weights}\n\n"
        "| FID | IS | FID (ODE) | NLL (bits/dim) |\n|:---:|:---:|:---:|:---:|\n"
        f"| {cells} |\n\n"
        f"FID and IS: the paper's Table 3, {num_samples} images of the sampler above, on the checkpoint with the "
        "smallest FID during training. FID (ODE) and NLL: Table 2, adaptive solver on the probability flow, uniformly "
        f"dequantised test images, on the last checkpoint.{_which_checkpoint(conversion)}"
    )


def _which_checkpoint(conversion: Conversion) -> str:
    number, last = checkpoint_number(conversion), conversion.config["training"].get("n_iters")
    if number is None or not last:
        return ""
    which = "the last one" if conversion.step >= last - 1 else "not the last one"
    return f" This file has the step of `checkpoint_{number}`, which is {which} of its training."


def _origin(conversion: Conversion, layout: str) -> str:
    unknown = "not in the file"
    values = {
        "official configuration": f"`{conversion.config_name}`" if conversion.config_name else "given as a file",
        "format": {"pytorch": "PyTorch (`.pth`)", "jax": "JAX (msgpack)"}[conversion.format],
        "weights": "moving average" if conversion.use_ema else "raw",
        "decay of the moving average": conversion.ema_decay if conversion.ema_decay is not None else unknown,
        "training step": f"{conversion.step:,}" if conversion.step is not None else unknown,
        "parameters": f"{conversion.num_parameters:,}",
        "other than in the configuration": "; ".join((*conversion.changes, *conversion.notes)) or "nothing",
        "not used of the file": ", ".join(conversion.unused) or "nothing",
        "layout": f"`{layout}`",
    }
    rows = [f"| {key} | {value} |" for key, value in values.items()]
    return "\n".join(["## Origin\n", "| | |", "|---|---|", *rows])
