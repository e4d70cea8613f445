r"""Distances between two sets of images by their features, and the score of one set by its logits; all in float64.

With features f of mean m and covariance C over real (a) and generated (b) images, and logits that say p(y | x):

    Frechet distance     |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2)                          (FID)
    kernel distance      E k(f_a, f_a') + E k(f_b, f_b') - 2 E k(f_a, f_b),  k(u, v) = (gamma u.v + c)^d (KID)
    Inception score      exp E KL(p(y | x) || E p(y | x))
    precision, recall    share of generated features within the real manifold, of real ones within the generated

Arguments are arrays or tensors; what is computed stays on their device.
"""

from itertools import pairwise

import numpy as np
import torch

_BLOCK = 2**24  # distances in memory at once


def frechet_distance(mean_a, covariance_a, mean_b, covariance_b) -> float:
    r"""|m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2), the squared 2-Wasserstein distance of two Gaussians.

    With C_a = A A^T and C_b = B B^T the last trace is the sum of the singular values of A^T B: real and non-negative
    whatever the ranks, where a matrix root of the product C_a C_b is neither for covariances of few samples.

    Args:
        mean_a: of shape (D,).
        covariance_a: of shape (D, D), symmetric, of any rank.
        mean_b: likewise.
        covariance_b: likewise.

    Returns:
        The distance; for equal arguments 0 up to rounding, which may be negative.

    Raises:
        ValueError: if shapes differ or a number is not finite.

    Reference: Dowson and Landau 1982; Heusel et al. 2017, arXiv:1706.08500, Eq. (6).
    """
    mean_a, mean_b = (_float64(mean, "a mean", 1) for mean in (mean_a, mean_b))
    covariances = [_float64(covariance, "a covariance", 2) for covariance in (covariance_a, covariance_b)]
    shapes = [tuple(x.shape) for x in (mean_a, covariances[0], mean_b, covariances[1])]
    features = len(mean_a)
    if shapes != 2 * [(features,), (features, features)]:
        raise ValueError(
            f"means and covariances have the shapes {', '.join(map(str, shapes))}; they must be (D,) and (D, D) of "
            "one D. Take both from one extractor."
        )
    factor_a, factor_b = map(_factor, covariances)
    overlap = torch.linalg.svdvals(factor_a.T @ factor_b).sum()
    return float((mean_a - mean_b).square().sum() + sum(c.trace() for c in covariances) - 2 * overlap)


def _factor(covariance: torch.Tensor) -> torch.Tensor:
    """A with A A^T = covariance."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    return vectors * eigenvalues.clamp(min=0).sqrt()  # negative ones are rounding


def kernel_distance(
    features_a,
    features_b,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    seed: int = 0,
) -> tuple[float, float]:
    r"""Squared maximum mean discrepancy for k(u, v) = (gamma u.v + coef0)^degree, estimated without bias on subsets.

        sum_{i != j} (k(a_i, a_j) + k(b_i, b_j)) / (n (n - 1)) - 2 sum_{i, j} k(a_i, b_j) / n^2

    Args:
        features_a: of shape (N_a, D).
        features_b: of shape (N_b, D).
        num_subsets: pairs of subsets, drawn without replacement within each; the sets of torch-fidelity for its
            `rng_seed` = `seed`.
        subset_size: n.
        degree: of the polynomial.
        gamma: factor of the inner product; 1 / D if `None`.
        coef0: constant of the polynomial.
        seed: of the subsets.

    Returns:
        Mean and standard deviation over the subsets; for equal distributions 0 on average, hence at times negative.

    Raises:
        ValueError: if the features do not match, or there are fewer than `subset_size`.

    Reference: Binkowski et al. 2018, arXiv:1801.01401, Sec. 3.
    """
    features_a, features_b = _pair(features_a, features_b)
    fewest = min(len(features_a), len(features_b))
    if num_subsets < 1 or not 2 <= subset_size <= fewest:
        raise ValueError(
            f"num_subsets is {num_subsets} and subset_size {subset_size}; allowed are at least 1, and 2 to {fewest}, "
            "the size of the smaller set."
        )
    gamma = 1 / features_a.shape[1] if gamma is None else gamma
    random = np.random.RandomState(seed)

    def kernel(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (gamma * u @ v.T + coef0) ** degree

    def subset(features: torch.Tensor) -> torch.Tensor:
        return features[random.choice(len(features), subset_size, replace=False)]

    distances = []
    for _ in range(num_subsets):
        a, b = subset(features_a), subset(features_b)
        within = kernel(a, a).fill_diagonal_(0).sum() + kernel(b, b).fill_diagonal_(0).sum()
        distances.append(float(within / (subset_size * (subset_size - 1)) - 2 * kernel(a, b).mean()))
    return float(np.mean(distances)), float(np.std(distances))


def inception_score(logits, *, num_splits: int = 10, seed: int = 0) -> tuple[float, float]:
    r"""exp E KL(p(y | x) || p(y)), with p(y) = E p(y | x), over splits of a shuffled set.

    Args:
        logits: of shape (N, K).
        num_splits: parts of the set; the fewer images in one, the lower its score.
        seed: of the order; torch-fidelity's for its `rng_seed` = `seed`.

    Returns:
        Mean and standard deviation over the splits; the score lies in [1, K].

    Raises:
        ValueError: if there are fewer images than splits, or a number is not finite.

    Reference: Salimans et al. 2016, arXiv:1606.03498, Sec. 4.
    """
    logits = _float64(logits, "logits", 2)
    count = len(logits)
    if not 1 <= num_splits <= count:
        raise ValueError(f"num_splits is {num_splits}; allowed are 1 to {count}, the number of images.")
    log_p = logits[np.random.RandomState(seed).permutation(count)].log_softmax(dim=1)
    bounds = [i * count // num_splits for i in range(num_splits + 1)]
    scores = []
    for start, end in pairwise(bounds):
        part = log_p[start:end]
        log_marginal = part.logsumexp(dim=0) - np.log(end - start)  # finite where every p underflows
        scores.append(float((part.exp() * (part - log_marginal)).sum(dim=1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(features_real, features_fake, *, neighborhood: int = 3) -> tuple[float, float]:
    r"""Improved precision and recall: the manifold of a set is the union of balls around its features.

    The radius of a ball is the distance to the `neighborhood`-th nearest other feature of the set; the boundary
    belongs to it. Distances are computed block by block: time grows with the square of the set, memory does not.

    Args:
        features_real: of shape (N_real, D).
        features_fake: of shape (N_fake, D); take N_fake = N_real, the numbers depend on both.
        neighborhood: k.

    Returns:
        Precision (fidelity) and recall (coverage), in [0, 1].

    Raises:
        ValueError: if the features do not match, or there are not more than `neighborhood` in each set.

    Reference: Kynkaanniemi et al. 2019, arXiv:1904.06991, Eq. (1) and (2).
    """
    real, fake = _pair(features_real, features_fake)
    fewest = min(len(real), len(fake))
    if not 1 <= neighborhood < fewest:
        raise ValueError(
            f"neighborhood is {neighborhood}; allowed are 1 to {fewest - 1}, other features of the smaller set."
        )
    return _coverage(real, fake, neighborhood), _coverage(fake, real, neighborhood)


def _coverage(centres: torch.Tensor, points: torch.Tensor, neighborhood: int) -> float:
    """Share of the points within the manifold of the centres."""
    nearest = neighborhood + 1  # the nearest is the centre itself
    radii = torch.cat([distances.kthvalue(nearest, dim=1).values for distances in _distances(centres, centres)])
    return float(torch.cat([(d <= radii).any(dim=1) for d in _distances(points, centres)]).double().mean())


def _distances(points: torch.Tensor, centres: torch.Tensor):
    """Distances to all centres, of a block of points at a time."""
    for block in points.split(max(1, _BLOCK // len(centres))):
        yield torch.cdist(block, centres)


def _pair(features_a, features_b) -> tuple[torch.Tensor, torch.Tensor]:
    features_a, features_b = (_float64(features, "features", 2) for features in (features_a, features_b))
    if features_a.shape[1] != features_b.shape[1]:
        raise ValueError(
            f"one set has {features_a.shape[1]} features per image, the other {features_b.shape[1]}; take both from "
            "one extractor."
        )
    return features_a, features_b


def _float64(values, what: str, ndim: int) -> torch.Tensor:
    values = torch.as_tensor(values).double()
    if values.ndim != ndim or not values.isfinite().all():
        raise ValueError(
            f"{what} of shape {tuple(values.shape)} was given; it must have {ndim} dimension{'s'[: ndim - 1]} and "
            "finite numbers only."
        )
    return values
