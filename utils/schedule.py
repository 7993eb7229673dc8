"""The learning rate and momentum as a function that can be printed before a run and holds while it runs.

Words: E epochs counted from 0; an *iteration* is one optimizer step; the factor is what `LambdaLR` multiplies `lr0`
by in an epoch; warm-up is a pure function of the iteration on top.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Factor = Callable[[int], float]


class ScheduleSettings(Protocol):
    """The hyper-parameters that the schedule reads."""

    lr0: float
    lrf: float
    schedule: str
    momentum: float
    warmup_epochs: float
    warmup_momentum: float
    warmup_bias_lr: float
    warmup_max_fraction: float
    close_mosaic: int


def linear(lrf: float, epochs: int) -> Factor:
    """A straight line: 1 in the first epoch, exactly `lrf` in the last; 1 where there is only one epoch.

    The classic `(1 - x/(epochs-1))·(1 - lrf) + lrf` divides by zero at one epoch and falls below `lrf` past the last;
    here x is clamped to the run.
    """

    def factor(epoch: int) -> float:
        share = min(max(epoch, 0), epochs - 1) / (epochs - 1) if epochs > 1 else 0.0
        return (1 - share) * (1 - lrf) + lrf

    return factor


def one_cycle(y1: float, y2: float, steps: int) -> Factor:
    """A half cosine from `y1` at 0 to `y2` at `steps`: `((1 − cos(πx/steps))/2)·(y2 − y1) + y1`.

    Flat at both ends, fastest in the middle. The last trained epoch is `steps − 1`, a little short of `y2`.
    """

    def factor(epoch: int) -> float:
        x = min(max(epoch, 0), steps)
        return (1 - math.cos(math.pi * x / steps)) / 2 * (y2 - y1) + y1

    return factor


def build_factor(settings: ScheduleSettings, epochs: int) -> Factor:
    """Return the factor that `schedule:` names."""
    if settings.schedule == "linear":
        return linear(settings.lrf, epochs)
    if settings.schedule == "constant":
        return lambda epoch: 1.0
    return one_cycle(1.0, settings.lrf, epochs)


@dataclass(frozen=True)
class Warmup:
    """The first `steps` iterations: values move in a straight line from a start to what the schedule asks for.

    Bias groups start at `bias_lr`, the others at 0, momentum at `momentum`.
    """

    steps: int
    bias_lr: float
    momentum: float

    def lr(self, group: str, target: float, step: int) -> float:
        start = self.bias_lr if group.startswith("bias") else 0.0
        return self._move(start, target, step)

    def momentum_at(self, target: float, step: int) -> float:
        """A run without momentum (`target` 0) has none in its warm-up either."""
        return self._move(self.momentum, target, step) if target > 0 else 0.0

    def _move(self, start: float, target: float, step: int) -> float:
        return start + (target - start) * (step / self.steps) if step < self.steps else target


def build_warmup(settings: ScheduleSettings, epochs: int, steps_per_epoch: int) -> Warmup:
    """Warm up for `warmup_epochs`, but for no more than `warmup_max_fraction` of the run, however short."""
    wanted = round(settings.warmup_epochs * steps_per_epoch)
    most = int(settings.warmup_max_fraction * epochs * steps_per_epoch)
    return Warmup(min(wanted, most), settings.warmup_bias_lr, settings.warmup_momentum)


@dataclass(frozen=True)
class LRCurve:
    """What every iteration of a run uses: arrays of `epochs · steps_per_epoch` float64 values."""

    epochs: int
    steps_per_epoch: int
    warmup_steps: int
    close_mosaic_epoch: int | None
    lr: dict[str, np.ndarray]
    momentum: np.ndarray


def lr_curve(settings: ScheduleSettings, epochs: int, steps_per_epoch: int, base_lrs: dict[str, float]) -> LRCurve:
    """Compute lr and momentum of every iteration before the run starts.

    Args:
        base_lrs: {group name: lr that the factor multiplies}.
    """
    factor, warmup = build_factor(settings, epochs), build_warmup(settings, epochs, steps_per_epoch)
    factors = [factor(epoch) for epoch in range(epochs)]
    steps = range(epochs * steps_per_epoch)
    lr = {
        group: np.array([warmup.lr(group, base * factors[step // steps_per_epoch], step) for step in steps])
        for group, base in base_lrs.items()
    }
    momentum = np.array([warmup.momentum_at(settings.momentum, step) for step in steps])
    closing = max(epochs - settings.close_mosaic, 0) if settings.close_mosaic > 0 else None
    return LRCurve(epochs, steps_per_epoch, warmup.steps, closing, lr, momentum)


def set_momentum(group: dict[str, Any], momentum: float) -> None:
    """Set the momentum of one parameter group: SGD's, or Adam's first beta."""
    if "betas" in group:
        group["betas"] = (momentum, group["betas"][1])
    else:
        group["momentum"] = momentum


class LearningRate:
    """`LambdaLR`, stepped once an epoch, with the warm-up on top.

    Call `apply(step)` before each optimizer step, `end_epoch()` after the last one of an epoch. The whole state is
    the scheduler's own.
    """

    def __init__(self, optimizer: Optimizer, settings: ScheduleSettings, epochs: int, steps_per_epoch: int) -> None:
        self.optimizer, self.settings = optimizer, settings
        self.warmup = build_warmup(settings, epochs, steps_per_epoch)
        self.scheduler = LambdaLR(optimizer, lr_lambda=build_factor(settings, epochs))
        self._applied: dict[str, float] = {}

    def apply(self, step: int) -> None:
        """Set lr and momentum of every group for iteration `step` (counted from 0 over the whole run)."""
        for group, target in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = self._applied[group["name"]] = self.warmup.lr(group["name"], target, step)
            set_momentum(group, self.warmup.momentum_at(self.settings.momentum, step))

    def end_epoch(self) -> None:
        # A run may go on from after its epoch's last step: this process then called no `apply`, and took no step.
        self._applied = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.scheduler.step()

    def current(self) -> dict[str, float]:
        """The lr of each group that the last optimizer step used (after an epoch the optimizer has the next one's)."""
        return dict(self._applied)


def describe_curve(curve: LRCurve) -> list[str]:
    """Say the curve in words: its length, warm-up, and the lr of each group where it matters."""
    total = curve.epochs * curve.steps_per_epoch
    lines = [
        f"iterations   {total} = {curve.epochs} epochs x {curve.steps_per_epoch} optimizer steps; warm-up "
        f"{curve.warmup_steps} ({curve.warmup_steps / total:.1%})"
    ]
    marks = {total * 3 // 4: "3/4", total // 2: "1/2", total // 4: "1/4", curve.warmup_steps: "warm", 0: "first"}
    marks = {step: marks[step] for step in sorted(marks) if step < total - 1} | {total - 1: "last"}
    lines.append("at           " + "".join(f"{name:>12}" for name in marks.values()))
    for group, values in curve.lr.items():
        lines.append(f"lr/{group:<10}" + "".join(f"{values[step]:>12.6g}" for step in marks))
    lines.append("momentum     " + "".join(f"{curve.momentum[step]:>12.6g}" for step in marks))
    return lines
