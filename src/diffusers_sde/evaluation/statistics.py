r"""Features of one set of images, in a file with what they are of.

Mean and covariance are accumulated in float64, batch by batch: two parts of n_1 and n_2 images with means m_1, m_2 and
sums of squares S_1, S_2 (about their means) have together

    m = m_1 + (n_2 / n) (m_2 - m_1),      S = S_1 + S_2 + (n_1 n_2 / n) (m_2 - m_1)(m_2 - m_1)^T,      C = S / (n - 1).

Reference: Chan, Golub and LeVeque 1983.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from ..store import replacement
from .extractors import FeatureExtractor
from .provenance import versions

ENOUGH_IMAGES = 10_000


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Features of a set of images under one extractor.

    Args:
        mean: of shape (D,), float64.
        covariance: of shape (D, D), float64, with denominator N - 1.
        count: N, or `None` if the file of somebody else does not say.
        features: of shape (N, D), float32, if they were kept.
        logits: of shape (N, K), float32, if they were kept and the extractor has any.
        provenance: extractor, data, preparation, hash of the images and versions, as JSON takes it.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None
    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    provenance: dict = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write an npz file that is complete or absent; other tools find `mu` and `sigma` in it."""
        arrays = {"mu": self.mean, "sigma": self.covariance, "features": self.features, "logits": self.logits}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        if self.count is not None:
            arrays["count"] = np.int64(self.count)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacement(path) as partial, partial.open("wb") as file:
            np.savez(file, provenance=np.array(json.dumps(self.provenance, sort_keys=True)), **arrays)

    @staticmethod
    def wrote(path: str | Path) -> bool:
        """Look whether a file is one of `save`, and not one of somebody else's statistics or arrays."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return {"mu", "sigma", "provenance"} <= set(file.files)
        except (ValueError, EOFError, OSError, BadZipFile, TypeError, AttributeError):
            return False

    @classmethod
    def load(cls, path: str | Path) -> "FeatureStatistics":
        """Read what `save` wrote, or the `mu` and `sigma`, or the `pool_3` and `logits`, of other code bases.

        Raises:
            ValueError: if the file holds none of these.
            OSError: if there is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files if name in _ARRAYS}
        except (ValueError, EOFError, BadZipFile, TypeError, AttributeError) as error:  # the last two of one array
            raise ValueError(f"{path} is not an npz file of plain arrays: {error}") from error
        features = arrays.get("features", arrays.get("pool_3"))
        if "mu" in arrays and "sigma" in arrays:
            mean, covariance = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
            count = int(arrays["count"]) if "count" in arrays else None
        elif features is not None:
            moments = _Moments()
            for part in torch.from_numpy(features).split(1000):
                moments.update(part)
            mean, covariance, count = moments.mean.numpy(), moments.covariance(), moments.count
        else:
            raise ValueError(
                f"{path} holds {', '.join(arrays) or 'no array that is known'}; statistics have mu and sigma, or "
                "pool_3. Write them by `diffusers-sde stats`."
            )
        provenance = json.loads(str(arrays["provenance"])) if "provenance" in arrays else {}
        return cls(mean, covariance, count, features, arrays.get("logits"), provenance)

    def check_comparable(self, other: "FeatureStatistics") -> None:
        """Check that both are of one extractor, as far as both say.

        Raises:
            ValueError: if they are not.
        """
        names = [statistics.provenance.get("extractor", "an unnamed extractor") for statistics in (self, other)]
        fingerprints = [statistics.provenance.get("extractor_sha256") for statistics in (self, other)]
        if len(self.mean) != len(other.mean) or (None not in fingerprints and len(set(fingerprints)) > 1):
            raise ValueError(
                f"one has {len(self.mean)} features of {names[0]} (weights and preprocessing {fingerprints[0]}), the "
                f"other {len(other.mean)} of {names[1]} ({fingerprints[1]}). Compare what one extractor says of both."
            )

    def bias_note(self) -> str | None:
        """What the number of images does to a Frechet distance, if they are few."""
        if self.count is None or (self.count >= ENOUGH_IMAGES and self.count > len(self.mean)):
            return None
        return (
            f"The Frechet distance of {self.count} images with {len(self.mean)} features is biased upwards: compare "
            f"it only with that of as many images. At least {ENOUGH_IMAGES:,} images, and more than features, are "
            "advisable, 50,000 usual; the kernel distance has no bias."
        )


_ARRAYS = ("mu", "sigma", "count", "features", "pool_3", "logits", "provenance")


class _Moments:
    """Mean and covariance of rows that come in parts."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, None, None

    def update(self, rows: torch.Tensor) -> None:
        rows = rows.double()
        count, mean = len(rows), rows.mean(dim=0)
        squares = (rows - mean).T @ (rows - mean)
        if self.count:
            total, step = self.count + count, mean - self.mean
            squares += self.squares + (self.count * count / total) * torch.outer(step, step)
            mean = self.mean + (count / total) * step
        self.count, self.mean, self.squares = self.count + count, mean, squares

    def covariance(self) -> np.ndarray:
        if self.count < 2:
            raise ValueError(f"{self.count} images were given; a covariance needs at least 2.")
        return (self.squares / (self.count - 1)).numpy()


def compute_statistics(
    images: Iterable[torch.Tensor],
    extractor: FeatureExtractor,
    *,
    keep_features: bool = True,
    provenance: dict | None = None,
    on_progress=lambda done: None,
) -> FeatureStatistics:
    """Run a set of images through an extractor.

    Args:
        images: batches, uint8 of shape (B, C, H, W); how they are cut does not change the result beyond rounding.
        extractor: see `extractors.load_extractor`.
        keep_features: whether features and logits are kept: mean and covariance are enough for the Frechet distance,
            the others need them.
        provenance: what else the images are, as JSON takes it.
        on_progress: called with the number of images of each batch that is done.

    Raises:
        ValueError: if the extractor refuses the images or does not keep its promise, or there are fewer than 2.
    """
    digest, moments, features, logits = hashlib.sha256(), _Moments(), [], []
    for batch in images:
        output = extractor(batch)
        rows = output.features.detach().cpu().float()
        if rows.shape != (len(batch), extractor.num_features) or not rows.isfinite().all():
            raise ValueError(
                f"{extractor.name} gave features of shape {tuple(rows.shape)} for {len(batch)} images; they must have "
                f"shape ({len(batch)}, {extractor.num_features}) and finite numbers only."
            )
        for image in batch:
            digest.update(str(tuple(image.shape)).encode())
            digest.update(image.contiguous().cpu().numpy())
        moments.update(rows)
        if keep_features:
            features.append(rows.numpy())
            logits.extend([] if output.logits is None else [output.logits.detach().cpu().float().numpy()])
        on_progress(len(batch))
    return FeatureStatistics(
        mean=moments.mean.numpy() if moments.count else np.empty(0),
        covariance=moments.covariance(),
        count=moments.count,
        features=np.concatenate(features) if features else None,
        logits=np.concatenate(logits) if logits else None,
        provenance={
            **(provenance or {}),
            "extractor": extractor.name,
            "extractor_sha256": extractor.fingerprint,
            "images_sha256": digest.hexdigest(),
            "versions": versions(),
        },
    )
