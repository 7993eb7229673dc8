"""utils/schedule.py: factors worked by hand, and lr and momentum that are, to the last bit, what was announced."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from utils.errors import UserError
from utils.hyp import SCHEDULES, Hyp, load_hyp
from utils.optim import NamedOptimizerState, build_optimizer
from utils.options import TrainOptions, parse
from utils.schedule import (
    Course,
    CustomFactor,
    GroupRate,
    LearningRate,
    LRCurve,
    Schedule,
    Warmup,
    build_factor,
    build_warmup,
    describe_curve,
    describe_jump,
    flat_cosine,
    group_rates,
    linear,
    load_custom,
    lr_curve,
    one_cycle,
    set_momentum,
    tabulate,
)
from utils.schedule import step as step_schedule

OPTIMIZERS = ("SGD", "Adam", "AdamW")
SAWTOOTH = CustomFactor("mine:saw", "", lambda epoch, epochs, lrf: 1 - (1 - lrf) * (epoch % 3) / 3)
ALL_SCHEDULES = (*SCHEDULES, "custom")
HYP = Hyp(lr0=0.02, lrf=0.1, momentum=0.937, warmup_momentum=0.8, warmup_bias_lr=0.1, warmup_max_fraction=0.5)
Used = list[dict[str, tuple[float, float]]]  # of each optimizer step: group -> (lr, momentum)

# (1 - x/(E-1))·0.9 + 0.1
LINEAR = {
    1: [1.0],
    2: [1.0, 0.1],
    3: [1.0, 0.55, 0.1],
    5: [1.0, 0.775, 0.55, 0.325, 0.1],
    10: [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
}
# 1 - 0.9·(1 - cos(πx/E))/2, where cos 18° 36° 45° 54° 72° = .9510565163 .8090169944 .7071067812 .5877852523 .3090169944
ONE_CYCLE = {
    1: [1.0],
    2: [1.0, 0.55],
    4: [1.0, 0.8681980515, 0.55, 0.2318019485],
    10: [
        *(1.0, 0.9779754323, 0.9140576475, 0.8145033636, 0.6890576475),
        *(0.55, 0.4109423525, 0.2854966364, 0.1859423525, 0.1220245677),
    ],
}


class Net(nn.Module):
    """A parameter in each of the three groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)


def momentum_of(group: dict[str, Any]) -> float:
    return group["betas"][0] if "betas" in group else group["momentum"]


def schedule_of(hyp: Hyp, course: Course | int, steps_per_epoch: int) -> Schedule:
    custom = SAWTOOTH if hyp.schedule == "custom" else None
    return Schedule(hyp, course if isinstance(course, Course) else Course(course), steps_per_epoch, custom)


def start(
    hyp: Hyp, course: Course | int, steps_per_epoch: int, fused: bool = True
) -> tuple[Net, Optimizer, LearningRate, Used]:
    """A model with its optimizer and lr; every optimizer step writes down what it uses."""
    torch.manual_seed(0)
    model = Net()
    optimizer = build_optimizer(model, hyp, hyp.lr0, hyp.weight_decay, fused)
    used: Used = []
    optimizer.register_step_pre_hook(
        lambda *_: used.append({g["name"]: (g["lr"], momentum_of(g)) for g in optimizer.param_groups})
    )
    rates = group_rates(optimizer, hyp.warmup_bias_lr)
    return model, optimizer, LearningRate(optimizer, schedule_of(hyp, course, steps_per_epoch), rates), used


def train(model: Net, optimizer: Optimizer, lr: LearningRate, steps: range, steps_per_epoch: int) -> None:
    """The rhythm of the training loop: `apply`, step, and `end_epoch` after the last step of an epoch."""
    for step in steps:
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, math.sin(step + number))
        lr.apply(step)
        optimizer.step()
        if (step + 1) % steps_per_epoch == 0:
            lr.end_epoch()


def curve_of(
    hyp: Hyp, course: Course | int, steps_per_epoch: int, rates: dict[str, GroupRate] | None = None
) -> LRCurve:
    own = GroupRate(hyp.lr0)
    rates = rates or {"decay": own, "no_decay": own, "bias": GroupRate(hyp.lr0, hyp.warmup_bias_lr)}
    return lr_curve(schedule_of(hyp, course, steps_per_epoch), rates, hyp.close_mosaic)


def of_step(curve: LRCurve, step: int) -> dict[str, tuple[float, float]]:
    return {group: (values[step], curve.momentum[step]) for group, values in curve.lr.items()}


def same(used: Used, curve: LRCurve, steps: Iterator[int] | range) -> None:
    """Bit for bit: `==` of floats."""
    for found, step in zip(used, steps, strict=True):
        assert found == of_step(curve, step), f"step {step} of {curve.epochs} epochs x {curve.steps_per_epoch}"


@pytest.mark.parametrize("epochs", LINEAR)
def test_linear_by_hand(epochs: int) -> None:
    factor = linear(0.1, epochs)
    assert [factor(epoch) for epoch in range(epochs)] == pytest.approx(LINEAR[epochs], abs=1e-15)
    assert factor(0) == 1.0, "exactly 1 at the first epoch"
    assert epochs == 1 or factor(epochs - 1) == 0.1, "exactly lrf at the last"


@pytest.mark.parametrize("epochs", ONE_CYCLE)
def test_one_cycle_by_hand(epochs: int) -> None:
    factor = one_cycle(1, 0.1, epochs)
    assert [factor(epoch) for epoch in range(epochs)] == pytest.approx(ONE_CYCLE[epochs], abs=1e-10)
    assert factor(0) == 1.0
    assert factor(epochs - 1) > 0.1, "the last trained epoch is a little above lrf"
    assert factor(epochs) == pytest.approx(0.1, abs=1e-15)


def test_one_cycle_moves_between_any_two_values() -> None:
    rise = one_cycle(0.2, 3.0, 4)
    assert [rise(x) for x in range(5)] == pytest.approx([0.2, 0.6100505063, 1.6, 2.5899494937, 3.0], abs=1e-10)


@pytest.mark.parametrize("epochs", [4, 10, 100, 101])
def test_one_cycle_falls_fastest_in_the_middle_and_slowest_at_both_ends(epochs: int) -> None:
    factor = one_cycle(1, 0.01, epochs)
    fall = -np.diff([factor(epoch) for epoch in range(epochs + 1)])
    middle = len(fall) // 2
    assert (fall > 0).all()
    assert (np.diff(fall[: middle + len(fall) % 2]) > 0).all(), "faster and faster up to the middle"
    assert (np.diff(fall[middle:]) < 0).all(), "slower and slower after it"
    assert fall[0] == pytest.approx(fall[-1]) and fall[0] < fall.max() / 2, "as flat at the start as at the end"


def test_factors_stay_within_the_run() -> None:
    for epochs in (1, 2, 10):
        straight, cosine = linear(0.1, epochs), one_cycle(1, 0.1, epochs)
        assert straight(-1) == straight(-50) == 1.0 and cosine(-1) == cosine(-50) == 1.0
        for past in (epochs, epochs + 1, 10 * epochs, 10**9):
            assert straight(past) == straight(epochs - 1)
            assert cosine(past) == cosine(epochs) == pytest.approx(0.1, abs=1e-15)


def test_linear_is_exact_at_both_ends_and_never_below_lrf() -> None:
    for epochs, lrf in itertools.product((2, 3, 7, 10, 100, 300), np.random.default_rng(0).random(200).tolist()):
        factor = linear(lrf, epochs)
        values = [factor(epoch) for epoch in (0, 1, epochs // 2, epochs - 1, epochs)]
        assert values[0] == 1.0 and values[-1] == values[-2] == lrf and min(values) == lrf, (epochs, lrf)


def test_the_flag_linear_lr_goes_from_one_to_lrf_in_even_steps() -> None:
    options = parse(TrainOptions, ["--linear-lr", "--epochs", "5"], "train.py", "")
    hyp = load_hyp(options.hyp, list(options.set), options.hyp_flags())
    factor = build_factor(hyp, options.epochs)
    way = [(factor(epoch) - hyp.lrf) / (1 - hyp.lrf) for epoch in range(5)]
    assert way == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-15)
    assert factor(4) == hyp.lrf


def test_a_schedule_is_built_by_its_name() -> None:
    def values(schedule: str) -> list[float]:
        factor = build_factor(replace(HYP, schedule=schedule), 10)
        return [factor(epoch) for epoch in range(10)]

    assert values("linear") == pytest.approx(LINEAR[10], abs=1e-15)
    assert values("one_cycle") == pytest.approx(ONE_CYCLE[10], abs=1e-10)
    assert values("constant") == [1.0] * 10
    assert values("step") == pytest.approx(STEP[10], abs=1e-10)
    assert build_factor(replace(HYP, schedule="custom"), 4, SAWTOOTH)(2) == pytest.approx(0.4)


# Falls at 2/3 and 11/12 of the run, to the root of 0.1 and to 0.1.
STEP = {1: [1.0], 3: [1, 1, 0.316227766], 10: [1.0] * 7 + [0.316227766] * 2 + [0.1]}


@pytest.mark.parametrize("epochs", STEP)
def test_step_by_hand(epochs: int) -> None:
    """0.6667 of 10 is 7 to the nearest whole, 0.9167 of 10 is 9."""
    factor = step_schedule(0.1, epochs, (0.6667, 0.9167))
    assert [factor(epoch) for epoch in range(epochs)] == pytest.approx(STEP[epochs], abs=1e-9)
    assert factor(0) == 1.0


def test_step_falls_at_its_shares_and_ends_at_lrf_exactly() -> None:
    for epochs, falls in itertools.product((10, 12, 30, 100), ((0.5,), (0.3, 0.6, 0.9), (0.07, 0.29))):
        factor = step_schedule(0.05, epochs, falls)
        values = [factor(epoch) for epoch in range(epochs)]
        changes = [epoch for epoch in range(1, epochs) if values[epoch] != values[epoch - 1]]
        assert changes == [math.floor(Fraction(str(fall)) * epochs + Fraction(1, 2)) for fall in falls]
        ratios = [values[epoch] / values[epoch - 1] for epoch in changes]
        assert ratios == pytest.approx([0.05 ** (1 / len(falls))] * len(falls))
        assert values[0] == 1.0 and values[-1] == 0.05 == factor(10**6)
    assert [step_schedule(0.0, 4, (0.25, 0.75))(epoch) for epoch in range(4)] == [1.0, 0.0, 0.0, 0.0]


# hold 0.5, a tail of 2: epochs 0 to 4 at 1, then a cosine over 3 epochs (cos 0, 60, 120 degrees), then 0.1
FLAT_COSINE = {
    (10, 0.5, 2): [1, 1, 1, 1, 1, 1, 0.775, 0.325, 0.1, 0.1],
    (8, 0.5, 0): [1, 1, 1, 1, 1, 0.8681980515, 0.55, 0.2318019485],  # without a tail: as one_cycle over what is left
    (4, 0.0, 99): [1, 0.55, 0.1, 0.1],  # the tail takes half at most
    (1, 0.5, 10): [1],
    (2, 0.5, 10): [1, 1],
    (3, 0.0, 10): [1, 0.55, 0.1],
    (4, 1.0, 10): [1, 1, 1, 1],
}


@pytest.mark.parametrize("epochs,hold,tail", FLAT_COSINE)
def test_flat_cosine_by_hand(epochs: int, hold: float, tail: int) -> None:
    factor = flat_cosine(0.1, epochs, hold, tail)
    expected = FLAT_COSINE[epochs, hold, tail]
    assert [factor(epoch) for epoch in range(epochs)] == pytest.approx(expected, abs=1e-9)
    assert factor(10**6) == pytest.approx(0.1)


def test_flat_cosine_stays_at_lrf_exactly_while_mosaic_is_closed() -> None:
    hyp = replace(HYP, schedule="flat_cosine", close_mosaic=10, hold=0.3)
    factor = build_factor(hyp, 60)
    values = [factor(epoch) for epoch in range(60)]
    assert values[:19] == [1.0] * 19 and values[50:] == [0.1] * 10
    assert (np.diff(values[18:51]) < 0).all()


def test_no_schedule_leaves_its_bounds_whatever_the_run() -> None:
    for schedule, epochs, lrf in itertools.product(SCHEDULES, (1, 2, 3, 7, 40), (0.0, 0.01, 0.3, 1.0)):
        if schedule == "step" and lrf == 0:  # which is refused
            continue
        factor = build_factor(replace(HYP, schedule=schedule, lrf=lrf), epochs)
        values = [factor(epoch) for epoch in range(-2, epochs + 3)]
        assert values[2] == 1.0 and all(lrf - 1e-15 <= value <= 1 for value in values), (schedule, epochs, lrf)
        assert all(a >= b for a, b in itertools.pairwise(values))


MODULE = """
import math

def falling(epoch, epochs, lrf):
    return lrf ** (epoch / max(epochs - 1, 1))

def broken(epoch, epochs, lrf):
    return 1 / (3 - epoch)

def nan(epoch, epochs, lrf):
    return math.nan if epoch == 1 else 1.0

def below(epoch, epochs, lrf):
    return 1 - epoch

calls = []

def moody(epoch, epochs, lrf):
    calls.append(epoch)
    return len(calls)

text = "no function"
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module in the working directory, under a name of its own in each test."""
    name = f"factors_{abs(hash(tmp_path))}"
    file = tmp_path / f"{name}.py"
    file.write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return file


def test_a_schedule_of_the_users_own(module: Path) -> None:
    import hashlib
    import sys

    before = list(sys.path)
    custom = load_custom(f"{module.stem}:falling")
    assert sys.path == before
    assert custom.sha256 == hashlib.sha256(module.read_bytes()).hexdigest()
    factor = tabulate(custom, 3, 0.01)
    assert [factor(epoch) for epoch in (-1, 0, 1, 2, 9)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "failed: ZeroDivisionError"),
        ("nan", "gives nan for epoch 1"),
        ("below", "gives -1.0 for epoch 2"),
        ("moody", "gives other factors when asked again"),
    ],
)
def test_a_schedule_of_the_users_own_that_is_none(module: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        tabulate(load_custom(f"{module.stem}:{name}"), 5, 0.1)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}:rising", "has no function rising"),
        ("{}:text", "has no function text"),
        ("{}.py:falling", "can't be imported"),
        ("./{}:falling", "write MODULE:FUNCTION"),
        ("no_such_module_anywhere:f", "can't be imported: ModuleNotFoundError"),
        ("{}:", "write MODULE:FUNCTION"),
        ("sys:exit", "has no source file"),
    ],
)
def test_a_schedule_that_cannot_be_loaded(module: Path, spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_custom(spec.format(module.stem))


def test_a_module_that_fails_when_imported_is_no_traceback(module: Path) -> None:
    module.with_name("falls_over.py").write_text("raise KeyError('x')")
    with pytest.raises(UserError, match="falls_over can't be imported: KeyError"):
        load_custom("falls_over:f")


@pytest.mark.parametrize(
    ("wanted", "share", "epochs", "steps_per_epoch", "steps"),
    [
        (3.0, 0.1, 100, 10, 30),  # the three epochs fit into a tenth
        (3.0, 0.1, 10, 50, 50),  # a tenth of 500
        (3.0, 0.1, 3, 7, 2),  # a tenth of 21, rounded down
        (3.0, 0.1, 1, 7, 0),  # a run too short for any warm-up
        (0.5, 0.1, 10, 50, 25),
        (0.5, 0.1, 40, 13, 6),  # half an epoch of 13
        (0.0, 0.1, 100, 50, 0),
        (3.0, 0.0, 100, 50, 0),
        (1000.0, 1.0, 2, 50, 100),  # the run itself is the most
    ],
)
def test_the_length_of_the_warm_up(wanted: float, share: float, epochs: int, steps_per_epoch: int, steps: int) -> None:
    hyp = replace(HYP, warmup_epochs=wanted, warmup_max_fraction=share)
    assert build_warmup(hyp, epochs, steps_per_epoch).steps == steps


def test_the_warm_up_never_outlasts_its_share_of_the_run() -> None:
    for share, epochs, steps_per_epoch in itertools.product((0.05, 0.1, 0.29, 1.0), (1, 2, 3, 7, 30), (1, 3, 7, 50)):
        steps = build_warmup(
            replace(HYP, warmup_epochs=1000.0, warmup_max_fraction=share), epochs, steps_per_epoch
        ).steps
        most = Fraction(str(share)) * epochs * steps_per_epoch
        assert most - 1 <= steps <= most, (share, epochs, steps_per_epoch)


def test_warm_up_by_hand() -> None:
    warmup = Warmup(steps=4, momentum=0.8)
    assert [warmup.lr(0.0, 0.02, step) for step in range(6)] == pytest.approx([0, 0.005, 0.01, 0.015, 0.02, 0.02])
    assert [warmup.lr(0.1, 0.02, step) for step in range(6)] == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02, 0.02])
    assert [warmup.momentum_at(0.9, step) for step in range(6)] == pytest.approx([0.8, 0.825, 0.85, 0.875, 0.9, 0.9])
    none = Warmup(steps=0, momentum=0.8)
    assert none.lr(0.1, 0.02, 0) == 0.02 and none.momentum_at(0.9, 0) == 0.9


def by_hand(hyp: Hyp, epochs: int, steps_per_epoch: int, group: str, step: int) -> tuple[float, float]:
    """lr and momentum from the formulas as they are written down for users, one number at a time."""
    x, lrf = step // steps_per_epoch, hyp.lrf
    held = math.floor(epochs * hyp.hold + 0.5)
    tail = min(hyp.close_mosaic, (epochs - held) // 2)
    slope = (x - held) / max(epochs - held - tail, 1)
    factor = {
        "linear": 1 - (1 - lrf) * (x / (epochs - 1) if epochs > 1 else 0),
        "one_cycle": lrf + (1 - lrf) * (1 + math.cos(math.pi * x / epochs)) / 2,
        "flat_cosine": lrf + (1 - lrf) * (1 + math.cos(math.pi * min(max(slope, 0), 1))) / 2,
        "step": lrf ** (sum(x >= math.floor(at * epochs + 0.5) for at in hyp.step_at) / 2),
        "constant": 1,
        "custom": [1, 1 - (1 - lrf) / 3, 1 - 2 * (1 - lrf) / 3][x % 3],
    }[hyp.schedule]
    iterations = epochs * steps_per_epoch
    length = min(round(hyp.warmup_epochs * steps_per_epoch), math.floor(hyp.warmup_max_fraction * iterations))
    share = min(step / length, 1) if length else 1
    begin = hyp.warmup_bias_lr if group == "bias" else 0
    return begin * (1 - share) + hyp.lr0 * factor * share, hyp.warmup_momentum * (1 - share) + hyp.momentum * share


def run_epochs(optimizer: Optimizer, lr: LearningRate, epochs: int, batches: int, accumulate: int, skip: int) -> None:
    """The rhythm of the training loop over batches; every `skip`-th optimizer step is left out, as AMP does."""
    iteration = 0
    for _ in range(epochs):
        for number in range(batches):
            if (number + 1) % accumulate == 0 or number + 1 == batches:
                lr.apply(iteration)
                if not skip or iteration % skip != skip - 1:
                    optimizer.step()
                iteration += 1
        lr.end_epoch()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ALL_SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.5, 3.0])
def test_every_optimizer_step_uses_what_the_curve_says(optimizer: str, schedule: str, warmup: float) -> None:
    """Without gradients a step moves nothing and is quick, and the hook sees what it would have used."""
    hyp = replace(HYP, optimizer=optimizer, schedule=schedule, warmup_epochs=warmup)
    for epochs, batches, accumulate in itertools.product((1, 2, 3, 10, 100), (1, 7, 50), (1, 3)):
        steps_per_epoch = math.ceil(batches / accumulate)
        curve = curve_of(hyp, epochs, steps_per_epoch)
        iterations = range(epochs * steps_per_epoch)
        for skip in (0, 4):
            _, used_optimizer, lr, used = start(hyp, epochs, steps_per_epoch)
            assert type(lr.scheduler) is LambdaLR
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")  # skipped at once
                run_epochs(used_optimizer, lr, epochs, batches, accumulate, skip)
            assert lr.scheduler.last_epoch == epochs, "stepped once an epoch"
            same(used, curve, [i for i in iterations if not skip or i % skip != skip - 1])
        # The curve knows nothing of the optimizer: by hand once is enough.
        for group, iteration in itertools.product(curve.lr, iterations if optimizer == "SGD" else ()):
            expected = by_hand(hyp, epochs, steps_per_epoch, group, iteration)
            found = of_step(curve, iteration)[group]
            assert found == pytest.approx(expected, rel=1e-12, abs=1e-15), (epochs, batches, group, iteration)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ALL_SCHEDULES)
def test_a_resumed_run_uses_the_same_and_ends_at_the_same_weights(optimizer: str, schedule: str) -> None:
    epochs, steps_per_epoch = 4, 3
    hyp, iterations = replace(HYP, optimizer=optimizer, schedule=schedule), epochs * steps_per_epoch
    curve = curve_of(hyp, epochs, steps_per_epoch)
    whole, whole_optimizer, lr, _ = start(hyp, epochs, steps_per_epoch)
    train(whole, whole_optimizer, lr, range(iterations), steps_per_epoch)
    for stop in range(iterations):
        first, first_optimizer, lr, _ = start(hyp, epochs, steps_per_epoch)
        train(first, first_optimizer, lr, range(stop), steps_per_epoch)
        optimizer_state = NamedOptimizerState(first, first_optimizer).state_dict()
        state = copy.deepcopy((first.state_dict(), optimizer_state, lr.scheduler.state_dict()))
        model, new_optimizer, lr, used = start(hyp, epochs, steps_per_epoch)
        model.load_state_dict(state[0])
        NamedOptimizerState(model, new_optimizer).load_state_dict(state[1])
        lr.scheduler.load_state_dict(state[2])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(model, new_optimizer, lr, range(stop, iterations), steps_per_epoch)
        same(used, curve, range(stop, iterations))
        for name, value in whole.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), f"{name}, interrupted before step {stop}"


def test_skipped_steps_of_mixed_precision_do_not_move_the_curve() -> None:
    """A step with overflowing gradients is not taken, and the next one uses what belongs to its own iteration."""
    hyp = replace(HYP, optimizer="AdamW", warmup_epochs=1.0)
    model, optimizer, lr, used = start(hyp, 4, 5, fused=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    scaler.scale(torch.ones(()))
    overflowing = {0, 3, 4, 9, 17}
    for step in range(20):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, math.inf if step in overflowing else 1.0)
        lr.apply(step)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if (step + 1) % 5 == 0:
            lr.end_epoch()
    same(used, curve_of(hyp, 4, 5), [step for step in range(20) if step not in overflowing])


def test_current_is_what_the_last_step_used_also_after_the_end_of_the_epoch() -> None:
    """It is what results.csv shows for an epoch: `LambdaLR.step` has by then written the next epoch's lr."""
    hyp = replace(HYP, schedule="linear", warmup_epochs=0.0)
    model, optimizer, lr, used = start(hyp, 5, 2)
    shown = []
    for epoch in range(5):
        train(model, optimizer, lr, range(2 * epoch, 2 * epoch + 2), 2)
        assert lr.current() == {group: value for group, (value, _) in used[-1].items()}
        shown.append(lr.current()["decay"] / hyp.lr0)
    assert shown == pytest.approx(LINEAR[5])


def test_a_rollback_lowers_all_of_a_warm_up() -> None:
    hyp = replace(HYP, warmup_epochs=2.0)
    _, optimizer, lr, _ = start(hyp, 10, 4)
    planned = []
    for lower in (False, True):
        if lower:
            lr.lower(0.1)
        for step in (0, 3, 7):
            lr.apply(step)
            planned.append({group["name"]: group["lr"] for group in optimizer.param_groups})
    assert planned[0]["bias"] == 0.1
    for before, after in zip(planned[:3], planned[3:], strict=True):
        assert after == pytest.approx({name: 0.1 * value for name, value in before.items()})


@pytest.mark.parametrize("schedule", ["one_cycle", "linear"])
def test_a_lowered_lr_is_that_of_a_run_that_goes_on_from_a_state_of_it(schedule: str) -> None:
    """To the last bit, at any epoch: a product of three numbers depends on the order."""
    hyp = replace(HYP, schedule=schedule)
    for epoch in range(30):
        model, optimizer, lr, _ = start(hyp, 30, 1)
        train(model, optimizer, lr, range(epoch), 1)
        lr.lower(0.1)
        whole = lr.scheduler.get_last_lr()
        resumed = start(hyp, 30, 1)[2]
        resumed.scheduler.load_state_dict(lr.scheduler.state_dict())
        resumed.refresh()
        assert resumed.scheduler.get_last_lr() == whole
        assert whole == pytest.approx([0.1 * 0.02 * build_factor(hyp, 30)(epoch)] * 3)
    train(model, optimizer, lr, range(29, 30), 1)
    assert lr.current()["decay"] == pytest.approx(0.1 * 0.02 * build_factor(hyp, 30)(29)), "it stays lowered"


def test_warm_up_starts_groups_and_momentum_where_it_says() -> None:
    for optimizer in OPTIMIZERS:
        hyp = replace(HYP, optimizer=optimizer, warmup_epochs=2.0)
        model, used_optimizer, lr, used = start(hyp, 10, 4)
        train(model, used_optimizer, lr, range(9), 4)
        assert used[0] == {"decay": (0.0, 0.8), "no_decay": (0.0, 0.8), "bias": (0.1, 0.8)}
        assert used[8] == of_step(curve_of(hyp, 10, 4), 8)
        assert used[8]["decay"] == used[8]["bias"] and used[8]["decay"][1] == 0.937, "over after 8 steps"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("momentum", "warmup_momentum"), [(0.9, 0.0), (0.0, 0.8), (0.0, 0.0)])
def test_momentum_zero_at_either_end_of_the_warm_up(optimizer: str, momentum: float, warmup_momentum: float) -> None:
    """A run without momentum has none while it warms up either; one that starts from 0 gets to its momentum."""
    hyp = replace(HYP, optimizer=optimizer, momentum=momentum, warmup_momentum=warmup_momentum, warmup_epochs=1.0)
    model, used_optimizer, lr, used = start(hyp, 4, 4)
    train(model, used_optimizer, lr, range(16), 4)
    same(used, curve_of(hyp, 4, 4), range(16))
    assert [round(step["decay"][1], 12) for step in used[:5]] == (
        [0.0, 0.225, 0.45, 0.675, 0.9] if momentum else [0.0] * 5
    )


def test_momentum_is_sgds_or_adams_first_beta() -> None:
    sgd, adam = {"momentum": 0.9, "lr": 1.0}, {"betas": (0.9, 0.999), "lr": 1.0}
    set_momentum(sgd, 0.5)
    set_momentum(adam, 0.5)
    assert sgd == {"momentum": 0.5, "lr": 1.0} and adam == {"betas": (0.5, 0.999), "lr": 1.0}


def test_the_curve_knows_its_run() -> None:
    rates = {"decay": GroupRate(0.02), "bias": GroupRate(0.04)}
    curve = curve_of(replace(HYP, close_mosaic=3, warmup_epochs=1.0), 10, 4, rates)
    assert (curve.epochs, curve.steps_per_epoch, curve.warmup_steps, curve.close_mosaic_epoch) == (10, 4, 4, 7)
    assert {group: (values.dtype, values.shape) for group, values in curve.lr.items()} == {
        group: (np.dtype("float64"), (40,)) for group in ("decay", "bias")
    }
    assert curve.lr["decay"][4] == 0.02 * build_factor(HYP, 10)(1), "each group has a base of its own"
    assert curve.lr["bias"][4] == 0.04 * build_factor(HYP, 10)(1)
    for closing, epoch in ((0, None), (10, 0), (40, 0)):
        assert curve_of(replace(HYP, close_mosaic=closing), 10, 4).close_mosaic_epoch == epoch


def test_the_plan_in_words() -> None:
    hyp = replace(HYP, schedule="linear", warmup_epochs=0.5, lrf=0.2)
    alone = {"decay": GroupRate(0.02)}
    lines = describe_curve(curve_of(hyp, 5, 4, alone | {"bias": GroupRate(0.02, 0.1)}))
    assert lines[0] == "iterations   20 = 5 epochs x 4 optimizer steps; warm-up 2 (10.0%)"
    assert [line.split() for line in lines[1:]] == [
        ["at", "first", "warm", "1/4", "1/2", "3/4", "last"],
        ["lr/decay", "0", "0.02", "0.016", "0.012", "0.008", "0.004"],
        ["lr/bias", "0.1", "0.02", "0.016", "0.012", "0.008", "0.004"],
        ["momentum", "0.8", "0.937", "0.937", "0.937", "0.937", "0.937"],
    ]
    assert len({len(line) for line in lines[1:]}) == 1, "columns stand under one another"
    without = describe_curve(curve_of(replace(hyp, warmup_epochs=0.0), 5, 4, alone))
    assert without[1].split() == ["at", "first", "1/4", "1/2", "3/4", "last"]
    assert describe_curve(curve_of(hyp, 1, 1, alone))[1].split() == ["at", "last"]
    short = describe_curve(curve_of(replace(hyp, warmup_epochs=0.0), 1, 3, alone))
    assert short[1].split() == ["at", "first", "1/2", "last"]
    long = replace(hyp, warmup_epochs=1.6)
    assert describe_curve(curve_of(long, 4, 5, alone))[1].split() == [
        *("at", "first", "1/4", "warm", "1/2", "3/4", "last")
    ]


def test_parts_of_the_model_have_groups_and_curves_of_their_own() -> None:
    """A part's factor holds for its lr over the whole run, the start of its biases' warm-up included."""
    model = nn.Sequential()
    model.add_module("backbone", nn.Conv2d(1, 2, 1))
    model.add_module("head", nn.Conv2d(2, 2, 1))
    hyp = replace(HYP, warmup_epochs=1.0, lr_scale={"backbone": 0.25})
    optimizer = build_optimizer(model, hyp, hyp.lr0, 0.0, False)
    rates = group_rates(optimizer, hyp.warmup_bias_lr)
    assert rates == {
        "backbone/decay": GroupRate(0.005, 0.0),
        "backbone/bias": GroupRate(0.005, 0.025),
        "decay": GroupRate(0.02, 0.0),
        "bias": GroupRate(0.02, 0.1),
    }
    used: Used = []
    optimizer.register_step_pre_hook(
        lambda *_: used.append({g["name"]: (g["lr"], momentum_of(g)) for g in optimizer.param_groups})
    )
    curve = curve_of(hyp, 10, 4, rates)
    run_epochs(optimizer, LearningRate(optimizer, schedule_of(hyp, 10, 4), rates), 10, 4, 1, 0)
    same(used, curve, range(40))
    for kind in ("decay", "bias"):
        np.testing.assert_allclose(curve.lr[f"backbone/{kind}"], 0.25 * curve.lr[kind], rtol=1e-12)


# 4 epochs, then on to 8: the linear factor from 1 to 0.1 over 4 epochs is 1, .7, .4, .1; over 8 it is 1 - .9·x/7.
EXTENDED = {
    "replan": [1, 0.7, 0.4, 0.1, *(1 - 0.9 * x / 7 for x in (4, 5, 6, 7))],
    "tail": [1, 0.7, 0.4, 0.1, 0.1, 0.1, 0.1, 0.1],
}


@pytest.mark.parametrize("mode", EXTENDED)
def test_an_extended_run_by_hand(mode: str) -> None:
    hyp = replace(HYP, schedule="linear", warmup_epochs=0.0)
    course = Course(4).extend(4, 8, mode)
    assert course.epochs == 8 and Course.from_dict(course.to_dict()) == course
    curve = curve_of(hyp, course, 2)
    assert curve.lr["decay"][::2] / hyp.lr0 == pytest.approx(EXTENDED[mode]) and curve.extended == (4,)


@pytest.mark.parametrize(
    "values",
    [
        *(None, 3, {}, {"first": 3}, {"first": "3", "extensions": []}, {"first": 0, "extensions": []}),
        *(
            {"first": 3, "extensions": e}
            for e in (5, [5], [[3, 5]], [[5, 3, "tail"]], [[3, 5, "more"]], [[3, "5", "tail"]])
        ),
    ],
)
def test_a_saved_course_is_checked(values: Any) -> None:
    with pytest.raises(UserError, match="course of epochs"):
        Course.from_dict(values)


def test_closing_the_mosaic_counts_back_from_the_formula_in_force() -> None:
    hyp = replace(HYP, close_mosaic=3)
    tail, again = Course(10).extend(10, 20, "tail"), Course(10).extend(10, 20, "replan")
    assert [curve_of(hyp, course, 1).close_mosaic_epoch for course in (Course(10), tail, again)] == [7, 7, 17]
    assert curve_of(hyp, again.extend(20, 25, "tail"), 1).close_mosaic_epoch == 17


@pytest.mark.parametrize("mode", EXTENDED)
@pytest.mark.parametrize("schedule", ALL_SCHEDULES)
def test_an_extended_run_uses_what_the_curve_says_wherever_it_stopped(mode: str, schedule: str) -> None:
    """Early stopping ends a run before its formula does; what came before the extension stays what it was."""
    hyp, spe = replace(HYP, schedule=schedule, warmup_epochs=0.5), 3
    for at in (1, 2, 4):
        model, optimizer, lr, used = start(hyp, 4, spe)
        train(model, optimizer, lr, range(at * spe), spe)
        state = copy.deepcopy((NamedOptimizerState(model, optimizer).state_dict(), lr.scheduler.state_dict()))
        course = Course(4).extend(at, 9, mode)
        curve = curve_of(hyp, course, spe)
        same(used, curve, range(at * spe))
        model, optimizer, lr, used = start(hyp, course, spe)
        NamedOptimizerState(model, optimizer).load_state_dict(state[0])
        lr.scheduler.load_state_dict(state[1])
        lr.refresh()
        train(model, optimizer, lr, range(at * spe, 9 * spe), spe)
        same(used, curve, range(at * spe, 9 * spe))
        if mode == "tail":
            assert len(set(curve.lr["decay"][(at - 1) * spe + 2 :])) == 1, "it stays at the last lr"
        else:
            whole = curve_of(hyp, 9, spe).lr["decay"][at * spe :]
            assert curve.lr["decay"][at * spe :].tolist() == whole.tolist(), "as if planned so from the start"


def test_refreshing_changes_nothing_where_the_formula_is_the_same() -> None:
    model, optimizer, lr, _ = start(HYP, 5, 2)
    train(model, optimizer, lr, range(6), 2)
    before = copy.deepcopy(lr.scheduler.state_dict())
    lr.refresh()
    assert lr.scheduler.state_dict() == before


def test_the_jump_in_words() -> None:
    hyp = replace(HYP, schedule="linear")
    before = schedule_of(hyp, 4, 1)
    replan, tail = (schedule_of(hyp, Course(4).extend(4, 8, mode), 1) for mode in ("replan", "tail"))
    assert describe_jump(before, replan, 4, 0.02) == (
        "lr 0.002 in epoch 4 -> 0.00971429 in epoch 5 (x 4.86), 0.002 in epoch 8"
    )
    assert describe_jump(before, tail, 4, 0.02) == "lr 0.002 in epoch 4 -> 0.002 in epoch 5 (no jump), 0.002 in epoch 8"
    gone = replace(hyp, lrf=0.0)
    replan = schedule_of(gone, Course(4).extend(4, 8, "replan"), 1)
    assert "(from nothing)" in describe_jump(schedule_of(gone, 4, 1), replan, 4, 0.02)


def test_the_jump_names_the_warm_up_that_the_longer_run_has() -> None:
    """Of 2 epochs a tenth is no epoch; of 100, replanned, 3 epochs are warm-up: the third is its last."""
    hyp = replace(HYP, warmup_epochs=3.0, warmup_max_fraction=0.1)
    words = ", with warm-up on top"
    for at, planned in ((2, True), (3, False)):
        before, after = schedule_of(hyp, at, 1), schedule_of(hyp, Course(at).extend(at, 100, "replan"), 1)
        assert after.warmup(at).steps == 3
        assert describe_jump(before, after, at, 0.02).endswith(words) == planned
    tail = schedule_of(hyp, Course(2).extend(2, 100, "tail"), 1)
    assert not describe_jump(schedule_of(hyp, 2, 1), tail, 2, 0.02).endswith(words)


def test_a_warm_up_that_was_cut_is_said_to_be() -> None:
    def said(**changes: float) -> str:
        hyp = replace(HYP, **changes)
        return describe_curve(lr_curve(schedule_of(hyp, 10, 4), {"decay": GroupRate(0.02, 0.0)}, 0))[0]

    assert said(warmup_epochs=0.5) == "iterations   40 = 10 epochs x 4 optimizer steps; warm-up 2 (5.0%)"
    cut = "warm-up 4 (10.0%; warmup_max_fraction: 20 were asked for)"
    assert said(warmup_epochs=5.0, warmup_max_fraction=0.1).endswith(cut)


def test_a_share_of_the_run_is_not_rounded_down_for_want_of_digits() -> None:
    for fraction, steps in ((0.7, 1990), (0.29, 100), (0.07, 100), (0.1, 30)):
        hyp = replace(HYP, warmup_max_fraction=fraction, warmup_epochs=10.0)
        assert build_warmup(hyp, 1, steps).steps == round(fraction * steps)


def test_half_an_epoch_is_a_whole_one() -> None:
    assert [flat_cosine(0.1, 5, 0.5, 0)(epoch) for epoch in range(4)] == [1, 1, 1, 1]
    step = build_factor(replace(HYP, schedule="step", lrf=0.01, step_at=(0.5,)), 5)
    assert [step(epoch) for epoch in range(5)] == pytest.approx([1, 1, 1, 0.01, 0.01])
