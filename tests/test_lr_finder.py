"""utils/lr_finder.py: problems whose largest stable learning rate is known, and arithmetic that was done by hand."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from utils.errors import UserError
from utils.lr_finder import (
    RangeTest,
    Smoother,
    describe,
    exponential,
    longest_fall,
    range_test,
    suggest,
    write_csv,
)

Step = Callable[[int], torch.Tensor]


def one_parameter(lr: float = 0.01) -> SGD:
    return SGD([nn.Parameter(torch.ones(2))], lr=lr)


def scripted(losses: Iterable[float], **options: float) -> RangeTest:
    """A range test whose losses are given; nothing is trained."""
    script = [*losses]
    return range_test(one_parameter(), script.__getitem__, 1e-6, 1.0, len(script), **options)


def quadratic(optimizer: Optimizer, curvatures: torch.Tensor, noise: float = 0.0, seed: int = 0) -> Step:
    """Steps on Σ curvature·(w − target)²/2 with targets around 0: SGD is stable below 2/largest curvature."""
    (weights,) = optimizer.param_groups[0]["params"]
    random = torch.Generator().manual_seed(seed)

    def step(i: int) -> torch.Tensor:
        target = noise * torch.randn(weights.shape, generator=random, dtype=weights.dtype)
        loss = (curvatures * (weights - target) ** 2).sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def weights(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(count, dtype=torch.float64))]


# ---- the lr ----------------------------------------------------------------------------------------------------------


def test_factor_table() -> None:
    factor = exponential(1e-4, 1.0, 5)
    assert [factor(i) for i in range(5)] == pytest.approx([1, 10, 100, 1000, 10000], rel=1e-12)
    factor = exponential(0.5, 4.0, 4)
    assert [factor(i) for i in range(4)] == pytest.approx([1, 2, 4, 8], rel=1e-12)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
@pytest.mark.parametrize(("initial", "final", "iterations"), [(1e-7, 1e-3, 20), (3e-5, 0.07, 101)])
def test_the_optimizer_uses_the_lrs_that_are_reported(
    kind: type[Optimizer], initial: float, final: float, iterations: int
) -> None:
    first, second, third = (weights(2) for _ in range(3))
    groups = [{"params": first, "lr": 0.003}, {"params": second}, {"params": third, "lr": 0.09}]
    optimizer = kind(groups, lr=0.03)
    used: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: used.append([group["lr"] for group in o.param_groups]))
    result = range_test(optimizer, quadratic(optimizer, torch.ones(2)), initial, final, iterations)
    expected = [initial * (final / initial) ** (i / (iterations - 1)) for i in range(iterations)]
    assert result.lr.tolist() == expected
    assert [lrs[1] for lrs in used] == expected  # to the last bit
    np.testing.assert_allclose(np.array(used), np.outer(expected, [0.1, 1, 3]), rtol=1e-12)


def test_lr0_may_be_another_than_the_optimizers() -> None:
    """A rule that trains at twice the lr0 of the yaml is tested at twice the lr0 that is reported."""
    optimizer, used = one_parameter(lr=0.02), []

    def step(i: int) -> float:
        used.append(optimizer.param_groups[0]["lr"])
        return 1.0

    result = range_test(optimizer, step, 1e-5, 1e-2, 30, lr0=0.01)
    np.testing.assert_allclose(used, 2 * result.lr, rtol=1e-12)
    assert result.lr[-1] == pytest.approx(1e-2)


def test_the_base_lr_of_a_training_scheduler_is_not_taken_for_the_tests_and_all_is_put_back() -> None:
    optimizer = one_parameter(lr=0.01)
    LambdaLR(optimizer, lambda epoch: 0.5)
    used: list[float] = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: used.append(o.param_groups[0]["lr"]))
    result = range_test(optimizer, quadratic(optimizer, torch.ones(2)), 1e-5, 1e-2, 20)
    assert used == result.lr.tolist() and used[0] == 1e-5
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["initial_lr"]) == (0.005, 0.01)
    plain = one_parameter(lr=0.01)
    with pytest.raises(ZeroDivisionError):
        range_test(plain, lambda i: 1 / (3 - i), 1e-5, 1e-2, 20)
    assert plain.param_groups[0]["lr"] == 0.01 and "initial_lr" not in plain.param_groups[0]


def test_a_step_that_sets_the_lr_is_refused() -> None:
    optimizer = one_parameter()

    def step(i: int) -> float:
        optimizer.param_groups[0]["lr"] = 0.01  # as a schedule's warm-up would
        return 1.0

    with pytest.raises(RuntimeError, match="set the lr"):
        range_test(optimizer, step, 1e-5, 1e-2, 20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0, 1.0, 100), "0 < initial < final"),
        ((-1.0, 1.0, 100), "0 < initial < final"),
        ((1.0, 1.0, 100), "0 < initial < final"),
        ((1e-5, math.inf, 100), "0 < initial < final"),
        ((math.nan, 1.0, 100), "0 < initial < final"),
        ((1e-5, 1.0, 19), "20 or more"),
    ],
)
def test_bounds_that_make_no_range(arguments: tuple[float, float, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        range_test(one_parameter(), lambda i: 1.0, *arguments)


def test_smoothing_must_forget() -> None:
    with pytest.raises(UserError, match="beta < 1"):
        scripted([1.0] * 20, beta=1.0)


# ---- smoothing and stopping ------------------------------------------------------------------------------------------


def test_bias_correction_by_hand() -> None:
    smoother = Smoother(0.9)
    # .1/.1, then (.9·.1 + .1·2)/(1 − .81), then (.9·.29 + .1·3)/(1 − .729)
    assert [smoother.add(loss) for loss in (1, 2, 3)] == pytest.approx([1, 0.29 / 0.19, 0.561 / 0.271], rel=1e-12)
    result = scripted([1.0, 2.0, 3.0, *[3.0] * 17])
    assert result.smoothed[:3] == pytest.approx([1, 0.29 / 0.19, 0.561 / 0.271], rel=1e-12)
    assert result.loss.tolist() == [1.0, 2.0, 3.0, *[3.0] * 17]
    np.testing.assert_allclose(scripted([7.0] * 30).smoothed, 7.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("losses", "options", "length"),
    [
        ([1.0] * 15 + [4.0] + [4.01] * 9, {}, 17),  # more than 4 times the best
        ([2.0] * 15 + [1.0] * 3 + [4.5] * 7, {}, 19),
        ([1.0, 50.0] + [1.0] * 23, {}, 25),  # too early
        ([1.0] + [50.0] * 24, {}, 11),
        ([1.0] + [50.0] * 24, {"settle": 3}, 4),
        ([1.0] * 15 + [2.5] * 10, {"divergence": 2.0}, 16),
        ([-1.0] * 15 + [1.9] * 5 + [2.1] * 5, {}, 21),  # a loss below 0: 3 · |best| above the best
        ([1.0] * 3 + [math.nan] + [1.0] * 21, {}, 4),
        ([1.0] * 3 + [math.inf] + [1.0] * 21, {}, 4),
    ],
)
def test_where_it_stops(losses: list[float], options: dict[str, float], length: int) -> None:
    result = scripted(losses, beta=0.0, **options)
    assert len(result.lr) == len(result.loss) == len(result.smoothed) == length
    assert result.diverged == (length < 25)
    np.testing.assert_array_equal(result.loss, losses[:length])


def test_a_single_high_loss_is_smoothed_away() -> None:
    assert not scripted([1.0] * 30 + [20.0] + [1.0] * 30).diverged


# ---- what is read ----------------------------------------------------------------------------------------------------


def curve(loss: Callable[[np.ndarray], np.ndarray], low: float = -6.0, high: float = 0.0) -> RangeTest:
    """A result of 121 points whose smoothed loss is a function of log10(lr)."""
    x = np.linspace(low, high, 121)
    return RangeTest(10**x, loss(x), loss(x), beta=0.9, diverged=False)


def fall_and_rise(middle: float) -> Callable[[np.ndarray], np.ndarray]:
    """A loss that falls all the way, fastest at lr 10^middle, to its minimum at 10^-1.5, and then rises."""
    return lambda x: 3 - 2 / (1 + np.exp(-4 * (np.minimum(x, -1.5) - middle))) + np.maximum(x + 1.5, 0)


@pytest.mark.parametrize(
    ("middle", "recommended", "line"),
    [
        (-3.5, "valley", "lr0: 0.001"),  # -3 is 2/3 of the way from -6 to -1.5
        (-2.8, "steepest", "lr0: 0.0016"),
        (-2.2, "minimum/10", "lr0: 0.0032"),  # -2.5
    ],
)
def test_the_three_points_of_a_known_curve(middle: float, recommended: str, line: str) -> None:
    suggestion = suggest(curve(fall_and_rise(middle)))
    logs = {name: math.log10(lr) for name, lr in suggestion.marks.items()}
    assert logs == pytest.approx({"steepest": middle, "valley": -3.0, "minimum/10": -2.5}, abs=0.051)
    assert (suggestion.recommended, suggestion.line) == (recommended, line)
    assert suggestion.lr == float(line.split()[1]) and line.split()[1] in suggestion.reason
    assert "falling still" not in suggestion.reason


def test_the_ends_do_not_count_as_steepest() -> None:
    """Neither the first values of the average nor a fall within the divergence is a slope to learn at."""
    loss = fall_and_rise(-3.5)
    wild = suggest(curve(lambda x: loss(x) + 5 * (x < -5.8) + 30 * ((x > -0.8) & (x < -0.4))))
    assert math.log10(wild.marks["steepest"]) == pytest.approx(-3.5, abs=0.051)


def test_a_range_that_ends_too_early_says_so() -> None:
    suggestion = suggest(curve(fall_and_rise(-3.0), high=-2.0))
    assert suggestion.recommended and "a test beyond 0.01 may find a higher one" in suggestion.reason


@pytest.mark.parametrize("seed", range(5))
def test_longest_fall_against_a_slow_search(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 30, 60).astype(float)

    def longest_ending_at(part: np.ndarray) -> list[int]:
        best: list[int] = []
        for i in range(len(part)):
            best.append(1 + max((best[j] for j in range(i) if part[j] > part[i]), default=0))
        return best

    length = longest_ending_at(values)
    first, last = longest_fall(values)
    assert last == length.index(max(length)) and values[first] > values[last]
    assert max(longest_ending_at(values[first : last + 1])) == max(length)
    assert max(longest_ending_at(values[first + 1 : last + 1])) < max(length) or values[first] in values[first + 1 :]


def test_longest_fall_by_hand() -> None:
    assert longest_fall(np.array([1.0, 9.0, 8.0, 8.5, 7.0, 10.0, 6.0, 12.0])) == (1, 6)  # 9 8 7 6
    assert longest_fall(np.array([1.0, 2.0, 2.0])) == (0, 0)


# ---- problems with a known answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [50, 100, 400])
@pytest.mark.parametrize("curvature", [1e-3, 0.1, 1.0, 40.0, 1e4])
def test_quadratic_of_known_stability(curvature: float, iterations: int) -> None:
    edge = 2 / curvature
    optimizer = SGD(weights(4), lr=0.01)
    step = quadratic(optimizer, torch.full((4,), curvature))
    result = range_test(optimizer, step, 1e-5 * edge, 100 * edge, iterations)
    assert result.diverged and edge < result.lr[-1] < 15 * edge
    assert result.lr[result.loss.argmin()] < 1.5 * edge
    suggestion = suggest(result)
    assert suggestion.lr is not None and 0.01 * edge < suggestion.lr < edge
    assert all(mark < edge for mark in suggestion.marks.values())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_noisy_quadratic(noise: float, seed: int) -> None:
    optimizer = SGD(weights(20), lr=0.01)
    step = quadratic(optimizer, torch.full((20,), 4.0), noise, seed)
    result = range_test(optimizer, step, 1e-6, 30.0, 150)
    assert result.diverged and 0.4 < result.lr[-1] < 4.0  # 2/L is 0.5; noise lets the loss grow before
    suggestion = suggest(result)
    assert suggestion.lr is not None and 0.005 < suggestion.lr < 0.25


def test_ill_conditioned_quadratic_is_ruled_by_its_largest_curvature() -> None:
    optimizer = SGD(weights(30), lr=0.01)
    step = quadratic(optimizer, torch.logspace(-2, 2, 30))
    result = range_test(optimizer, step, 1e-7, 10.0, 200)
    assert result.diverged and 0.02 < result.lr[-1] < 0.2
    suggestion = suggest(result)
    assert suggestion.lr is not None and 0.0002 < suggestion.lr < 0.02


def logistic_regression(kind: str, seed: int) -> tuple[Optimizer, Step]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, 20, generator=random)
    y = (x @ torch.randn(20, generator=random) + 0.5 * torch.randn(1000, generator=random) > 0).float()
    model = nn.Linear(20, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    build = {"SGD": lambda p: SGD(p, lr=0.01, momentum=0.9, nesterov=True), "AdamW": lambda p: AdamW(p, lr=0.01)}
    optimizer = build[kind](model.parameters())

    def step(i: int) -> torch.Tensor:
        chosen = torch.randint(0, 1000, (32,), generator=random)
        loss = nn.functional.binary_cross_entropy_with_logits(model(x[chosen])[:, 0], y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return optimizer, step


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_training_at_the_recommended_lr_beats_a_hundredth_and_a_hundred_times(kind: str, seed: int) -> None:
    optimizer, step = logistic_regression(kind, seed)
    lr = suggest(range_test(optimizer, step, 1e-6, 100.0, 120)).lr
    assert lr is not None

    def trained(lr: float) -> float:
        optimizer, step = logistic_regression(kind, seed)
        optimizer.param_groups[0]["lr"] = lr
        return float(np.mean([float(step(i).detach()) for i in range(100)][-20:]))

    assert trained(lr) < 0.5 * trained(lr / 100)
    assert trained(lr) < 0.5 * trained(lr * 100)


# ---- nothing to recommend --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [20, 50, 200])
def test_noise_without_a_fall_is_not_read(iterations: int) -> None:
    for seed in range(50):
        losses = 3 + 0.3 * np.random.default_rng(seed).standard_normal(iterations)
        suggestion = suggest(scripted(losses))
        assert (suggestion.marks, suggestion.recommended, suggestion.line, suggestion.lr) == ({}, "", "", None)
        assert "take more iterations (--lr-find-steps), or end higher than 1" in suggestion.reason


def test_a_range_too_low_to_learn_in() -> None:
    optimizer = SGD(weights(4), lr=0.01)
    suggestion = suggest(range_test(optimizer, quadratic(optimizer, torch.ones(4)), 1e-12, 1e-6, 100))
    assert suggestion.line == "" and "end higher than 1e-06" in suggestion.reason


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_range_that_starts_beyond_the_edge(noise: float) -> None:
    optimizer = SGD(weights(4), lr=0.01)
    result = range_test(optimizer, quadratic(optimizer, torch.ones(4), noise), 3.0, 30.0, 100)
    suggestion = suggest(result)
    assert result.diverged and suggestion.line == "" and "start lower" in suggestion.reason


def test_slow_divergence_from_the_start() -> None:
    suggestion = suggest(scripted([1.03**i for i in range(100)]))
    assert suggestion.line == "" and "diverged: start lower" in suggestion.reason


def test_a_loss_that_is_no_number_from_the_start() -> None:
    result = scripted([math.nan] * 20)
    suggestion = suggest(result)
    assert len(result.lr) == 1 and suggestion.line == "" and "not finite in the first iteration" in suggestion.reason
    assert describe(result, suggestion)[-1] == suggestion.reason


# ---- output ----------------------------------------------------------------------------------------------------------


def test_what_is_printed() -> None:
    result = curve(fall_and_rise(-2.8))
    lines = describe(result, suggest(result))
    assert lines[0] == "lr find      121 iterations, lr 1e-06 to 1, to the end"
    assert lines[1:4] == [
        "steepest     0.0016  <- recommended",
        "valley       0.001",
        "minimum/10   0.0032",
    ]
    assert "middle one of three" in lines[4] and lines[5] == "lr0: 0.0016" and len(lines) == 6


@pytest.mark.parametrize(("shift", "text"), [(4.0, "0.00000016"), (-3.0, "1.6"), (-6.0, "1600.0")])
def test_the_line_is_a_number_in_yaml_whatever_its_size(shift: float, text: str) -> None:
    loss = fall_and_rise(-2.8)
    result = curve(lambda x: loss(x + shift), low=-6 - shift, high=-shift)
    assert suggest(result).line == f"lr0: {text}"


def test_csv_gives_every_number_back(tmp_path: Path) -> None:
    losses = [*np.random.default_rng(0).uniform(1, 2, 25).tolist(), math.inf, 1.0]
    result = scripted(losses)
    write_csv(result, tmp_path / "lr_find.csv")
    with (tmp_path / "lr_find.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["iteration", "lr", "loss", "smoothed"]
    assert [int(row[0]) for row in rows] == [*range(26)]
    read = np.array([[float(cell) for cell in row[1:]] for row in rows]).T
    np.testing.assert_array_equal(read, [result.lr, result.loss, result.smoothed])
