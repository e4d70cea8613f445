"""Steps whose gradient is not finite are left out and counted, without reading a number on the host."""

import torch

LIMIT = 10
"""Steps left out in a row after which a run stops."""

SCALED_LIMIT = 30
"""The same in float16, where the scaler of the loss needs some overflows to find its scale."""


class FiniteGuard:
    """Watches the gradient norm; the fused optimiser then skips a step on the device.

    Args:
        optimizer: fused, as of torch.
        device: of the norms.
        scaled: whether a gradient scaler skips the steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, scaled: bool):
        self.optimizer = optimizer
        self.scaled = scaled
        self.limit = SCALED_LIMIT if scaled else LIMIT
        self.in_a_row = torch.zeros((), device=device)
        self.longest = torch.zeros((), device=device)

    def check(self, norm: torch.Tensor) -> torch.Tensor:
        """Have the next optimiser step left out unless `norm` is finite; 1 if it is left out, else 0."""
        skipped = norm.isfinite().logical_not().float()
        self.in_a_row = (self.in_a_row + 1) * skipped
        self.longest = torch.maximum(self.longest, self.in_a_row)
        if not self.scaled:
            self.optimizer.found_inf = skipped
        return skipped

    def gives_up(self, step: int) -> bool:
        """Whether too many steps in a row were left out; on a GPU looked at every few steps only."""
        if self.in_a_row.device.type != "cpu" and step % LIMIT:
            return False
        return bool(self.longest >= self.limit)
