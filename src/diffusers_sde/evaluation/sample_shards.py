"""Drawing N images of a model for measuring: in shards, by any number of processes, the same whoever draws them.

Image i is a function of (seed, i), and the same image that `diffusers-sde sample` draws. It is stored in 8 bits,
(255 x).round() of x in [0, 1], with the number of network evaluations it took.

A shard has the tensors `images` (uint8, (n, C, H, W)), `nfe` (int64, (n,)) and `success` (bool, (n,)).
"""

from pathlib import Path

import torch

from ..pipelines import ScoreSdeOdePipeline, ScoreSdePipeline
from ..seeding import image_generators
from ..store import SETTINGS_NAME, read_json
from .provenance import model_settings, versions
from .shards import MANIFEST_NAME, ShardFolder

_OF_SCHEDULER = ("predictor", "corrector", "snr", "correct_steps", "probability_flow")


class PredictorCorrectorSampler:
    """Sampling by a `ScoreSdePipeline`, whose scheduler has the predictor and the corrector.

    Args:
        pipeline: what draws.
        steps: predictor steps; the scheduler's `num_train_timesteps` if `None`.
    """

    def __init__(self, pipeline: ScoreSdePipeline, steps: int | None = None):
        self.pipeline = pipeline
        self.steps = pipeline.scheduler.config.num_train_timesteps if steps is None else steps
        pipeline.set_progress_bar_config(disable=True)

    def settings(self) -> dict:
        """What fixes the images besides the model."""
        config = self.pipeline.scheduler.config
        chosen = {name: config[name] for name in _OF_SCHEDULER if name in config}
        return {"name": "pc", "steps": self.steps, **chosen, "denoise": config.get("denoise_final")}

    @property
    def couples_batch(self) -> bool:
        """Whether an image depends on those drawn with it."""
        config = self.pipeline.scheduler.config
        return config.get("corrector_norm") == "batch" and config.get("corrector") == "langevin"

    def __call__(self, generators: list[torch.Generator]) -> dict[str, torch.Tensor]:
        """One image per generator."""
        calls = []
        counter = self.pipeline.unet.register_forward_hook(lambda *args: calls.append(None))
        try:
            options = {"num_inference_steps": self.steps, "generator": generators, "output_type": "pt"}
            images = self.pipeline(batch_size=len(generators), **options).images
        finally:
            counter.remove()
        count = len(generators)
        success = torch.ones(count, dtype=torch.bool)  # the pipeline raises an error otherwise
        return {"images": eight_bit(images), "nfe": torch.full((count,), len(calls)), "success": success}


class OdeSampler:
    """Sampling by the probability flow and an adaptive solver.

    Args:
        pipeline: what draws.
        solver: "adams" or "dopri5", with their default tolerances.
        denoise: whether to end with the mean of the clean image, by one more evaluation.
    """

    couples_batch = False

    def __init__(self, pipeline: ScoreSdeOdePipeline, solver: str = "adams", denoise: bool = False):
        self.pipeline, self.options = pipeline, {"solver": solver, "denoise": denoise}

    def settings(self) -> dict:
        """What fixes the images besides the model."""
        return {"name": "ode", **self.options}

    def __call__(self, generators: list[torch.Generator]) -> dict[str, torch.Tensor]:
        """One image per generator."""
        output = self.pipeline(batch_size=len(generators), generator=generators, output_type="pt", **self.options)
        return {"images": eight_bit(output.images), "nfe": output.nfe, "success": output.success}


def eight_bit(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as uint8, rounded as PIL images of the pipelines are."""
    return (255 * images.float()).round().clamp(0, 255).byte()


class SampleShards:
    """`num_samples` images of a sampler in a folder.

    Args:
        sampler: what draws.
        folder: of the shards.
        num_samples: size of the set.
        seed: of the set.
        provenance: what else fixes the images, such as the name of the model.
        batch_size: images per evaluation of the network; it does not change them beyond rounding, unless the corrector
            takes its norms over the batch, when it belongs to the settings.
        shard_size: images of a shard.
    """

    def __init__(
        self,
        sampler: PredictorCorrectorSampler | OdeSampler,
        folder: str | Path,
        *,
        num_samples: int,
        seed: int = 0,
        provenance: dict | None = None,
        batch_size: int = 50,
        shard_size: int = 500,
    ):
        self.sampler, self.seed, self.batch_size = sampler, seed, batch_size
        settings = {
            **(provenance or {}),
            **model_settings(sampler.pipeline),
            "sampler": sampler.settings(),
            "seed": seed,
            "versions": versions(),
        }
        if sampler.couples_batch:
            settings["batch_size"] = batch_size
        self.shards = ShardFolder(folder, settings, num_samples, shard_size)

    def draw(self, process_index: int = 0, num_processes: int = 1, on_progress=lambda done: None) -> None:
        """Draw the shards of this process that are missing; see `ShardFolder.fill`."""
        self.shards.fill(self._draw_batch, self.batch_size, process_index, num_processes, on_progress)

    def _draw_batch(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return self.sampler(image_generators(self.seed, indices))


def is_shard_folder(folder: str | Path) -> bool:
    """Whether a folder is one of `SampleShards`."""
    return (Path(folder) / SETTINGS_NAME).is_file()


def open_shards(folder: str | Path) -> ShardFolder:
    """The complete set of images in a folder, as its manifest says.

    Raises:
        ValueError: if the set is not complete.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {MANIFEST_NAME}: its images are not all drawn. Let `evaluate` finish there."
        )
    manifest = read_json(path)
    settings, count = manifest.get("settings"), manifest.get("count")
    size = settings.get("shard_size") if isinstance(settings, dict) else None
    if not (isinstance(count, int) and isinstance(size, int)):
        raise ValueError(f"{path} is not the manifest of a set of samples, which has count, settings and shard_size.")
    return ShardFolder(folder, settings, count, size)


class ShardImages:
    """The images of shards as a sequence: `images[i]` is uint8 of shape (C, H, W).

    Args:
        shards: that hold `images`.

    Raises:
        ValueError: when an image is asked for whose shard is missing.
    """

    def __init__(self, shards: ShardFolder):
        self.shards = shards
        self._number, self._images = -1, None

    def __len__(self) -> int:
        return self.shards.count

    def __getitem__(self, index: int) -> torch.Tensor:
        number, place = divmod(index, self.shards.shard_size)
        if number != self._number:
            tensors = self.shards.read(number)
            if tensors is None:
                raise ValueError(f"{self.shards.path(number)} is missing or damaged; let `evaluate` draw it again.")
            self._number, self._images = number, tensors["images"]
        return self._images[place]
