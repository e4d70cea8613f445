"""The VP SDE of a chain of linear betas, as diffusers' schedulers write them in their configs."""

from collections.abc import Mapping
from typing import Any


def vp_settings(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Settings of `ScoreSdeVpScheduler` with the forward process of a `DDPMScheduler`, or another with its config.

    `beta_min = beta_start * N`, `beta_max = beta_end * N`, `continuous = False`: the SDE of which the chain of N steps
    is the discretisation.

    Args:
        config: of the scheduler.
        name: of its class, for messages.

    Raises:
        ValueError: for another prediction than epsilon, or another schedule of betas.

    Reference: Song et al. 2021, arXiv:2011.13456, App. B.
    """
    if "beta_start" not in config or "beta_schedule" not in config:
        raise ValueError(
            f"{name} has no betas from which a forward process could be read; take a DDPMScheduler with the betas of "
            "the training, or a score-SDE scheduler of this package."
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise ValueError(
            f"{name} has prediction_type = {prediction!r}; only networks that predict 'epsilon' are supported."
        )
    given, rescaled = config.get("trained_betas") is not None, config.get("rescale_betas_zero_snr", False)
    if config["beta_schedule"] != "linear" or given or rescaled:
        seen = "trained_betas" if given else f"beta_schedule = {config['beta_schedule']!r}"
        if rescaled:
            seen += " and rescale_betas_zero_snr = True"
        raise ValueError(
            f"{name} has {seen}; the VP SDE has linear betas, so only beta_schedule = 'linear' without rescaling is "
            "supported."
        )
    steps = config.get("num_train_timesteps", 1000)
    return {
        "num_train_timesteps": steps,
        "beta_min": config["beta_start"] * steps,
        "beta_max": config.get("beta_end", 0.02) * steps,
        "continuous": False,
    }
