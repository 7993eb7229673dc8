"""utils/ema.py: the decay worked by hand, the average against a loop, and a state that goes on where it was."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from models.yolo import YOLO, ModelConfig
from tests.real_cuda import never_waiting
from utils.ema import ModelEMA, ema_decay, lerp_by_number, lerp_on_device


class Net(nn.Module):
    """Parameters, running statistics, and buffers that are no numbers to average."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.precise = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("constant", torch.tensor([0.1, 0.7]), persistent=False)


def shake(model: nn.Module, step: int) -> None:
    """Give every entry of the state a new value that depends on the step alone."""
    for number, value in enumerate(model.state_dict().values()):
        if value.is_floating_point():
            waves = torch.arange(value.numel(), dtype=torch.float64) + 10 * step + number
            value.copy_(waves.sin().view_as(value))
        elif value.dtype == torch.bool:
            value.logical_not_()
        else:
            value.fill_(step)


def loop(states: list[dict[str, Tensor]], decay: float, tau: float) -> dict[str, Tensor]:
    """The definition, an entry and a number at a time, in double precision: `average ← d·average + (1 − d)·value`."""
    average = {name: value.double().flatten().tolist() for name, value in states[0].items()}
    for update, state in enumerate(states[1:], 1):
        d = decay * (1 - math.exp(-update / tau)) if tau else decay
        for name, value in state.items():
            new = value.double().flatten().tolist()
            if value.is_floating_point():
                average[name] = [d * old + (1 - d) * current for old, current in zip(average[name], new, strict=True)]
            else:
                average[name] = new
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in average.items()}


@pytest.mark.parametrize(
    ("update", "decay", "tau", "expected"),
    [
        (2000, 0.9999, 2000, 0.9999 * 0.6321205588),  # 1 - 1/e
        (4000, 0.9999, 2000, 0.9999 * 0.8646647168),  # 1 - 1/e²
        (1, 0.9999, 2000, 0.00049982504),  # nearly a copy of the model
        (100, 0.995, 100, 0.995 * 0.6321205588),
        (10**9, 0.9999, 2000, 0.9999),
        (1, 0.99, 0, 0.99),
        (7, 0.0, 2000, 0.0),
    ],
)
def test_the_decay_by_hand(update: int, decay: float, tau: float, expected: float) -> None:
    assert ema_decay(update, decay, tau) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("decay", "tau"), [(0.9, 5.0), (0.5, 0.0), (0.0, 3.0)])
def test_the_average_is_that_of_a_loop(decay: float, tau: float) -> None:
    model = Net()
    ema, states = ModelEMA(model, decay, tau), [copy.deepcopy(model.state_dict())]
    for step in range(1, 8):
        shake(model, step)
        ema.update_parameters(model)
        states.append(copy.deepcopy(model.state_dict()))
    expected = loop(states, decay, tau)
    for name, value in ema.module.state_dict().items():
        assert value.dtype == states[-1][name].dtype
        assert torch.allclose(value.double().flatten(), expected[name], atol=2e-6), name
    assert ema.module.norm.num_batches_tracked.item() == 7, "whole numbers are copied"
    assert torch.equal(ema.module.mask, model.mask)
    assert not torch.equal(ema.module.norm.running_var, model.norm.running_var) or decay == 0, "statistics are averaged"


def test_a_shared_weight_is_averaged_once() -> None:
    model = Net()
    model.tied = nn.Conv2d(2, 3, 1)
    model.tied.weight = model.conv.weight
    ema = ModelEMA(model, 0.75, 0.0)
    with torch.no_grad():
        ema.module.conv.weight.fill_(0.0)
        model.conv.weight.fill_(1.0)
    ema.update_parameters(model)
    assert ema.module.tied.weight is ema.module.conv.weight
    assert ema.module.conv.weight.unique().tolist() == [0.25]


def test_the_average_of_what_does_not_change_is_the_same_to_the_last_bit() -> None:
    torch.manual_seed(0)
    model = YOLO(ModelConfig("n", 3))
    ema = ModelEMA(model, 0.9999, 2000)
    for _ in range(3):
        ema.update_parameters(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, ema.module.state_dict()[name]), name


def test_it_stands_apart_from_the_model() -> None:
    model = Net().train()
    ema = ModelEMA(model, 0.9, 5.0)
    assert not any(module.training for module in ema.modules()) and model.training
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = copy.deepcopy(model.state_dict())
    ema.update_parameters(model)
    shake(ema.module, 3)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert not any(module.training for module in ema.modules()), "updates leave it in eval"


def test_updates_are_counted() -> None:
    model = Net()
    ema = ModelEMA(model, 0.9, 5.0)
    for count in range(1, 4):
        ema.update_parameters(model)
        assert ema.updates == ema.n_averaged.item() == count


def test_another_models_weights_are_refused() -> None:
    ema = ModelEMA(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), 0.9, 5.0)
    with pytest.raises(ValueError):
        ema.update_parameters(nn.Sequential(nn.Conv2d(2, 3, 1)))


def test_it_goes_on_from_its_state_to_the_last_bit() -> None:
    def run(ema: ModelEMA, model: Net, steps: range) -> None:
        for step in steps:
            shake(model, step)
            ema.update_parameters(model)

    model = Net()
    ema = ModelEMA(model, 0.999, 20.0)
    run(ema, model, range(1, 6))
    state, weights = copy.deepcopy(ema.state_dict()), copy.deepcopy(model.state_dict())
    assert set(state) == {"n_averaged"} | {f"module.{name}" for name in weights}
    run(ema, model, range(6, 12))
    other_model = Net()
    other_model.load_state_dict(weights)
    other = ModelEMA(other_model, 0.999, 20.0)
    other.load_state_dict(state)
    assert other.updates == 5, "the decay goes on from there"
    run(other, other_model, range(6, 12))
    for name, value in ema.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_it_follows_states_that_are_loaded_into_it_and_its_model() -> None:
    model = Net()
    ema = ModelEMA(model, 0.75, 0.0)
    ema.update_parameters(model)
    ema.load_state_dict({name: torch.zeros_like(value) for name, value in ema.state_dict().items()})
    model.load_state_dict({name: torch.ones_like(value) for name, value in model.state_dict().items()})
    ema.update_parameters(model)
    for name, value in ema.module.state_dict().items():
        assert value.unique().tolist() == [0.25 if value.is_floating_point() else 1], name


def test_another_model_of_the_same_kind_can_be_taken_in() -> None:
    model, other = Net(), Net()
    ema = ModelEMA(model, 0.75, 0.0)
    with torch.no_grad():
        for net, value in ((ema.module, 0.0), (other, 1.0)):
            net.conv.weight.fill_(value)
    model.conv.weight.data.zero_()
    ema.update_parameters(model)
    ema.update_parameters(other)
    assert ema.module.conv.weight.unique().tolist() == [0.25]


def test_a_skipped_step_is_no_update() -> None:
    """With skips among them, the average and its count are those of the other updates alone, to the last bit."""
    model, other = Net(), Net()
    other.load_state_dict(model.state_dict())
    ema, plain = ModelEMA(model, 0.9, 5.0), ModelEMA(other, 0.9, 5.0)
    for step in range(1, 9):
        skipped = step in (1, 4, 5)
        if not skipped:
            shake(model, step)
            shake(other, step)
            plain.update_parameters(other)
        ema.update_parameters(model, torch.tensor(skipped))
    assert ema.updates == plain.updates == 5
    for name, value in plain.state_dict().items():
        assert torch.equal(value, ema.state_dict()[name]), name


@pytest.mark.parametrize("weight", [0.0, 1e-4, 0.3, 0.9995])
def test_the_average_that_never_waits_is_the_average(weight: float) -> None:
    torch.manual_seed(0)
    averaged, current = ([torch.randn(3, 4), torch.randn(5)] for _ in range(2))
    expected = [a + weight * (c - a) for a, c in zip(averaged, current, strict=True)]
    for move in (lerp_on_device, lerp_by_number):
        moved = [a.clone() for a in averaged]
        move(moved, current, torch.tensor(weight))
        assert all(torch.allclose(m, e, rtol=0, atol=1e-6) for m, e in zip(moved, expected, strict=True))
        assert weight > 0 or all(torch.equal(m, a) for m, a in zip(moved, averaged, strict=True))


def test_on_a_device_nothing_is_read_back() -> None:
    """Meta tensors hold no numbers: anything that looks at one fails. The count lies where the model does."""
    with torch.device("meta"):
        model, skipped = Net(), torch.zeros((), dtype=torch.bool)
    ema = ModelEMA(model, 0.9, 5.0)
    assert ema.n_averaged.is_meta and ema._weight().is_meta
    lerp_on_device(list(ema.module.parameters()), list(model.parameters()), ema._weight() * ~skipped)


@pytest.mark.cuda
def test_on_cuda_an_update_does_not_wait() -> None:
    model, slow = Net().cuda(), Net()
    slow.load_state_dict(model.state_dict())
    ema, expected = ModelEMA(model, 0.9, 5.0), ModelEMA(slow, 0.9, 5.0)
    skipped = torch.zeros((), dtype=torch.bool, device="cuda")
    for step in range(1, 6):
        shake(slow, step)
        model.load_state_dict(slow.state_dict())
        torch.cuda.synchronize()
        with never_waiting():
            ema.update_parameters(model, skipped)
        expected.update_parameters(slow)
    for name, value in expected.state_dict().items():
        assert torch.allclose(value, ema.state_dict()[name].cpu(), atol=1e-6), name


@pytest.mark.parametrize("updates", [1, 1000, 1_000_000])
def test_the_weight_of_the_newest_loses_no_digits(updates: int) -> None:
    ema = ModelEMA(nn.Linear(1, 1), 0.9999, 2000)
    ema.n_averaged.fill_(updates)
    assert float(ema._weight()) == pytest.approx(1 - ema_decay(updates, 0.9999, 2000), rel=1e-6)
