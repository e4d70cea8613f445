"""The premises of the solvers about a forward process, checked once for each SDE."""

import torch

SMALLEST_ALPHA = 1e-8
LARGEST_PRIOR_GAP = 0.1
CLOSED_FORMS = ("drift_coefficient", "diffusion", "log_snr", "time_of_log_snr")


def check_sde(sde, base: type) -> None:
    """Refuse an SDE that the solvers cannot take; see `SDE.check`. Closed forms are those that `base` derives."""
    for dtype in (torch.float64, torch.float32):
        t = torch.linspace(0, 1, 65, dtype=dtype)
        _check_coefficients(sde, t)
        _check_finite(sde, torch.tensor([1e-5, 0.5, 1.0], dtype=dtype))
    _check_prior(sde)
    _check_closed_forms(sde, base)


def _refuse(sde, seen: str, remedy: str) -> None:
    raise ValueError(f"{type(sde).__name__}: {seen}; {remedy}")


def _check_coefficients(sde, t: torch.Tensor) -> None:
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    for name, value in (("alpha", alpha), ("sigma", sigma)):
        if not isinstance(value, torch.Tensor) or value.shape != t.shape:
            _refuse(sde, f"{name}(t) has not the shape of t", "return one number per time.")
        if not bool(value.isfinite().all()):
            _refuse(sde, f"{name}(t) is not finite on [0, 1]", "give finite coefficients, scaled in time if need be.")
    if float(alpha.min()) <= SMALLEST_ALPHA:
        time = float(t[alpha.argmin()])
        _refuse(
            sde,
            f"alpha({time:.3g}) = {float(alpha.min()):.3g}, so that nothing of the data is left and the drift "
            "d log alpha / dt has no bound",
            f"keep alpha above {SMALLEST_ALPHA:g}: end the schedule a little earlier, as alpha(0.999 t) does.",
        )
    if abs(float(alpha[0]) - 1) > 0.01:
        _refuse(sde, f"alpha(0) = {float(alpha[0]):.4g}", "divide alpha by alpha(0): samples are states at t = 0.")
    if float(sigma.min()) < 0 or float(sigma[0]) > 0.5 * float(sigma[-1]):
        _refuse(
            sde,
            f"sigma(0) = {float(sigma[0]):.4g}, sigma(1) = {float(sigma[-1]):.4g}",
            "sigma is the noise in the data's units: non-negative, small at t = 0 and large at t = 1.",
        )
    ratio = sigma / alpha
    if not bool((ratio[1:] > ratio[:-1]).all()):
        _refuse(sde, "sigma / alpha does not increase on [0, 1]", "t = 0 is the data and t = 1 the noise.")


def _check_finite(sde, t: torch.Tensor) -> None:
    for name, value in (("drift_coefficient", sde.drift_coefficient(t)), ("diffusion", sde.diffusion(t))):
        if value.shape != t.shape or not bool(value.isfinite().all()):
            _refuse(
                sde,
                f"{name} at t = {[round(float(time), 5) for time in t]} is {[float(v) for v in value.flatten()]}",
                "drift and diffusion must be finite from t = 1e-5 to 1.",
            )


def _check_prior(sde) -> None:
    std, sigma = getattr(sde, "prior_std", None), float(sde.sigma(torch.ones((), dtype=torch.float64)))
    if not isinstance(std, int | float) or not 0 < std < float("inf"):
        _refuse(sde, f"prior_std is {std!r}", "set it to the standard deviation that sampling starts from.")
    if abs(sigma / std - 1) > LARGEST_PRIOR_GAP:
        _refuse(
            sde,
            f"sigma(1) = {sigma:.4g} and prior_std = {std:.4g}, further apart than 10 %",
            "sampling starts from N(0, prior_std^2): let the noise grow until the data no longer matter, or set "
            "prior_std to sigma(1).",
        )


def _check_closed_forms(sde, base: type) -> None:
    """Overridden closed forms against those of the base class."""
    t = torch.tensor([0.05, 0.3, 0.7, 1.0], dtype=torch.float64)
    for name in CLOSED_FORMS:
        if getattr(type(sde), name) is getattr(base, name):
            continue
        if name == "time_of_log_snr":
            seen, derived = sde.time_of_log_snr(base.log_snr(sde, t)), t
        else:
            seen, derived = getattr(sde, name)(t), getattr(base, name)(sde, t)
        if not torch.allclose(seen.double(), derived.double(), rtol=1e-4, atol=1e-6):
            _refuse(
                sde,
                f"{name} gives {seen.tolist()} where alpha and sigma give {derived.tolist()}",
                "correct the closed form, or leave it out: it follows from alpha and sigma.",
            )
