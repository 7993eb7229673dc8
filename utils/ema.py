"""The exponential moving average of the weights: what is validated and shipped."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def ema_decay(update: int, decay: float, tau: float) -> float:
    """Decay of update number `update` (from 1): `decay · (1 − e^(−update/tau))`, so that early averages are short."""
    return decay * (1 - math.exp(-update / tau)) if tau > 0 else decay


class ModelEMA(AveragedModel):
    """`AveragedModel` whose decay grows with the number of updates; buffers (batch-norm statistics) are averaged too.

    `n_averaged` counts the updates and is part of the state.

    Args:
        model: the model in training.
        decay: limit of the decay, in [0, 1).
        tau: updates until the decay has reached 63 % of its limit; 0 for a constant decay.
    """

    def __init__(self, model: nn.Module, decay: float, tau: float) -> None:
        super().__init__(model, use_buffers=False)
        self.decay, self.tau, self.updates = decay, tau, 0
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of `model`: call after each applied optimizer step."""
        self.updates += 1
        decay = ema_decay(self.updates, self.decay, self.tau)
        averaged = [*self.module.parameters(), *self.module.buffers()]  # a shared weight once, unlike in a state_dict
        current = [*model.parameters(), *model.buffers()]
        pairs = [(a, c) for a, c in zip(averaged, current, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in pairs], [c for _, c in pairs], 1 - decay)
        for a, c in zip(averaged, current, strict=True):
            if not a.is_floating_point():
                a.copy_(c)
        self.n_averaged.fill_(self.updates)

    def load_state_dict(self, state: dict[str, Tensor], **options) -> None:
        super().load_state_dict(state, **options)
        self.updates = int(self.n_averaged)
