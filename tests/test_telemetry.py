"""utils/telemetry.py against a slow second implementation: lists of Python numbers, a parameter at a time."""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import train
from tests.real_cuda import never_waiting
from utils.loggers import CsvLogger
from utils.optim import clip_gradients
from utils.telemetry import Telemetry

STEPS = 40  # of an epoch


def build(momentum: float = 0.9) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    groups = [
        {"name": "decay", "params": [model[0].weight, model[2].weight]},
        {"name": "no_decay", "params": [model[1].weight]},
        {"name": "bias", "params": [model[0].bias, model[1].bias, model[2].bias]},
    ]
    return model, SGD(groups, lr=0.01, momentum=momentum)


def set_gradients(optimizer: Optimizer, step: int, broken: set[int]) -> None:
    random = torch.Generator().manual_seed(step)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=random) * (0.2 + step / STEPS)
    if step in broken:
        optimizer.param_groups[1]["params"][0].grad[2] = math.inf if step % 2 else math.nan


def one_step(optimizer: Optimizer, telemetry: Telemetry, means: dict[str, Tensor], step: int, broken: set[int]) -> None:
    set_gradients(optimizer, step, broken)
    norm = clip_gradients(optimizer, telemetry.max_norm)
    skipped = ~torch.isfinite(norm)
    with telemetry.step(means, step, norm, skipped):
        if step not in broken:
            optimizer.step()


def slowly(max_norm: float, steps: range, broken: set[int], measured: set[int]) -> dict[str, float]:
    """The row by its definition."""
    _, optimizer = build()
    norms, clipped, ratios = [], 0, {group["name"]: [] for group in optimizer.param_groups}
    for step in steps:
        set_gradients(optimizer, step, broken)
        numbers = [n for g in optimizer.param_groups for p in g["params"] for n in p.grad.flatten().tolist()]
        norm = math.sqrt(sum(number * number for number in numbers))
        if not math.isfinite(norm):
            continue
        norms.append(norm)
        clipped += 0 < max_norm < norm
        clip_gradients(optimizer, max_norm)
        before = copy.deepcopy([group["params"] for group in optimizer.param_groups])
        optimizer.step()
        for group, old in zip(optimizer.param_groups, before, strict=True):
            moves = [
                a - b
                for p, q in zip(group["params"], old, strict=True)
                for a, b in zip(p.flatten().tolist(), q.flatten().tolist(), strict=True)
            ]
            weights = [a for q in old for a in q.flatten().tolist()]
            if step % STEPS in measured and any(weights):
                ratios[group["name"]].append(math.hypot(*moves) / math.hypot(*weights))
    row = {"train/grad_norm": sum(norms) / len(norms), "train/clipped": clipped / len(steps)}
    row["train/skipped"] = sum(step in broken for step in steps) / len(steps)
    return row | {f"update/{name}": sum(values) / len(values) for name, values in ratios.items()}


@pytest.mark.parametrize("max_norm", [0.0, 8.0, 1e9])
@pytest.mark.parametrize("broken", [set(), {0, 3, 20, 21, 39}])
def test_an_epoch_is_that_of_the_slow_way(max_norm: float, broken: set[int]) -> None:
    _, optimizer = build()
    telemetry, means = Telemetry(optimizer, max_norm, STEPS), {}
    for step in range(STEPS):
        one_step(optimizer, telemetry, means, step, broken)
    row = telemetry.take(means)
    expected = slowly(max_norm, range(STEPS), broken, {0, 5, 10, 15, 20, 25, 30, 35})
    assert row.keys() == expected.keys()
    assert row == pytest.approx(expected, rel=1e-5)
    assert (0 < row["train/clipped"] < 1) == (max_norm == 8.0), "the bound lies among the norms"
    assert row["train/skipped"] == len(broken) / STEPS
    assert means == {}, "the next epoch starts anew"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, {0}),
        (7, set(range(7))),
        (15, set(range(15))),
        (16, {0, 2, 4, 6, 8, 10, 12, 14}),
        (48, {0, 6, 12, 18, 24, 30, 36, 42}),
        (100, {0, 12, 24, 36, 48, 60, 72, 84, 96}),
    ],
)
def test_which_steps_are_measured_depends_on_their_number_alone(steps: int, expected: set[int]) -> None:
    telemetry = Telemetry(build()[1], 0.0, steps)
    for epoch in (0, 1, 7):
        assert {step for step in range(steps) if telemetry.measures(epoch * steps + step)} == expected


def test_sums_that_were_saved_in_the_middle_go_on_to_the_last_bit() -> None:
    broken = {4, 17}
    _, optimizer = build()
    telemetry, means = Telemetry(optimizer, 8.0, STEPS), {}
    for step in range(STEPS):
        if step == 13:
            saved = copy.deepcopy((means, optimizer.state_dict(), [g["params"] for g in optimizer.param_groups]))
        one_step(optimizer, telemetry, means, step, broken)
    whole = telemetry.take(means)

    means, state, weights = saved
    _, other = build()
    for group, old in zip(other.param_groups, weights, strict=True):
        for parameter, value in zip(group["params"], old, strict=True):
            parameter.data.copy_(value)
    other.load_state_dict(state)
    telemetry = Telemetry(other, 8.0, STEPS)
    for step in range(13, STEPS):
        one_step(other, telemetry, means, step, broken)
    assert telemetry.take(means) == whole


def test_what_was_never_measured_is_left_out() -> None:
    _, optimizer = build()
    telemetry, means = Telemetry(optimizer, 8.0, STEPS), {}
    assert telemetry.take(means) == {}
    for step in range(3):
        one_step(optimizer, telemetry, means, step, {0, 1, 2})
    assert telemetry.take(means) == {"train/clipped": 0.0, "train/skipped": 1.0}
    with torch.no_grad():
        for parameter in optimizer.param_groups[2]["params"]:
            parameter.zero_()  # as biases are at the start: a change of nothing has no ratio
    one_step(optimizer, telemetry, means, 0, set())
    row = telemetry.take(means)
    assert "update/bias" not in row and row["update/decay"] > 0
    assert all(math.isfinite(number) for number in row.values())


def test_nothing_is_read_back_from_the_device_in_a_step() -> None:
    """On meta tensors, which hold no numbers, anything that looks at one fails."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        norm = torch.ones(())
    groups = [{"name": "a", "params": [model[0].weight]}, {"name": "b", "params": [model[1].bias, model[1].weight]}]
    telemetry, means = Telemetry(SGD(groups, lr=0.1), 10.0, 1), {}
    for step in range(2):
        with telemetry.step(means, step, norm, ~torch.isfinite(norm)):
            pass
    assert {name: tuple(value.shape) for name, value in means.items()} == {"steps": (5,), "updates": (2, 2)}


@pytest.mark.cuda
def test_no_step_waits_for_a_cuda_device() -> None:
    model, optimizer = build()
    model.cuda()
    telemetry, means = Telemetry(optimizer, 8.0, 4), {}
    for step in range(4):
        set_gradients_on(model)
        norm = clip_gradients(optimizer, 8.0)
        with never_waiting(), telemetry.step(means, step, norm, ~torch.isfinite(norm)):
            optimizer.step()
    row = telemetry.take(means)
    assert row["train/skipped"] == 0 and row["update/decay"] > 0


def set_gradients_on(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)


def test_a_run_logs_them(tiny_data: Path, tmp_path: Path) -> None:
    flags = ["--imgsz", "64", "--batch", "4", "--device", "cpu", "--workers", "0", "--noplots", "--epochs", "2"]
    train.main(["--data", str(tiny_data), "--project", str(tmp_path), *flags, "--set", "clip_grad_norm=1e-3"])
    with (tmp_path / "exp" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row["train/grad_norm"]) > 1e-3 and float(row["train/clipped"]) == 1.0
        assert float(row["train/skipped"]) == 0.0
        assert all(0 < float(row[f"update/{group}"]) < 1 for group in ("decay", "no_decay"))
    # The biases of norms and of class towers start apart from 0, all others at 0: the group has a ratio all the same.
    assert float(rows[1]["update/bias"]) > 0
    assert CsvLogger(tmp_path / "exp" / "results.csv")._rows == rows, "a table with these columns is taken up again"
