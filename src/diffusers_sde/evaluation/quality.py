"""FID, Inception score, KID, precision and recall of a set of images, by the features of an extractor.

Features are a pure function of the images and the extractor, so they are kept under the hash of both: whatever was
computed once, by whatever process, is never computed again, and never taken for that of other images.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ..data import PICTURE_SUFFIXES, picture_files, read_picture
from ..store import digest
from .distances import frechet_distance, inception_score, kernel_distance, precision_recall
from .extractors import FeatureExtractor, Features
from .shards import read_tensors, write_tensors
from .statistics import FeatureStatistics

QUALITY_METRICS = ("fid", "is", "kid", "precision_recall")
NEED_REFERENCE = ("fid", "kid", "precision_recall")
_NEIGHBORHOOD, _SUBSET_SIZE = 3, 1000
_MOST_SPLITS, _IMAGES_OF_SPLIT = 10, 100


class CachedExtractor:
    """An extractor that keeps what it says of a batch in a folder.

    Args:
        extractor: what is asked.
        folder: of the files; one below it belongs to the extractor.
        batch_size: most images per evaluation of its network.
    """

    def __init__(self, extractor: FeatureExtractor, folder: str | Path, batch_size: int = 50):
        self.extractor, self.batch_size = extractor, batch_size
        self.name, self.fingerprint = extractor.name, extractor.fingerprint
        self.num_features = extractor.num_features
        self.folder = Path(folder) / f"features-{self.fingerprint[:16]}"

    def __call__(self, images: torch.Tensor) -> Features:
        path = self._path(images)
        tensors = read_tensors(path)
        if tensors is None:
            outputs = [self.extractor(part) for part in images.split(self.batch_size)]
            tensors = {"features": torch.cat([output.features.cpu() for output in outputs])}
            if outputs[0].logits is not None:
                tensors["logits"] = torch.cat([output.logits.cpu() for output in outputs])
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors)
        return Features(tensors["features"], tensors.get("logits"))

    def knows(self, images: torch.Tensor) -> bool:
        """Whether the batch needs no evaluation."""
        return read_tensors(self._path(images)) is not None

    def _path(self, images: torch.Tensor) -> Path:
        return self.folder / f"{digest({'images': images})[:32]}.safetensors"


def blocks(images: Sequence[torch.Tensor], size: int, start: int = 0, step: int = 1) -> Iterator[torch.Tensor]:
    """Batches of `size` images in their order, all of them or every `step`-th from number `start` on."""
    for first in range(start * size, len(images), step * size):
        yield torch.stack([images[i] for i in range(first, min(first + size, len(images)))])


def extract_share(
    images: Sequence[torch.Tensor],
    extractor: CachedExtractor,
    size: int,
    process_index: int = 0,
    num_processes: int = 1,
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Keep the features of this process's blocks of images."""
    for block in blocks(images, size, process_index, num_processes):
        extractor(block)
        on_progress(len(block))


def check_reference(metrics: Sequence[str], reference: FeatureStatistics, extractor: FeatureExtractor) -> None:
    """Check, before any work, that a reference has what metrics need.

    Raises:
        ValueError: if it is of another extractor, or features are missing.
    """
    nothing = np.zeros(extractor.num_features)
    provenance = {"extractor": extractor.name, "extractor_sha256": extractor.fingerprint}
    reference.check_comparable(FeatureStatistics(nothing, np.diag(nothing), provenance=provenance))
    if {"kid", "precision_recall"} & set(metrics) and reference.features is None:
        raise ValueError(
            "the reference statistics hold no features, only mean and covariance, which do for `fid` alone. Write "
            "them with features, or give --data instead of --statistics."
        )


def measure_quality(
    metrics: Sequence[str], samples: FeatureStatistics, reference: FeatureStatistics | None, seed: int = 0
) -> dict[str, dict]:
    """Metrics by name, each a dictionary of its `value` and what else belongs to it.

    Args:
        metrics: of `QUALITY_METRICS`.
        samples: of generated images, with features.
        reference: of real images, with features for all but FID; the Inception score needs none.
        seed: of subsets and splits.

    Raises:
        ValueError: if the extractor gives no logits and `is` is asked for.
    """
    results = {}
    if "fid" in metrics:
        value = frechet_distance(samples.mean, samples.covariance, reference.mean, reference.covariance)
        results["fid"] = {"value": value}
    if "is" in metrics:
        if samples.logits is None:
            raise ValueError("this extractor does not classify, so there is no Inception score; leave out `is`.")
        splits = max(1, min(_MOST_SPLITS, len(samples.logits) // _IMAGES_OF_SPLIT))
        mean, std = inception_score(samples.logits, num_splits=splits, seed=seed)
        results["inception_score"] = {"value": mean, "std": std, "num_splits": splits}
    if "kid" in metrics:
        size = min(_SUBSET_SIZE, len(samples.features), len(reference.features))
        mean, std = kernel_distance(samples.features, reference.features, subset_size=size, seed=seed)
        results["kid"] = {"value": mean, "std": std, "subset_size": size}
    if "precision_recall" in metrics:
        pair = precision_recall(reference.features, samples.features, neighborhood=_NEIGHBORHOOD)
        for name, value in zip(("precision", "recall"), pair, strict=True):
            results[name] = {"value": value, "neighborhood": _NEIGHBORHOOD}
    return results


def identity(statistics: FeatureStatistics) -> str:
    """Hash of the images that statistics are of, or, where a file does not say, of mean and covariance."""
    if "images_sha256" in statistics.provenance:
        return statistics.provenance["images_sha256"]
    arrays = {"mean": statistics.mean, "covariance": statistics.covariance}
    return digest({name: torch.from_numpy(array) for name, array in arrays.items()})


class FolderImages:
    """The pictures in a folder, in the order of their names: `images[i]` is uint8 of shape (C, H, W).

    Args:
        folder: searched with the folders below it.

    Raises:
        ValueError: if there are none; when a picture differs in size or colour from the first, or cannot be read.
    """

    def __init__(self, folder: str | Path):
        self.paths = picture_files(folder)
        if not self.paths:
            raise ValueError(f"{folder} has no pictures ({', '.join(PICTURE_SUFFIXES)}).")
        first = read_picture(self.paths[0])
        self.size, self.mode = first.size, first.mode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = read_picture(self.paths[index])
        if image.mode not in ("L", "RGB") or (image.size, image.mode) != (self.size, self.mode):
            raise ValueError(
                f"{self.paths[index]} is {image.size} of mode {image.mode!r}, the first picture {self.size} of "
                f"{self.mode!r}; all must be alike, grey (L) or RGB."
            )
        array = np.array(image)
        return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1).contiguous()
