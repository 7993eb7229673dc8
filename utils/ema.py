"""The exponential moving average of the weights: what is validated and shipped."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def ema_decay(update: int, decay: float, tau: float) -> float:
    """Decay of update number `update` (from 1): `decay · (1 − e^(−update/tau))`, so that early averages are short."""
    return decay * (1 - math.exp(-update / tau)) if tau > 0 else decay


class _Pairs:
    """The tensors of an average and of its model, side by side: those that are averaged, and those that are copied.

    They stay what they are: a state is loaded into them.
    """

    def __init__(self, averaged: nn.Module, model: nn.Module) -> None:
        # Not by state_dict: a shared weight is there once.
        both = ([*one.parameters(), *one.buffers()] for one in (averaged, model))
        pairs = list(zip(*both, strict=True))
        self.averaged = [a for a, _ in pairs if a.is_floating_point()]
        self.current = [c for a, c in pairs if a.is_floating_point()]
        self.counts = [a for a, _ in pairs if not a.is_floating_point()]
        self.current_counts = [c for a, c in pairs if not a.is_floating_point()]


class ModelEMA(AveragedModel):
    """`AveragedModel` whose decay grows with the number of updates; buffers (batch-norm statistics) are averaged too.

    `n_averaged` counts the updates and is part of the state.

    Args:
        model: the model in training.
        decay: limit of the decay, in [0, 1).
        tau: updates until the decay has reached 63 % of its limit; 0 for a constant decay.
    """

    def __init__(self, model: nn.Module, decay: float, tau: float) -> None:
        device = next(model.parameters()).device  # else the count of updates would stay on the CPU
        super().__init__(model, device=device, use_buffers=False)
        self.decay, self.tau = decay, tau
        self._pairs: tuple[nn.Module, _Pairs] | None = None
        self.eval().requires_grad_(False)

    @property
    def updates(self) -> int:
        """How many there were; reading it waits for the device."""
        return int(self.n_averaged)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, skipped: Tensor | None = None) -> None:
        """Take in the weights of `model`: call after each optimizer step.

        skipped: scalar bool; where it is true, the step was none (`model` is what it was), and neither is the update.
        """
        taken = torch.ones_like(self.n_averaged) if skipped is None else (~skipped).to(self.n_averaged.dtype)
        self.n_averaged += taken
        if self._pairs is None or self._pairs[0] is not model:
            self._pairs = model, _Pairs(self.module, model)  # to go through all modules takes as long as the average
        pairs = self._pairs[1]
        move = lerp_on_device if self.n_averaged.is_cuda else lerp_by_number
        move(pairs.averaged, pairs.current, self._weight() * taken)
        if pairs.counts:
            torch._foreach_copy_(pairs.counts, pairs.current_counts)

    def _weight(self) -> Tensor:
        """1 − `ema_decay` of the update under way, on the device, in a form that loses no digits near a decay of 1."""
        rest = torch.exp(-self.n_averaged / self.tau) if self.tau > 0 else torch.zeros_like(self.n_averaged)
        return self.decay * rest + (1 - self.decay)


def lerp_by_number(averaged: list[Tensor], current: list[Tensor], weight: Tensor) -> None:
    """`averaged += weight · (current − averaged)` in one pass; the weight is looked at, which is free on a CPU."""
    torch._foreach_lerp_(averaged, current, float(weight))


def lerp_on_device(averaged: list[Tensor], current: list[Tensor], weight: Tensor) -> None:
    """The same where looking would wait for the device: torch has no lerp of whole lists by a weight that is there."""
    change = torch._foreach_sub(current, averaged)
    torch._foreach_mul_(change, weight)
    torch._foreach_add_(averaged, change)
