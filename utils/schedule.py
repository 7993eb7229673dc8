"""The learning rate and momentum as a function that can be printed before a run and holds while it runs.

Words: E epochs counted from 0; an *iteration* is one optimizer step; the factor is what `LambdaLR` multiplies `lr0`
by in an epoch; warm-up is a pure function of the iteration on top.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from utils.errors import UserError, many

Factor = Callable[[int], float]
MAX_EPOCHS = 1_000_000


class ScheduleSettings(Protocol):
    """The hyper-parameters that the schedule reads."""

    lrf: float
    schedule: str
    hold: float
    step_at: tuple[float, ...]
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


def flat_cosine(lrf: float, epochs: int, hold: float, tail: int) -> Factor:
    """Stay at 1 for the share `hold` of the run, fall on a half cosine, stay at `lrf` for the last `tail` epochs.

    The tail takes at most half of what `hold` leaves, so that there is always a slope. Without a tail the last epoch
    is above `lrf`, as with `one_cycle`; where `hold` leaves no more than one epoch, it is 1.
    """
    held = _round(hold * epochs)
    tail = min(tail, (epochs - held) // 2)
    fall = one_cycle(1.0, lrf, max(epochs - held - tail, 1))
    return lambda epoch: lrf if tail and epoch >= epochs - tail else fall(epoch - held)


def step(lrf: float, epochs: int, at: Sequence[float]) -> Factor:
    """Fall at the given shares of the run, each time by the same ratio, so that `lrf` is reached with the last one."""
    falls = [_round(share * epochs) for share in at]
    return lambda epoch: lrf ** (sum(fall <= epoch for fall in falls) / len(falls))


def _round(x: float) -> int:
    """Halves go up, unlike those of Python's `round`."""
    return math.floor(x + 0.5)


@dataclass(frozen=True)
class CustomFactor:
    """A schedule of the user's: `function(epoch, epochs, lrf)` returns the factor on lr0, epochs counted from 0.

    sha256: of the source file that the function comes from.
    """

    spec: str
    sha256: str
    function: Callable[[int, int, float], float]


def load_custom(spec: str) -> CustomFactor:
    """Import `MODULE:FUNCTION` from the working directory or from where Python finds modules.

    Only ever called with what the user typed: nothing in a file names code to run. Raises `UserError`.
    """
    module_name, _, name = spec.partition(":")
    flag = f"--schedule {spec}"
    if not all(word.isidentifier() for word in (*module_name.split("."), name)):
        raise UserError(f"{flag}: write MODULE:FUNCTION, such as my_schedules:my_factor (no path, no .py)")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's: anything can happen in it
        raise UserError(f"{flag}: {module_name} can't be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.pop(0)
    function, file = getattr(module, name, None), getattr(module, "__file__", None)
    if not callable(function):
        raise UserError(f"{flag}: {module_name} has no function {name}")
    if not file:
        raise UserError(f"{flag}: {module_name} has no source file")
    return CustomFactor(spec, hashlib.sha256(Path(file).read_bytes()).hexdigest(), function)


def tabulate(custom: CustomFactor, epochs: int, lrf: float) -> Factor:
    """Ask the user's function once for every epoch; what it then says is a table, and can't change.

    Raises:
        UserError: it fails, it gives another answer when asked again, or a factor isn't a number from 0 on.
    """

    def ask() -> list[float]:
        return [float(custom.function(epoch, epochs, lrf)) for epoch in range(epochs)]

    try:
        table, again = ask(), ask()
    except Exception as error:
        raise UserError(f"--schedule {custom.spec}: failed: {type(error).__name__}: {error}") from None
    for epoch, value in enumerate(table):
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"--schedule {custom.spec}: gives {value} for epoch {epoch}: must be a number from 0 on")
    if table != again:
        raise UserError(
            f"--schedule {custom.spec}: gives other factors when asked again: it must depend on nothing else"
        )
    return lambda epoch: table[min(max(epoch, 0), epochs - 1)]


def build_factor(settings: ScheduleSettings, epochs: int, custom: CustomFactor | None = None) -> Factor:
    """Return the factor that `schedule:` names."""
    if settings.schedule == "custom":
        assert custom is not None, "the command line was to bring it"
        return tabulate(custom, epochs, settings.lrf)
    return {
        "one_cycle": one_cycle(1.0, settings.lrf, epochs),
        "linear": linear(settings.lrf, epochs),
        "flat_cosine": flat_cosine(settings.lrf, epochs, settings.hold, settings.close_mosaic),
        "step": step(settings.lrf, epochs, settings.step_at),
        "constant": lambda epoch: 1.0,
    }[settings.schedule]


@dataclass(frozen=True)
class Warmup:
    """The first `steps` iterations: values move in a straight line from a start to what the schedule asks for.

    The lr of bias groups starts at `warmup_bias_lr`, that of the others at 0, momentum at `momentum`. `wanted`: how
    many iterations `warmup_epochs` are, where the run is long enough for them.
    """

    steps: int
    momentum: float
    wanted: int = 0

    def lr(self, start: float, target: float, step: int) -> float:
        return self._move(start, target, step)

    def momentum_at(self, target: float, step: int) -> float:
        """A run without momentum (`target` 0) has none in its warm-up either."""
        return self._move(self.momentum, target, step) if target > 0 else 0.0

    def _move(self, start: float, target: float, step: int) -> float:
        return start + (target - start) * (step / self.steps) if step < self.steps else target


def build_warmup(settings: ScheduleSettings, epochs: int, steps_per_epoch: int) -> Warmup:
    """Warm up for `warmup_epochs`, but for no more than `warmup_max_fraction` of the run, however short."""
    wanted = round(settings.warmup_epochs * steps_per_epoch)
    most = math.floor(settings.warmup_max_fraction * epochs * steps_per_epoch + 1e-9)  # 0.7 · 1990 is 1392.9…
    return Warmup(min(wanted, most), settings.warmup_momentum, wanted)


EXTENSIONS = ("replan", "tail")


class Extension(NamedTuple):
    """How a run that was over goes on: from epoch `at` to `epochs`, by `replan` or `tail` (see `Course`)."""

    at: int
    epochs: int
    mode: str


@dataclass(frozen=True)
class Course:
    """How long the run was planned, and how it was extended.

    `replan` takes the same formula over the new length, from the extension on; `tail` stays at the last lr.
    """

    first: int
    extensions: tuple[Extension, ...] = ()

    @property
    def epochs(self) -> int:
        return self.extensions[-1].epochs if self.extensions else self.first

    @property
    def planned(self) -> int:
        """The length that the formula in force was made for; `close_mosaic` counts back from it."""
        return next((e.epochs for e in reversed(self.extensions) if e.mode == "replan"), self.first)

    def extend(self, at: int, epochs: int, mode: str) -> Course:
        return Course(self.first, (*self.extensions, Extension(at, epochs, mode)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"first": self.first, "extensions": [list(extension) for extension in self.extensions]}

    @classmethod
    def from_dict(cls, values: Any) -> Course:
        """Build from the values of `to_dict`, which come from a file. UserError: they are no course."""
        try:
            course = cls(values["first"], tuple(Extension(*extension) for extension in values["extensions"]))
            numbers = [course.first, *(n for at, epochs, _ in course.extensions for n in (at, epochs))]
            sound = all(type(n) is int and 0 < n <= MAX_EPOCHS for n in numbers)
            sound = sound and all(at < epochs and mode in EXTENSIONS for at, epochs, mode in course.extensions)
        except (TypeError, KeyError):
            sound = False
        if not sound:
            raise UserError(
                f"a checkpoint's course of epochs must be a number and its extensions, not {str(values)[:80]}"
            )
        return course


class Stage(NamedTuple):
    """From epoch `start` on, this formula holds."""

    start: int
    factor: Factor
    warmup: Warmup


class Schedule:
    """Factor and warm-up over the whole course of a run, extensions included: pure functions of epoch and step."""

    def __init__(
        self, settings: ScheduleSettings, course: Course, steps_per_epoch: int, custom: CustomFactor | None = None
    ) -> None:
        self.course, self.steps_per_epoch, self.target_momentum = course, steps_per_epoch, settings.momentum
        self.name = custom.spec if custom else settings.schedule

        def formula(start: int, epochs: int) -> Stage:
            factor = build_factor(settings, epochs, custom)
            return Stage(start, factor, build_warmup(settings, epochs, steps_per_epoch))

        self.stages = [formula(0, course.first)]
        for at, epochs, mode in course.extensions:
            before = self.stages[-1]
            last = before.factor(at - 1)
            tail = Stage(at, lambda epoch, last=last: last, before.warmup)
            self.stages.append(tail if mode == "tail" else formula(at, epochs))

    def stage(self, epoch: int) -> Stage:
        return next(stage for stage in reversed(self.stages) if stage.start <= max(epoch, 0))

    def factor(self, epoch: int) -> float:
        return self.stage(epoch).factor(epoch)

    def warmup(self, step: int) -> Warmup:
        return self.stage(step // self.steps_per_epoch).warmup

    def momentum(self, step: int) -> float:
        return self.warmup(step).momentum_at(self.target_momentum, step)


class GroupRate(NamedTuple):
    """base: the lr of a parameter group that the factor multiplies.  start: its lr at the start of the warm-up."""

    base: float
    start: float = 0.0


def group_rates(optimizer: Optimizer, warmup_bias_lr: float) -> dict[str, GroupRate]:
    """Return the rates of the optimizer's named groups; a part's `lr_scale` holds for its warm-up, too."""
    return {
        group["name"]: GroupRate(
            group.get("initial_lr", group["lr"]), warmup_bias_lr * group["lr_scale"] if group["kind"] == "bias" else 0.0
        )
        for group in optimizer.param_groups
    }


@dataclass(frozen=True)
class LRCurve:
    """What every iteration of a run uses: arrays of `epochs · steps_per_epoch` float64 values.

    schedule: its name; MODULE:FUNCTION of the user's own.  warmup_wanted: iterations of warm-up that were asked for.
    extended: epochs from which on a formula over another length holds.
    """

    schedule: str
    epochs: int
    steps_per_epoch: int
    warmup_steps: int
    warmup_wanted: int
    close_mosaic_epoch: int | None
    lr: dict[str, np.ndarray]
    momentum: np.ndarray
    extended: tuple[int, ...] = ()


def lr_curve(schedule: Schedule, rates: dict[str, GroupRate], close_mosaic: int) -> LRCurve:
    """Compute lr and momentum of every iteration before the run starts.

    Args:
        rates: {group name: its rates}.  close_mosaic: epochs at the end of the plan that train without mosaic.
    """
    course, steps_per_epoch = schedule.course, schedule.steps_per_epoch
    factors = [schedule.factor(epoch) for epoch in range(course.epochs)]
    total, longest = course.epochs * steps_per_epoch, max(stage.warmup.steps for stage in schedule.stages)
    warm = [(step, w) for step in range(min(longest, total)) if step < (w := schedule.warmup(step)).steps]
    lr = {}
    for group, (base, start) in rates.items():
        targets = [base * factor for factor in factors]
        lr[group] = np.repeat(targets, steps_per_epoch)
        for step, warmup in warm:
            lr[group][step] = warmup.lr(start, targets[step // steps_per_epoch], step)
    momentum = np.full(total, schedule.target_momentum, np.float64)
    for step, warmup in warm:
        momentum[step] = warmup.momentum_at(schedule.target_momentum, step)
    closing = max(course.planned - close_mosaic, 0) if close_mosaic > 0 else None
    return LRCurve(
        schedule=schedule.name,
        epochs=course.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=schedule.stages[0].warmup.steps,
        warmup_wanted=schedule.stages[0].warmup.wanted,
        close_mosaic_epoch=closing,
        lr=lr,
        momentum=momentum,
        extended=tuple(extension.at for extension in course.extensions),
    )


def set_momentum(group: dict[str, Any], momentum: float) -> None:
    """Set the momentum of one parameter group: SGD's, or Adam's first beta."""
    if "betas" in group:
        group["betas"] = (momentum, group["betas"][1])
    else:
        group["momentum"] = momentum


class LearningRate:
    """`LambdaLR`, stepped once an epoch, with the warm-up on top.

    Call `apply(step)` before each optimizer step, `end_epoch()` after the last one of an epoch, and `refresh()` once a
    saved state was loaded. The whole state is the scheduler's own.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, rates: dict[str, GroupRate]) -> None:
        self.optimizer, self.schedule, self.rates = optimizer, schedule, rates
        self.scheduler = LambdaLR(optimizer, lr_lambda=schedule.factor)
        self._applied: dict[str, float] = {}

    def apply(self, step: int) -> None:
        """Set lr and momentum of every group for iteration `step` (counted from 0 over the whole run)."""
        warmup, momentum = self.schedule.warmup(step), self.schedule.momentum(step)
        targets = zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), self.scheduler.base_lrs, strict=True)
        for group, target, base in targets:
            planned = self.rates[group["name"]]
            start = planned.start * (base / planned.base)  # a rollback lowers all of a warm-up
            group["lr"] = warmup.lr(start, target, step)
            set_momentum(group, momentum)

    def end_epoch(self) -> None:
        # A run may go on from after its epoch's last step: this process called no `apply`, the optimizer has its lr.
        self._applied = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.scheduler.step()

    def refresh(self) -> None:
        """Compute the coming epoch's lr anew: an extension changes the formula, and a saved lr is by the old one."""
        factor = self.schedule.factor(self.scheduler.last_epoch)
        self.scheduler._last_lr = [base * factor for base in self.scheduler.base_lrs]

    def lower(self, share: float) -> None:
        """From here on take this share of all that was planned. It is part of the scheduler's state."""
        groups = self.optimizer.param_groups
        self.scheduler.base_lrs = [self.rates[group["name"]].base * share for group in groups]
        self.refresh()  # as a run does that goes on from this: the same numbers to the last bit

    def current(self) -> dict[str, float]:
        """The lr of each group that the last optimizer step used (after an epoch the optimizer has the next one's)."""
        return dict(self._applied)


def describe_schedule(hyp: ScheduleSettings, own: str, last: float) -> str:
    """Name a schedule, `own` where it is the user's, and the lr that its last epoch has."""
    toward = "" if hyp.schedule in ("constant", "custom") else f" (lrf {hyp.lrf:g})"
    return f"{own if hyp.schedule == 'custom' else hyp.schedule}, lr {last:.6g} in the last epoch{toward}"


def describe_mosaic(mosaic: float, mixup: float, rect: bool, close_mosaic: int, curve: LRCurve) -> list[str]:
    """Say when there are no mosaics and no mixup, those of them that are asked for; nothing where there always are."""
    if not (mosaic or mixup) or (curve.close_mosaic_epoch is None and not rect):
        return []
    if rect:
        when = "not with --rect"
    else:
        end = curve.epochs - curve.close_mosaic_epoch
        when = "in none of the epochs" if end >= curve.epochs else f"not in the last {many(end, 'epoch')}"
        when = f"{when} (close_mosaic {close_mosaic})"
    return [f"{'mosaic' if mosaic else 'mixup':<12} {'and mixup: ' if mosaic and mixup else ''}{when}"]


def describe_curve(curve: LRCurve) -> list[str]:
    """Say the curve in words: its length, warm-up, and the lr of each group where it matters."""
    total = curve.epochs * curve.steps_per_epoch
    epochs, steps = many(curve.epochs, "epoch"), many(curve.steps_per_epoch, "optimizer step")
    cut = f"; warmup_max_fraction: {curve.warmup_wanted} were asked for"
    warm = f"{curve.warmup_steps} ({curve.warmup_steps / total:.1%}{cut * (curve.warmup_wanted > curve.warmup_steps)})"
    lines = [f"iterations   {total} = {epochs} x {steps}; warm-up {warm}"]
    marks = {total * 3 // 4: "3/4", total // 2: "1/2", total // 4: "1/4", curve.warmup_steps: "warm", 0: "first"}
    marks = {step: marks[step] for step in sorted(marks) if step < total - 1} | {total - 1: "last"}
    rows = {f"lr/{group}": values for group, values in curve.lr.items()} | {"momentum": curve.momentum}
    width = max(13, 1 + max(map(len, rows)))
    lines.append(f"{'at':<{width}}" + "".join(f"{name:>12}" for name in marks.values()))
    lines += [f"{name:<{width}}" + "".join(f"{values[step]:>12.6g}" for step in marks) for name, values in rows.items()]
    return lines


def describe_jump(before: Schedule, after: Schedule, at: int, lr0: float) -> str:
    """Say what an extension does to the lr of groups at `lr0`: from the last epoch trained to the next one.

    The schedules are of one step an epoch. Where warm-up isn't over, it comes on top.
    """
    old, new = lr0 * before.factor(at - 1), lr0 * after.factor(at)
    jump = "no jump" if new == old else f"x {new / old:.3g}" if old > 0 else "from nothing"
    last = lr0 * after.factor(after.course.epochs - 1)
    return (
        f"lr {old:.6g} in epoch {at} -> {new:.6g} in epoch {at + 1} ({jump}), {last:.6g} in epoch {after.course.epochs}"
        f"{', with warm-up on top' if at < after.stage(at).warmup.steps else ''}"
    )
