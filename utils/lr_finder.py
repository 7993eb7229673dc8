"""The learning rate range test: raise the lr from tiny to far too high, and read from the losses which lr0 to take.

Smith, "Cyclical learning rates for training neural networks", arXiv:1506.01186, section 3.3. Nothing here knows a
model, a loader or a loss: the trainer gives one training step as a function.
"""

from __future__ import annotations

import csv
import math
import warnings
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from utils.errors import UserError

FEWEST_ITERATIONS = 20
LEAST_FALL = 0.02  # of the loss at the start; less is no fall to read anything from
MINIMUM_DIVISOR = 10


def exponential(initial: float, final: float, iterations: int) -> Callable[[int], float]:
    """The factor of `initial` in iteration i = 0 … iterations − 1: `(final/initial)^(i/(iterations − 1))`.

    It is 1 in the first iteration and final/initial in the last. The popular
    `lambda i: (final/initial) ** (1/iterations)` forgets its iteration: it is a constant, and tests a single lr.
    """
    return lambda i: (final / initial) ** (i / (iterations - 1))


@dataclass(frozen=True)
class RangeTest:
    """What a range test measured: float64[n] arrays, n as many iterations as were run.

    `lr` is what `lr0` would be: the lr that the optimizer step of the iteration used in a group that trains at lr0.
    `loss` was measured before that step, so that `loss[i]` shows what the steps before i did. `smoothed` is its
    exponential average, `beta` the weight of the past in it. `diverged`: the test stopped before `final`.
    """

    lr: np.ndarray
    loss: np.ndarray
    smoothed: np.ndarray
    beta: float
    diverged: bool


class Smoother:
    """An exponential average with bias correction (arXiv:1412.6980, section 3): `average/(1 − beta^count)`.

    Without the correction the first values would be pulled to 0, and a flat loss would seem to rise.
    """

    def __init__(self, beta: float) -> None:
        self.beta, self._average, self._count = beta, 0.0, 0

    def add(self, value: float) -> float:
        self._average = self.beta * self._average + (1 - self.beta) * value
        self._count += 1
        return self._average / (1 - self.beta**self._count)


def range_test(
    optimizer: Optimizer,
    step: Callable[[int], float | Tensor],
    initial: float,
    final: float,
    iterations: int,
    *,
    lr0: float | None = None,
    beta: float = 0.9,
    divergence: float = 4.0,
    settle: int = 10,
) -> RangeTest:
    """Train for `iterations` steps while the lr grows exponentially from `initial` to `final`.

    The groups keep the ratios of their base lrs: one that trains at `s·lr0` is tested at `s` times the lr that is
    reported. The lr of the groups is as before when this returns; weights, optimizer state and batch statistics are
    not. Each iteration waits for its loss.

    Args:
        step: does iteration i as in training (all batches of it, backward, clipping, `optimizer.step`) without
            setting the lr, and returns the loss from before the update; with several processes, their mean.
        lr0: the value in the hyper-parameters; by default the lr the optimizer was built with.
        beta: weight of the past in the smoothed loss, 0 (none) to below 1.
        divergence: stop once the smoothed loss exceeds its best by this factor, but not in the first `settle`
            iterations; a loss that is not finite stops at once.

    Raises:
        UserError: bounds or iterations that make no range.
        RuntimeError: `step` set the lr itself.
    """
    _check(initial, final, iterations, beta)
    kept = [{key: group[key] for key in ("lr", "initial_lr") if key in group} for group in optimizer.param_groups]
    try:
        scheduler = _start(optimizer, initial, final, iterations, optimizer.defaults["lr"] if lr0 is None else lr0)
        return _run(scheduler, step, (initial, final, iterations), Smoother(beta), divergence, settle)
    finally:
        for group, values in zip(optimizer.param_groups, kept, strict=True):
            group.pop("initial_lr", None)
            group.update(values)


def _check(initial: float, final: float, iterations: int, beta: float) -> None:
    if not 0 < initial < final < math.inf:
        raise UserError(f"lr range test from {initial:g} to {final:g}: allowed is 0 < initial < final")
    if iterations < FEWEST_ITERATIONS:
        raise UserError(f"lr range test of {iterations} iterations: allowed are {FEWEST_ITERATIONS} or more")
    if not 0 <= beta < 1:
        raise UserError(f"lr range test smoothed by {beta:g}: allowed is 0 <= beta < 1")


def _start(optimizer: Optimizer, initial: float, final: float, iterations: int, lr0: float) -> LambdaLR:
    for group in optimizer.param_groups:
        # A scheduler of the training may have moved `lr` from its base, which is kept in `initial_lr`; and LambdaLR
        # takes an `initial_lr` that it finds for its own base, whatever `lr` is.
        base = float(group.get("initial_lr", group["lr"]))
        group["lr"] = group["initial_lr"] = base / lr0 * initial
    return LambdaLR(optimizer, exponential(initial, final, iterations))


def _run(
    scheduler: LambdaLR,
    step: Callable[[int], float | Tensor],
    bounds: tuple[float, float, int],
    smoother: Smoother,
    divergence: float,
    settle: int,
) -> RangeTest:
    (initial, _, iterations), factor = bounds, exponential(*bounds)
    rows: list[tuple[float, float, float]] = []
    best, diverged = math.inf, False
    for i in range(iterations):
        wanted = [float(lr) for lr in scheduler.get_last_lr()]
        loss = _number(step(i))
        if [float(group["lr"]) for group in scheduler.optimizer.param_groups] != wanted:
            raise RuntimeError("the step of the lr range test set the lr itself")
        smoothed = smoother.add(loss)
        rows.append((initial * factor(i), loss, smoothed))
        best = min(best, smoothed)
        limit = best + (divergence - 1) * abs(best)  # divergence · best, also for a loss below 0
        if not math.isfinite(smoothed) or (i >= settle and smoothed > limit):
            diverged = True
            break
        if i + 1 < iterations:
            with warnings.catch_warnings():  # a first step that AMP skipped is no fault of the order of calls
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
                scheduler.step()
    lr, losses, averages = np.array(rows, np.float64).T
    return RangeTest(lr, losses, averages, smoother.beta, diverged)


def _number(loss: float | Tensor) -> float:
    return float(loss.detach()) if isinstance(loss, Tensor) else float(loss)


@dataclass(frozen=True)
class Suggestion:
    """What a range test says: three lrs by name, `steepest`, `valley`, `minimum/10` (none where nothing can be read).

    `recommended` is one of the names, or empty; `reason` a sentence why, or what to change; `line` goes into the yaml.
    """

    marks: dict[str, float]
    recommended: str
    reason: str
    line: str

    @property
    def lr(self) -> float | None:
        """The recommended lr, as in `line`."""
        return float(self.line.partition(":")[2]) if self.line else None


def suggest(result: RangeTest) -> Suggestion:
    """Read lr0 from a range test.

    - `steepest`: where the smoothed loss falls fastest over log lr, up to its minimum and without the first iterations,
      whose averages are of few values. It learns fast; but one gust of noise, or the swing of a large momentum, can
      carry it off: far down, or up to where a long run diverges.
    - `valley`: two thirds (in log lr) along the longest falling stretch, which is the longest subsequence of the
      smoothed loss in which each value is below the one before. Noise hardly moves it; but a slow beginning of the fall
      pulls it down, the more so the lower the test began.
    - `minimum/10`: a tenth of the lr of the smallest smoothed loss. Steady; but too high where the loss wanders about
      in a flat bottom (AdamW's, mostly), and too low where it falls late and sharply (SGD's without momentum).

    Recommended is the middle one of the three: they err for different reasons, so one that was carried off is at an
    end. In practice that is the lower of `steepest` and `minimum/10`, with `valley` to hold it from falling too far.
    A run that diverges costs more than one that is a little slow.
    """
    finite = np.isfinite(result.smoothed)
    lr, smoothed = result.lr[finite], result.smoothed[finite]
    trouble = _trouble(result, lr, smoothed)
    if trouble:
        return Suggestion({}, "", f"nothing is recommended: {trouble}", "")
    log_lr, lowest = np.log(lr), int(smoothed.argmin())
    start = min(10, len(lr) // 4)
    slopes = np.gradient(smoothed, log_lr)[start:lowest] if lowest > start else np.zeros(0)
    steepest = start + int(slopes.argmin()) if len(slopes) else lowest
    first, last = longest_fall(smoothed)
    marks = {
        "steepest": float(lr[steepest]),
        "valley": math.exp(log_lr[first] + (log_lr[last] - log_lr[first]) * 2 / 3),
        "minimum/10": float(lr[lowest]) / MINIMUM_DIVISOR,
    }
    low, recommended, high = sorted(marks, key=marks.__getitem__)
    reason = (
        f"{recommended}, {marks[recommended]:.2g}, is the middle one of three that err in different ways ({low} "
        f"{marks[low]:.2g}, {high} {marks[high]:.2g}); the smoothed loss fell from {smoothed[first]:.4g} to "
        f"{smoothed[lowest]:.4g} at {lr[lowest]:.2g}"
    )
    if lowest >= len(lr) - 2 and not result.diverged:
        reason += f", and was falling still: a test beyond {lr[-1]:.2g} may find a higher one"
    return Suggestion(marks, recommended, reason, f"lr0: {_decimal(marks[recommended])}")


def longest_fall(values: np.ndarray) -> tuple[int, int]:
    """The first and last index of the longest strictly decreasing subsequence; of several, of the first to be full."""
    ends: list[float] = []  # ends[k]: minus the highest value that a falling subsequence of k + 1 values ends in
    starts: list[int] = []  # and the index that it starts at
    longest = (0, 0)
    for i, value in enumerate(values.tolist()):
        k = bisect_left(ends, -value)
        start = starts[k - 1] if k else i
        if k == len(ends):
            longest = (start, i)
        ends[k : k + 1], starts[k : k + 1] = [-value], [start]
    return longest


def _trouble(result: RangeTest, lr: np.ndarray, smoothed: np.ndarray) -> str:
    """What keeps a result from being read, and what to change; empty if nothing does."""
    if not len(lr):
        return "the loss was not finite in the first iteration, before any step: the fault is not the lr"
    if len(lr) < FEWEST_ITERATIONS:
        return f"the loss diverged after {len(lr)} iterations, at {lr[-1]:.2g}: start lower than {lr[0]:.2g}"
    losses = result.loss[: len(lr)]
    few = min(10, len(lr) // 10)
    start, fall = float(losses[:few].mean()), float(losses[:few].mean() - smoothed[few:].min())
    # The loss's own noise, from what neighbours differ by, and how much of it is left in the two averages.
    noise = float(np.median(np.abs(np.diff(losses)))) / (0.6745 * math.sqrt(2))
    left = noise * math.sqrt(1 / few + (1 - result.beta) / (1 + result.beta))
    if fall > max(LEAST_FALL * abs(start), 4 * left):
        return ""
    what = f"the loss did not fall between {lr[0]:.2g} and {lr[-1]:.2g} (from {start:.4g} to {start - fall:.4g} at best"
    what += f", noise {noise:.2g})"
    if result.diverged:
        return f"{what} and then diverged: start lower, at {lr[0] / 1000:.2g}, or take more iterations"
    return f"{what}: take more iterations (--lr-find-steps), or end higher than {lr[-1]:.2g}"


def _decimal(value: float) -> str:
    """Two significant digits without an exponent, which YAML 1.1 takes for text where it has no dot."""
    return np.format_float_positional(float(f"{value:.2g}"), trim="0")


def describe(result: RangeTest, suggestion: Suggestion) -> list[str]:
    """Lines to print: what was run, the three lrs, the recommendation and the line for the yaml."""
    end = "stopped: the loss diverged" if result.diverged else "to the end"
    lines = [f"lr find      {len(result.lr)} iterations, lr {result.lr[0]:.3g} to {result.lr[-1]:.3g}, {end}"]
    for name, value in suggestion.marks.items():
        chosen = "  <- recommended" if name == suggestion.recommended else ""
        lines.append(f"{name:<13}{_decimal(value)}{chosen}")
    lines.append(suggestion.reason)
    return [*lines, suggestion.line] if suggestion.line else lines


def write_csv(result: RangeTest, path: Path) -> None:
    """Write `iteration,lr,loss,smoothed`, a row an iteration from 0, floats in full precision (repr)."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["iteration", "lr", "loss", "smoothed"])
        rows = zip(result.lr.tolist(), result.loss.tolist(), result.smoothed.tolist(), strict=True)
        writer.writerows([i, *map(repr, row)] for i, row in enumerate(rows))
