r"""The score and the divergence of the score by automatic differentiation, from one forward pass.

    div s = sum_i ds_i / dx_i = E[v^T (ds/dx) v]      for probes v of zero mean and unit covariance.

Reference: Song et al. 2021, arXiv:2011.13456, App. D.2; Hutchinson 1990.
"""

from collections.abc import Callable, Iterator

import torch

ScoreFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

PROBE_KINDS = ("rademacher", "gaussian")


def draw_probes(
    kind: str, shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Random probes of zero mean and unit covariance.

    Args:
        kind: "rademacher" (signs; the smaller variance) or "gaussian".
        shape: (num_probes, B, ...).
        generator: source of the numbers; drawn on its device.
        device: of the result.
        dtype: of the result.

    Raises:
        ValueError: if the kind is unknown.
    """
    where = device if generator is None else generator.device
    if kind == "gaussian":
        return torch.randn(shape, generator=generator, device=where, dtype=dtype).to(device)
    if kind == "rademacher":
        signs = torch.randint(0, 2, shape, generator=generator, device=where)
        return (2 * signs - 1).to(device, dtype)
    raise ValueError(f"the kind of probes is {kind!r}; allowed are {', '.join(map(repr, PROBE_KINDS))}.")


def score_and_divergence(
    score_fn: ScoreFunction, x: torch.Tensor, t: torch.Tensor, probes: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score and the divergence along each probe: one forward pass, one vector-Jacobian product per probe.

    Args:
        score_fn: `(x, t) -> score`, row by row.
        x: states, shape (B, ...).
        t: times, shape (B,).
        probes: shape (P, B, ...); `None` for the exact divergence, by one product per dimension.

    Returns:
        score of shape (B, ...), divergences of shape (P, B), or (1, B) if exact; with a graph where `x` requires a
        gradient and gradients are enabled, else detached.
    """
    differentiable = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        if not differentiable:
            x = x.detach().requires_grad_()
        score = score_fn(x, t)

        def product(vector: torch.Tensor) -> torch.Tensor:
            (row,) = torch.autograd.grad(score, x, vector, retain_graph=True, create_graph=differentiable)
            return (row * vector).flatten(1).sum(dim=1)

        if probes is not None:
            divergence = torch.stack([product(probe.to(score)) for probe in probes])
        else:
            divergence = torch.stack([product(unit) for unit in _units(score)]).sum(dim=0, keepdim=True)
    return (score, divergence) if differentiable else (score.detach(), divergence.detach())


def _units(score: torch.Tensor) -> Iterator[torch.Tensor]:
    """The unit vectors of the space of one state, for every row; each of the shape of `score`."""
    for i in range(score[0].numel()):
        unit = torch.zeros_like(score, memory_format=torch.contiguous_format, requires_grad=False)
        unit.view(len(unit), -1)[:, i] = 1
        yield unit
