r"""Exact posteriors of linear measurements, and the network that a perfect training would give.

Data from a mixture of Gaussians N(m_k, S_k) with any covariances, measured as y = A x + noise_std n, have a mixture as
posterior again: with K_k = S_k A^T (A S_k A^T + noise_std^2 I)^-1

    x | y, k ~ N(m_k + K_k (y - A m_k), S_k - K_k A S_k),      p(k | y) ~ w_k N(y; A m_k, A S_k A^T + noise_std^2 I),

and p_t is a mixture with means alpha m_k and covariances alpha^2 S_k + sigma^2 I. Everything is in float64, images as
vectors of C H W numbers.
"""

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from diffusers_sde import ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from diffusers_sde.pipelines.pipeline_score_sde_inverse_problem import ScoreSdeInverseProblemPipeline
from diffusers_sde.sde import VESDE, VPSDE, SubVPSDE
from diffusers_sde.sde.operators import BlockAverage, Blur, GreyAxis, Mask, RandomProjection

SHAPE = (3, 4, 4)
SCHEDULERS = {
    "ve": lambda **options: ScoreSdeVeScheduler(**options),
    "vp": lambda **options: ScoreSdeVpScheduler(**{"corrector": "langevin", **options}),
    "sub_vp": lambda **options: ScoreSdeSubVpScheduler(**{"corrector": "langevin", **options}),
}

HALF = torch.zeros(1, 1, *SHAPE[1:])
HALF[..., :2] = 1
BINOMIAL = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16
OPERATORS = {
    "mask": Mask(HALF),
    "grey axis": GreyAxis(),
    "block average": BlockAverage(2),
    "blur": Blur(BINOMIAL),
    "projection": RandomProjection(SHAPE, 16, torch.Generator().manual_seed(0)),
}


class Mixture:
    """w_k, m_k of shape (K, d) and S_k of shape (K, d, d)."""

    def __init__(self, weights, means, covariances):
        self.weights, self.means, self.covariances = (
            torch.as_tensor(a, dtype=torch.float64) for a in (weights, means, covariances)
        )
        self.variances, self.bases = torch.linalg.eigh(self.covariances)
        self.variances = self.variances.clamp(min=0)

    def score(self, x, alpha, sigma):
        """Score of p_t at x, shape (B, d); alpha and sigma broadcast to (B, 1)."""
        coordinates = torch.einsum("kij,kbi->kbj", self.bases, x - alpha * self.means[:, None])
        variances = alpha**2 * self.variances[:, None] + sigma**2
        log_density = -0.5 * (coordinates.square() / variances + variances.log()).sum(dim=2)
        weights = (self.weights.log()[:, None] + log_density).softmax(dim=0)[..., None]
        return -(weights * torch.einsum("kij,kbj->kbi", self.bases, coordinates / variances)).sum(dim=0)

    def posterior(self, matrix, y, noise_std):
        """The mixture given y of shape (m,), for A of shape (m, d) with any rows."""
        u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        seen = s > 1e-10 * s[0]
        rows, y = s[seen, None] * v[seen], y.double() @ u[:, seen]  # independent measurements with the same noise
        cross = self.covariances @ rows.T
        inner = rows @ cross + noise_std**2 * torch.eye(len(rows), dtype=torch.float64)
        gain = torch.linalg.solve(inner, cross.mT).mT
        residual = y - self.means @ rows.T
        means = self.means + (gain @ residual[..., None])[..., 0]
        distance = (residual * torch.linalg.solve(inner, residual)).sum(dim=1)
        logits = self.weights.log() - 0.5 * (distance + torch.linalg.slogdet(inner).logabsdet)
        return Mixture(logits.softmax(dim=0), means, self.covariances - gain @ cross.mT)

    def mean(self):
        return self.weights @ self.means

    def covariance(self):
        offset = self.means - self.mean()
        return torch.einsum("k,kij->ij", self.weights, self.covariances + offset[:, :, None] * offset[:, None])

    def sample(self, count, generator):
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        # The symmetric root: eigenvectors of equal eigenvalues differ between processors, this does not.
        roots = (self.bases * self.variances.sqrt()[:, None]) @ self.bases.mT
        return self.means[k] + torch.einsum("bij,bj->bi", roots[k], z)


def field_covariance(std=0.2, length=2.0, colour=0.6):
    """Covariance of images that are smooth over `length` pixels, with channels of correlation `colour`."""
    channels, height, width = SHAPE
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    smooth = torch.exp(-torch.cdist(places, places) / length)
    colours = colour + (1 - colour) * torch.eye(channels, dtype=torch.float64)
    return std**2 * torch.kron(colours, smooth)


def white():
    """Independent pixels of mean 0.5 and standard deviation 0.2."""
    d = torch.Size(SHAPE).numel()
    return Mixture([1.0], torch.full((1, d), 0.5), 0.04 * torch.eye(d)[None])


def field():
    """Smooth Gaussian images of the same mean and standard deviation."""
    covariance = field_covariance()
    return Mixture([1.0], torch.full((1, len(covariance)), 0.5), covariance[None])


def two_fields():
    """Bright above or bright below, smooth Gaussian around it; the pixels' standard deviation is 0.2."""
    slope = torch.linspace(-0.2, 0.2, SHAPE[1], dtype=torch.float64)[:, None].expand(SHAPE).flatten()
    covariance = field_covariance(std=0.12)
    return Mixture([0.6, 0.4], torch.stack([0.5 + slope, 0.5 - slope]), covariance.expand(2, -1, -1))


class ExactNetwork(ModelMixin, ConfigMixin):
    """What a perfect network says of data from a `Mixture` in [0, 1], with the conventions of each SDE."""

    @register_to_config
    def __init__(
        self,
        sde: str = "ve",
        sample_size: tuple[int, int] = SHAPE[1:],
        in_channels: int = SHAPE[0],
        out_channels: int = SHAPE[0],
        center_input_sample: bool = True,
        block_out_channels: tuple[int, ...] = (4, 4),
    ):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.sde = {"ve": VESDE, "vp": VPSDE, "sub_vp": SubVPSDE}[sde]()
        self.prior = None

    def of(self, prior: Mixture):
        """The network for this prior, moved to the data range."""
        if not self.config.center_input_sample:
            prior = Mixture(prior.weights, 2 * prior.means - 1, 4 * prior.covariances)
        self.prior = prior
        return self

    def forward(self, sample, timestep):
        timestep = torch.as_tensor(timestep, dtype=torch.float64)
        if self.config.sde == "ve":
            alpha, sigma = torch.ones_like(timestep), timestep
        else:
            alpha, sigma = self.sde.alpha(timestep / 999), self.sde.sigma(timestep / 999)
        alpha, sigma = (c.reshape(-1, 1) for c in (alpha, sigma))
        score = self.prior.score(sample.double().flatten(1), alpha, sigma)
        output = (score if self.config.sde == "ve" else -sigma * score).reshape(sample.shape)
        return UNet2DOutput(sample=output.to(sample.dtype))


def matrix_of(operator, shape=SHAPE):
    """The operator's matrix, (m, d)."""
    count = torch.Size(shape).numel()
    return operator.A(torch.eye(count, dtype=torch.float64).reshape(count, *shape)).flatten(1).T


def errors(images, posterior, matrix, y):
    """Errors of samples (B, C, H, W): of the mean in posterior standard deviations, ratio of standard deviations,
    of the covariance in its own norm, and the root mean square of y - A x per measured direction."""
    x = images.double().flatten(1)
    residual = y.flatten() - x @ matrix.T
    covariance, exact = x.T.cov(), posterior.covariance()
    return {
        "mean": float((x.mean(dim=0) - posterior.mean()).norm() / exact.trace().sqrt()),
        "std": float((covariance.trace() / exact.trace()).sqrt()),
        "covariance": float((covariance - exact).norm() / exact.norm()),
        "fit": float((residual.square().sum(dim=1).mean() / torch.linalg.matrix_rank(matrix)).sqrt()),
    }


def measure(prior, operator, noise_std, count=1):
    """Measurements of draws from the prior, without noise where nothing is measured."""
    x = prior.sample(count, torch.Generator().manual_seed(5)).reshape(count, *SHAPE)
    y = operator.A(x)
    y = y + noise_std * torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
    return operator.A(operator.A_dagger(y))


def posterior_errors(
    method, sde, name, prior, noise_std, *, steps=100, count=300, scale=0.3, centered=False, **scheduler
):
    """Errors of samples given one measurement; replacement with noise runs without a corrector, `scale` is DPS's."""
    operator = OPERATORS[name]
    y, matrix = measure(prior, operator, noise_std), matrix_of(operator)
    corrector = "none" if method == "replacement" and noise_std else "langevin"
    network = ExactNetwork(sde, center_input_sample=not centered).of(prior)
    pipe = ScoreSdeInverseProblemPipeline(network, SCHEDULERS[sde](corrector=corrector, **scheduler))
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        y,
        operator,
        noise_std,
        method,
        guidance_scale=scale if method == "dps" else 1.0,
        data_std=0.2,
        num_samples=count,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    images = images / 2 + 0.5 if centered else images
    return errors(images, prior.posterior(matrix, y.flatten(), noise_std), matrix, y)
