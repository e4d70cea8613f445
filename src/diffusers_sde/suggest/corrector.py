r"""The corrector's signal-to-noise ratio by trial: samples at each value of a grid, and their distance from data.

Image i is drawn from the generator of (seed, i) at every value, so that all values see the same noise, and what
differs is the corrector. Errors come from leaving out each of G groups of images (jackknife): with theta the distance
of all samples and theta_g that without group g,

    standard error^2 = (G - 1) / G  sum_g (theta_g - mean of theta_g)^2,

and the same of differences between two values, group by group, whose noise is largely in common.

Reference: Song et al. 2021, arXiv:2011.13456, App. G, whose authors chose snr by a grid search likewise.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

from ..evaluation.provenance import model_settings, versions
from ..pipelines import ScoreSdePipeline
from ..seeding import image_generators
from ..store import as_json, check_file, check_settings, is_json_with, read_json, write_json
from .metrics import Metric

NUM_GROUPS = 8
WITHIN = 2.0
"""Standard errors of a difference up to which two values are said to be level."""


@dataclass
class CorrectorTuning:
    """A search for `snr`; every value that is measured is kept in a file.

    Args:
        pipeline: what samples; its scheduler is changed while it does, and put back.
        metric: distance from data, whose reference is set.
        output: JSON file.
        num_samples: images per value, at least 16.
        steps: predictor steps; the scheduler's `num_train_timesteps` if `None`.
        seed: of the images.
        batch_size: images per network evaluation; it does not change the images.
        provenance: what else fixes the numbers: model, data.
        floor: distance of as many images of data from the reference, to be kept beside the values; nothing less can
            be hoped for.
        overwrite: whether a file of other settings may be replaced.

    Raises:
        ValueError: if the scheduler has no corrector to tune, there are too few samples, or the file is of other
            settings.
    """

    pipeline: ScoreSdePipeline
    metric: Metric
    output: Path
    num_samples: int = 256
    steps: int | None = None
    seed: int = 0
    batch_size: int = 16
    provenance: dict = field(default_factory=dict)
    floor: float | None = None
    overwrite: bool = False

    def __post_init__(self):
        config = self.pipeline.scheduler.config
        if config.get("corrector", "none") == "none":
            raise ValueError(
                f"the corrector of this {type(self.pipeline.scheduler).__name__} is "
                f"{config.get('corrector')!r}, which has no snr. Choose one by --corrector, langevin or ald."
            )
        if self.num_samples < 2 * NUM_GROUPS:
            raise ValueError(f"num_samples is {self.num_samples}; errors need at least {2 * NUM_GROUPS}.")
        self.steps = config.num_train_timesteps if self.steps is None else self.steps
        self.output = Path(self.output)
        self._record = {"settings": self._settings(), "floor": self.floor, "points": {}}
        check_file(self.output, "a record of values of snr", is_json_with(settings=dict, points=dict))
        if self.output.is_file() and self.output.stat().st_size:
            self._read()

    def _settings(self) -> dict:
        settings = {
            **self.provenance,
            **model_settings(self.pipeline),
            **self.metric.name,
            "num_samples": self.num_samples,
            "steps": self.steps,
            "seed": self.seed,
            "versions": versions(),
        }
        settings["scheduler_config"].pop("snr")
        return as_json(settings)

    def _read(self) -> None:
        found = read_json(self.output)
        wanted = self._record["settings"]
        where = {"place": self.output, "what": "values", "overwrite": self.overwrite}
        if check_settings(found["settings"], wanted, **where):
            self._record = found

    @property
    def points(self) -> list[dict]:
        """What is measured, by ascending `snr`: `snr`, `distance`, `standard_error`, `leave_out`."""
        return sorted(self._record["points"].values(), key=lambda point: point["snr"])

    def missing(self, grid: Iterable[float]) -> list[float]:
        """The values of a grid that are not measured yet, in its order."""
        return [snr for snr in grid if _key(snr) not in self._record["points"]]

    def run(self, grid: Iterable[float], on_step: Callable[[], None] = lambda: None) -> list[dict]:
        """Measure what is missing of a grid.

        Args:
            grid: values of `snr`; 0 stands for no corrector at all.
            on_step: called after each predictor step of a batch.

        Returns:
            `points`.

        Raises:
            ValueError: if a value is not allowed, or the state becomes NaN or infinite.
        """
        for snr in self.missing(grid):
            self._record["points"][_key(snr)] = {"snr": snr, **self._measure(snr, on_step)}
            self.output.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.output, self._record)
        return self.points

    def finer_grid(self) -> list[float]:
        """The values half-way between the best one and its neighbours; past the largest one if that is the best."""
        values = [point["snr"] for point in self.points]
        best = min(self.points, key=lambda point: point["distance"])["snr"]
        finer = [(a + b) / 2 for a, b in pairwise(values) if best in (a, b)]
        if best == values[-1]:
            finer.append(2 * best - values[-2] if len(values) > 1 else 2 * best)
        return [round(snr, 6) for snr in finer]

    def comparison(self) -> list[dict]:
        """Each value against the best: `difference` of the distances, its `standard_error`, and `level`.

        Two values are level if their difference is at most two standard errors: the samples do not tell which is
        better. Among several values the smallest one is also the luckiest, so read ties generously.
        """
        points = self.points
        best = min(points, key=lambda point: point["distance"])
        rows = []
        for point in points:
            difference = point["distance"] - best["distance"]
            error = jackknife_error([a - b for a, b in zip(point["leave_out"], best["leave_out"])])
            level = difference <= WITHIN * error
            rows.append({"snr": point["snr"], "difference": difference, "standard_error": error, "level": level})
        return rows

    def _measure(self, snr: float, on_step: Callable[[], None]) -> dict:
        changes = {"snr": snr} if snr else {"corrector": "none"}
        scheduler = self.pipeline.scheduler
        self.pipeline.set_progress_bar_config(disable=True)
        try:
            self.pipeline.scheduler = type(scheduler).from_config(scheduler.config, **changes)
            features = torch.cat([self.metric.features(images) for images in self._draw(on_step)])
        except ValueError as error:
            raise ValueError(f"with snr {snr:g}: {error}") from error
        finally:
            self.pipeline.scheduler = scheduler
        group = torch.arange(self.num_samples) % NUM_GROUPS
        leave_out = [self.metric.distance(features[group != g]) for g in range(NUM_GROUPS)]
        distance = self.metric.distance(features)
        return {"distance": distance, "standard_error": jackknife_error(leave_out), "leave_out": leave_out}

    def _draw(self, on_step: Callable[[], None]):
        def on_step_end(pipeline, step, timestep, tensors):
            on_step()
            return {}

        for start in range(0, self.num_samples, self.batch_size):
            indices = range(start, min(start + self.batch_size, self.num_samples))
            images = self.pipeline(
                batch_size=len(indices),
                num_inference_steps=self.steps,
                generator=image_generators(self.seed, indices),
                callback_on_step_end=on_step_end,
                output_type="pt",
            ).images
            yield (255 * images).round().byte().cpu()


def jackknife_error(leave_out: list[float]) -> float:
    """Standard error from the G values that leave out one group each."""
    mean = math.fsum(leave_out) / len(leave_out)
    return math.sqrt((1 - 1 / len(leave_out)) * math.fsum((value - mean) ** 2 for value in leave_out))


def _key(snr: float) -> str:
    return f"{snr:g}"
