r"""Training of noise-conditional classifiers, behind `training/train_classifier.py`.

A classifier learns log p(label | y, s) of noisy images by cross-entropy:

    y = x_0 + s noise,      noise ~ N(0, I),      x_0 in [0, 1],      log s ~ U(log sigma_min, log sigma_max).

Under the VE SDE this is x_t at uniform t, as published. Under any SDE x_t / alpha(t) has the law of y at
s = sigma(t) / alpha(t), so one classifier serves VE, VP and sub-VP; times that are uniform for VP would spend half of
the training on s > 5, where little is left to learn.

Reference: Song et al. 2021, arXiv:2011.13456, Sec. 5 and App. I.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from ..models import NoiseConditionalClassifier
from .components import image_size
from .data import load_images, local_files, where_of
from .ema import averaged_weights
from .images import ImageFormat
from .loop import NUM_LEVELS, Trainer
from .options import check_args
from .progress import LevelMeans
from .randomness import PositionNoise, Purpose
from .sources import open_source, to_data_range

logger = logging.getLogger(__name__)


def train_classifier(args: argparse.Namespace) -> int:
    """Train as the options say, up to the last step, the time limit or SIGTERM; save checkpoint and classifier.

    Args:
        args: from `parse_classifier_args`.

    Returns:
        The number of optimiser steps taken in all.

    Raises:
        ValueError: if options, data and network do not fit together.
        FloatingPointError: if the loss is not finite.
    """
    start = time.monotonic()
    check_args(args)
    return ClassifierTrainer(args, start).run()


class ClassifierTrainer(Trainer):
    """One run: the loop of `Trainer` with labels and cross-entropy.

    Args:
        args: from `parse_classifier_args`.
        start: `time.monotonic()` at the start of the program.
    """

    RESULTS = ("config.json", "diffusion_pytorch_model.safetensors")

    def _open_source(self):
        if not isinstance(self.network, NoiseConditionalClassifier):
            raise ValueError(
                f"--model_config_name_or_path is of a {type(self.network).__name__}; give the configuration of a "
                "NoiseConditionalClassifier, with that as its _class_name."
            )
        args, num_classes = self.args, self.network.config.num_classes
        source = super()._open_source()
        if args.streaming:
            raise ValueError("labels are read as a whole, so --streaming has no meaning here; leave it out.")
        where = where_of(args)
        self.labels = load_labels(args.label_column, num_classes, **where)
        self.held_out = None
        if args.validation_data_dir is not None and self.accelerator.is_main_process:
            where = {"train_data_dir": args.validation_data_dir, "cache_dir": args.cache_dir}
            labels = load_labels(args.label_column, num_classes, **where)
            self.held_out = self._read_all(load_images(image_column=args.image_column, **where)), labels
        return source

    def _read_all(self, dataset) -> torch.Tensor:
        """Images to test on, cropped at the centre; uint8, shape (N, C, H, W)."""
        args, channels = self.args, self.network.config.in_channels
        image_format = ImageFormat(
            image_size(self.network), channels, args.channels is not None, args.pad, center_crop=True
        )
        return open_source(dataset, image_format, memory_limit=float("inf"), show_progress=False).images

    def _prepare(self) -> None:
        super()._prepare()
        self.centered = True  # its images are in [0, 1], whatever the score network's data range
        self.levels = LevelMeans(NUM_LEVELS, 2, self.accelerator.device)

    def _loss(self, x_0: torch.Tensor, noise: PositionNoise) -> torch.Tensor:
        sde, t = self.scheduler.sde, self.times(noise.uniform(Purpose.TIME)).t
        labels = self.labels[self.source.order.indices(noise.start, noise.count)].to(x_0.device)
        x_t = sde.perturb(x_0, noise.normal(Purpose.NOISE, x_0.shape[1:]), t)
        logits = self.forward(self._laid_out(x_t), sde.sigma(t)).logits.float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        self.levels.add(t, losses.detach(), logits.argmax(dim=1) == labels)
        return losses.mean()

    def _level_values(self, means: list[list[float]]) -> dict[str, float]:
        edges = self.scheduler.sde.sigma(torch.linspace(0, 1, NUM_LEVELS + 1)).tolist()
        values, parts = {}, []
        for i, (loss, accuracy) in enumerate(means):
            parts.append(f"{edges[i]:.2g}-{edges[i + 1]:.2g}: {loss:.3f} {accuracy:.3f}")
            values |= {f"loss/level_{i}": loss, f"accuracy/level_{i}": accuracy}
        if self.accelerator.is_main_process:
            logger.info(f"step {self.step}, loss and accuracy by sigma: {', '.join(parts)}")
        return values

    def _result(self, network: torch.nn.Module) -> torch.nn.Module:
        return network

    def _describe_result(self) -> None:
        pass

    def _finish(self) -> None:
        super()._finish()
        if self.held_out is None or self.stop.terminated:
            return
        sigmas = self.scheduler.sde.sigma(torch.linspace(0, 1, 2 * NUM_LEVELS - 1))
        with averaged_weights(self.network, self.ema) as classifier, self.accelerator.autocast():
            rows = accuracy_by_sigma(classifier, *self.held_out, sigmas)
        for sigma, loss, accuracy in rows:
            logger.info(f"held out: sigma {sigma:.3g}, loss {loss:.3f}, accuracy {accuracy:.4f}")


def load_labels(
    column: str,
    num_classes: int,
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    cache_dir: str | None = None,
) -> torch.Tensor:
    """The labels of a data set, in the order of `load_images`.

    Args:
        column: their name.
        num_classes: that the classifier knows.
        dataset_name: as for `load_images`, likewise the rest.
        dataset_config_name: its configuration.
        train_data_dir: folder or parquet file.
        cache_dir: where `datasets` keeps its files.

    Returns:
        int64, shape (N,), in [0, num_classes).

    Raises:
        ValueError: if the column does not exist, or holds something else.
    """
    import datasets

    if train_data_dir is None:
        source = {"path": dataset_name, "name": dataset_config_name}
    else:
        source = local_files(Path(train_data_dir))
    dataset = datasets.load_dataset(**source, split="train", cache_dir=cache_dir)
    if column not in dataset.features:
        raise ValueError(f"--label_column is {column!r}; the data set has {', '.join(dataset.features)}.")
    if not getattr(dataset.features[column], "dtype", "").startswith(("int", "uint")):
        raise ValueError(
            f"--label_column {column!r} holds {dataset.features[column]}; labels are whole numbers from 0 on. Convert "
            "the column, as by datasets' class_encode_column."
        )
    labels = torch.tensor(dataset.with_format("numpy")[column][:], dtype=torch.int64)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"--label_column {column!r} holds {low} to {high}; the classifier has num_classes = {num_classes}, so "
            f"labels are 0 to {num_classes - 1}. Change the network configuration or the labels."
        )
    return labels


@torch.no_grad()
def accuracy_by_sigma(
    classifier: NoiseConditionalClassifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    sigmas: torch.Tensor,
    *,
    batch_size: int = 250,
    seed: int = 0,
) -> list[tuple[float, float, float]]:
    """Loss and accuracy on images with the same noise at several levels.

    Args:
        classifier: to be tested, in evaluation mode.
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,).
        sigmas: standard deviations of the noise, shape (L,).
        batch_size: images at once.
        seed: of the noise.

    Returns:
        (sigma, mean loss in nats, accuracy) per level.
    """
    sums, device = torch.zeros(len(sigmas), 2, dtype=torch.float64), classifier.device
    generator = torch.Generator().manual_seed(seed)
    for batch, targets in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        x_0, targets = to_data_range(batch, centered_by_network=True).to(device), targets.to(device)
        noise = torch.randn(x_0.shape, generator=generator).to(device)
        for i, sigma in enumerate(sigmas.tolist()):
            logits = classifier(x_0 + sigma * noise, sigma).logits.float()
            correct = (logits.argmax(dim=1) == targets).sum()
            sums[i] += torch.stack([F.cross_entropy(logits, targets, reduction="sum"), correct]).cpu()
    means = (sums / len(images)).tolist()
    return [(sigma, loss, accuracy) for sigma, (loss, accuracy) in zip(sigmas.tolist(), means, strict=True)]
