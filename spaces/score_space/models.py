"""Networks of the Space: loaded once, shared by all users and never changed; the least recently used are dropped.

A repository is loaded without any code of its own, and only if its index names a score network: the rest of it is not
even downloaded otherwise.
"""

import os
import re
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import get_args

import torch
from huggingface_hub import constants, model_info

import diffusers_sde
from diffusers_sde.image_folder import load
from diffusers_sde.pipelines.base import ScoreNetwork
from diffusers_sde.sde import SDE, VESDE, VPSDE

FASHION = "Fashion-MNIST, grey, VE (embedded)"
CIFAR = "CIFAR-10, colour, VP (embedded)"
EMBEDDED = {FASHION: diffusers_sde.embedded_model_path(), CIFAR: diffusers_sde.embedded_colour_model_path()}
LABELS = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

PIPELINES = {name for name in diffusers_sde.__all__ if name.endswith("Pipeline")} | {
    "DDIMPipeline",
    "DDPMPipeline",
    "PNDMPipeline",
    "ScoreSdeVePipeline",
}
NETWORKS = {cls.__name__ for cls in get_args(ScoreNetwork)}
MAX_NUMBERS = 16 * 3 * 256 * 256  # of a batch of images
MAX_REPOSITORY = 2_000_000_000  # bytes of weights
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_HELP = (
    "Choose an embedded model, or give a repository of the Hub as owner/name, such as google/ncsnpp-church-256, whose "
    "model_index.json names a score network."
)


class Turns:
    """A lock that is granted in the order in which it was asked for, so that no run waits for ever."""

    def __init__(self):
        self._condition = threading.Condition()
        self._next_ticket = self._now_serving = 0

    def __enter__(self):
        with self._condition:
            ticket = self._next_ticket
            self._next_ticket += 1
            self._condition.wait_for(lambda: self._now_serving == ticket)

    def __exit__(self, *_):
        with self._condition:
            self._now_serving += 1
            self._condition.notify_all()


@dataclass(frozen=True)
class Model:
    """A network with the scheduler that it was trained for, shared by all runs.

    Args:
        network: in evaluation mode, without gradients of its parameters.
        scheduler: one of the package's; its config is read, its state never used.
        turns: held during each evaluation.
    """

    network: torch.nn.Module
    scheduler: object
    turns: Turns = field(default_factory=Turns)

    @property
    def channels(self) -> int:
        """Of its images."""
        return self.network.config.in_channels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images in pixels."""
        size = self.network.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def describe(self) -> str:
        """SDE, network, size and training sampler as Markdown."""
        config, (height, width) = self.scheduler.config, self.size
        millions = sum(p.numel() for p in self.network.parameters()) / 1e6
        return (
            f"{equation(self.scheduler.sde)}  \n"
            f"{type(self.network).__name__}, {millions:.1f} million parameters, images of {self.channels} × {height} "
            f"× {width}. Its own sampler: predictor {config.predictor}, corrector {config.corrector}."
        )


def equation(sde: SDE) -> str:
    """The SDE in symbols, with the numbers of its noise, as Markdown."""
    if isinstance(sde, VESDE):
        return f"**VE SDE**: dx = g(t) dw, noise σ(t) from {sde.sigma_min:g} to {sde.sigma_max:g}"
    name, noise = ("VP", "√β(t) dw") if isinstance(sde, VPSDE) else ("sub-VP", "√(β(t) (1 − α(t)⁴)) dw")
    return f"**{name} SDE**: dx = −½ β(t) x dt + {noise}, β(t) from {sde.beta_min:g} to {sde.beta_max:g}"


class ModelCache:
    """Models by name, each loaded once however many users ask at the same time.

    Args:
        capacity: number of models that are kept.
        load: `name -> Model`.
    """

    def __init__(self, capacity: int, load):
        self.capacity, self._load = capacity, load
        self._futures: OrderedDict[str, Future] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> Model:
        """The model; a failure is not kept.

        Raises:
            ValueError: if it cannot be loaded.
        """
        if not isinstance(name, str):
            raise ValueError(f"the model's name is a {type(name).__name__}, not a text. {_HELP}")
        with self._lock:
            future = self._futures.get(name)
            is_first = future is None
            if is_first:
                future = self._futures[name] = Future()
                while len(self._futures) > self.capacity:
                    self._futures.popitem(last=False)
            self._futures.move_to_end(name)
        if is_first:
            try:
                future.set_result(self._load(name))
            except BaseException as error:
                with self._lock:
                    self._futures.pop(name, None)
                future.set_exception(error)
        return future.result()


def load_model(name: str) -> Model:
    """An embedded model by its title, or that of a Hub repository or folder.

    Raises:
        ValueError: if there is none, or it is not a score network whose SDE is known.
    """
    path = EMBEDDED.get(name) or _checked_name(name)
    try:
        _check_index(diffusers_sde.ScoreSdePipeline.load_config(path))
        _check_repository_size(path)
        pipeline = load(diffusers_sde.ScoreSdePipeline, path)
        scheduler = diffusers_sde.from_diffusers_scheduler(pipeline.scheduler)
        pipeline._check_network()
        height, width = pipeline._image_size(None, None)
        if pipeline.unet.config.in_channels * height * width > MAX_NUMBERS:
            raise ValueError(f"its images of {height} x {width} pixels are too large here.")
    except Exception as error:  # whatever a stranger's repository may cause
        reason = str(error).strip().split("\n")[0][:300]
        raise ValueError(f"{name!r} cannot be loaded: {reason or type(error).__name__} {_HELP}") from error
    return Model(pipeline.unet.eval().requires_grad_(False), scheduler)


MODELS = ModelCache(capacity=3, load=load_model)


@cache
def load_classifier() -> torch.nn.Module:
    """The embedded classifier of noisy garments, on the device of the networks."""
    classifier = diffusers_sde.NoiseConditionalClassifier.from_pretrained(diffusers_sde.embedded_classifier_path())
    return classifier.eval().requires_grad_(False).to(MODELS.get(FASHION).network.device)


def _checked_name(name) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise ValueError(f"the model's name is empty, or longer than 200 characters. {_HELP}")
    is_folder, on_a_space = Path(name).is_dir(), "SPACE_ID" in os.environ
    if not (_HUB_NAME.fullmatch(name) or is_folder) or (is_folder and on_a_space):
        raise ValueError(f"{name!r} is not a name of a model. {_HELP}")
    return name


def _check_repository_size(path: str | Path) -> None:
    """Refuse a repository with more weights than fit, before they are downloaded or read."""
    if Path(path).is_dir():
        sizes = [file.stat().st_size for file in Path(path).rglob("*") if file.is_file()]
    elif constants.HF_HUB_OFFLINE:
        return  # what is loaded was downloaded before
    else:
        sizes = [sibling.size or 0 for sibling in model_info(path, files_metadata=True).siblings]
    if sum(sizes) > MAX_REPOSITORY:
        raise ValueError(f"it has {sum(sizes) / 1e9:.1f} GB; at most {MAX_REPOSITORY / 1e9:g} GB are loaded here.")


def _check_index(index: dict) -> None:
    """Refuse what is no score network from its `model_index.json` alone."""
    pipeline = index.get("_class_name")
    pipeline = pipeline[-1] if isinstance(pipeline, list) else pipeline
    entry = index.get("unet")
    network = entry[-1] if isinstance(entry, list) and entry else None
    if pipeline not in PIPELINES or network not in sorted(NETWORKS):
        raise ValueError(f"it is a {pipeline!s:.50} over a {network!s:.50}, not an unconditional score network.")
