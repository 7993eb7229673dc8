"""utils/guard.py: a broken step leaves no trace (the run is that of a plain loop which never met its batch), and a run
of broken steps ends the training or rolls it back."""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from data.loader import Batch
from models.loss import DetectionLoss
from tests.real_cuda import never_waiting
from utils import guard as guard_module
from utils.checkpoint import load_checkpoint
from utils.ema import ModelEMA
from utils.errors import EXIT_DIVERGED, TrainingDiverged
from utils.guard import MAX_SKIPPED_IN_A_ROW, Rollback, StepGuard, Stop, finite_only
from utils.hyp import Hyp
from utils.optim import NamedOptimizerState, build_optimizer, clip_gradients
from utils.schedule import Course, LearningRate, Schedule, group_rates

STEPS = 20
FAULTS = ("NaN loss", "Inf gradient", "NaN in a buffer", "NaN pixels")
KINDS = ("SGD", "Adam", "AdamW")
LR = 0.05


@dataclass
class Settings:
    optimizer: str = "SGD"
    momentum: float = 0.9
    lr_scale: dict[str, float] = field(default_factory=dict)


class Run:
    """A net of some hundred parameters, and what trains it; `guarded` false is the plain loop, without a guard."""

    def __init__(self, kind: str = "SGD", *, guarded: bool = True, fused: bool = True, batches: int = 1) -> None:
        torch.manual_seed(5)
        self.model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 2, 1))
        self.optimizer = build_optimizer(self.model, Settings(kind), LR, 0.01, fused)
        self.named = NamedOptimizerState(self.model, self.optimizer)
        self.ema = ModelEMA(self.model, 0.9, 5.0)
        self.batches = batches
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.means: dict[str, Tensor] = {}
        self.guard = StepGuard(self.model, self.optimizer, "image{}.png".format) if guarded else None
        skipped = (lambda: self.guard.skipped) if self.guard else lambda: None
        self.optimizer.register_step_post_hook(lambda *_: self.ema.update_parameters(self.model, skipped()))
        if self.guard:
            self.guard.begin()

    def step(self, number: int, fault: str = "") -> None:
        for part in range(self.batches):
            images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(100 * number + part))
            last = part == self.batches - 1
            if fault == "NaN pixels" and last:
                images[1, 0, 2, 2] = math.nan
            if fault == "NaN in a buffer" and last:
                self.model[1].running_mean[3] = math.nan
            loss = self.model(images).square().mean() * {"NaN loss": math.nan, "spike": 1e4}.get(fault * last, 1.0)
            self.scaler.scale(loss).backward()
            if self.guard:
                indices = torch.tensor([10 * number + part, 10 * number + part + 5])
                self.guard.add(loss.detach().expand(3).clone(), indices)
        if fault == "Inf gradient":
            self.model[0].weight.grad[1, 0, 0, 0] = math.inf
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.optimizer, 10.0)
        if self.guard:
            self.guard.decide(self.means, number, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.guard:
            self.guard.look(number)

    def state(self) -> dict[str, Tensor]:
        """Everything that is kept, by name."""
        parts = {"model": self.model.state_dict(), "ema": self.ema.state_dict()}
        parts |= self.named.state_dict()["state"]
        return {
            f"{part} {name}": torch.as_tensor(value).clone()
            for part, values in parts.items()
            for name, value in values.items()
            if value is not None
        }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def finite(values: Any) -> bool:
    """Are all numbers in it finite, through dicts and lists?"""
    if isinstance(values, dict):
        return all(finite(value) for value in values.values())
    if isinstance(values, list | tuple):
        return all(finite(value) for value in values)
    return not isinstance(values, float | Tensor) or bool(torch.isfinite(torch.as_tensor(values)).all())


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_step_leaves_no_trace_wherever_it_is(kind: str, fault: str) -> None:
    """The fault at each of 20 steps in turn; nothing is ever kept that is not finite, and the end is that of a plain
    loop without that step, to the last bit."""
    for broken in range(STEPS):
        run, plain = Run(kind), Run(kind, guarded=False)
        for number in range(STEPS):
            run.step(number, fault if number == broken else "")
            assert run.guard.skipped.item() == (number == broken)
            if number != broken:
                plain.step(number)
            if number in (broken, broken + 1):
                assert finite(run.state()) and finite(run.means), (broken, number)
        assert same(run.state(), plain.state()), broken
        assert run.ema.updates == STEPS - 1
        counted = STEPS - (fault in ("NaN loss", "NaN pixels"))
        assert run.means["loss"][3].item() == 2 * counted


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("fused", "batches"), [(False, 1), (True, 3)])
def test_so_it_is_without_fused_kernels_and_with_accumulation(fault: str, fused: bool, batches: int) -> None:
    for kind in KINDS:
        run, plain = (Run(kind, guarded=g, fused=fused, batches=batches) for g in (True, False))
        broken = {0, 1, 7, 8, 9, 19}
        for number in range(STEPS):
            run.step(number, fault if number in broken else "")
            if number not in broken:
                plain.step(number)
            assert finite(run.state())
        assert same(run.state(), plain.state()), kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_spike_is_a_step_like_any_other(kind: str) -> None:
    for spike in range(STEPS):
        run, plain = Run(kind), Run(kind, guarded=False)
        for number in range(STEPS):
            run.step(number, "spike" if number == spike else "")
            plain.step(number, "spike" if number == spike else "")
            assert not run.guard.skipped
        assert finite(run.state())
        assert same(run.state(), plain.state())
        assert run.means["loss"][3].item() == 2 * STEPS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fused", [True, False])
def test_gradient_scaling_skips_the_same_way(kind: str, fused: bool) -> None:
    """Overflow of scaled gradients: no update of weights or average, a smaller scale, and the losses count."""
    run, plain = Run(kind, fused=fused), Run(kind, guarded=False, fused=fused)
    for each in (run, plain):
        each.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=1000)
    broken = {0, 4, 5, 13}
    for number in range(STEPS):
        run.step(number, "Inf gradient" if number in broken else "")
        assert finite(run.state())
    assert run.scaler.get_scale() == 2.0 ** (16 - len(broken))
    assert run.ema.updates == STEPS - len(broken)
    assert run.means["loss"][3].item() == 2 * STEPS
    # Scaling and unscaling by powers of two changes no bit, so that the scale's course does not show in the weights.
    for number in sorted(set(range(STEPS)) - broken):
        plain.step(number)
    assert same(run.state(), plain.state())
    run.step(STEPS, "NaN loss")
    assert run.ema.updates == STEPS - len(broken)


def test_a_fault_of_another_process_skips_the_step_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    run.step(0)
    before = run.state()
    monkeypatch.setattr(guard_module.dist, "mean", lambda values: values + 0.25)  # one of four is broken
    run.step(1)
    assert run.guard.skipped and same(run.state(), before)


def test_after_too_many_in_a_row_nothing_moves_until_the_host_has_seen_it() -> None:
    run, broken = Run(), range(7, 7 + MAX_SKIPPED_IN_A_ROW)
    for number in range(broken.stop):
        run.step(number, "NaN loss" if number in broken else "")
    before = run.state()
    with pytest.raises(TrainingDiverged) as caught:
        for number in range(broken.stop, broken.stop + 100):
            run.step(number)  # sound ones
            assert same(run.state(), before)
    assert broken.stop <= number <= broken.stop + 2 * guard_module.LOOK_EVERY
    assert "step 27: " in str(caught.value) and str(caught.value).endswith(": image260.png, image265.png")
    assert caught.value.exit_code == EXIT_DIVERGED == 3


def test_one_sound_step_starts_the_count_anew() -> None:
    run = Run()
    for number in range(4 * MAX_SKIPPED_IN_A_ROW):
        run.step(number, "NaN loss" if (number + 1) % MAX_SKIPPED_IN_A_ROW else "")
    run.guard.end_epoch(run.means, 0)
    assert run.ema.updates == 4


def test_the_end_of_an_epoch_looks_at_once() -> None:
    run = Run()
    for number in range(MAX_SKIPPED_IN_A_ROW + 1):
        run.step(number, "Inf gradient" if number else "")
    with pytest.raises(TrainingDiverged, match=f"step {MAX_SKIPPED_IN_A_ROW + 1}: .*image{MAX_SKIPPED_IN_A_ROW}0.png"):
        run.guard.end_epoch(run.means, 0)


def test_an_epoch_without_a_finite_loss_is_the_end() -> None:
    run = Run()
    for number in range(3):
        run.step(number, "NaN loss")
    with pytest.raises(
        TrainingDiverged, match=r"epoch 8: the training loss was never finite; .*: image20.png, image25.png"
    ):
        run.guard.end_epoch(run.means, 7)


def test_a_resumed_run_counts_on() -> None:
    """Saved in the middle of a run of faults, it ends at the same step with the same weights."""
    broken = range(4, 4 + MAX_SKIPPED_IN_A_ROW)
    whole, part = Run("Adam"), Run("Adam")
    for run, numbers in ((whole, range(broken.stop)), (part, range(11))):
        for number in numbers:
            run.step(number, "NaN in a buffer" if number in broken else "")
    resumed = Run("Adam")
    resumed.model.load_state_dict(part.model.state_dict())
    resumed.ema.load_state_dict(part.ema.state_dict())
    resumed.named.load_state_dict(part.named.state_dict())
    resumed.guard.load_state_dict(copy.deepcopy(part.guard.state_dict()))
    resumed.means = copy.deepcopy(part.means)
    resumed.guard.begin()
    for number in range(11, broken.stop):
        resumed.step(number, "NaN in a buffer" if number in broken else "")
    assert same(resumed.state(), whole.state()) and same(resumed.means, whole.means)
    for run in (whole, resumed):
        with pytest.raises(TrainingDiverged, match=f"step {broken.stop}: .*image{broken.stop - 1}0.png"):
            run.guard.end_epoch(run.means, 0)


def test_a_run_that_diverged_can_go_on() -> None:
    """After a rollback: no broken gradient is left, and gradient scaling is not in the middle of a step."""
    run = Run()
    run.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with pytest.raises(TrainingDiverged):
        for number in range(100):
            run.step(number, "NaN loss")
    assert all(parameter.grad is None for parameter in run.model.parameters())
    before = run.state()
    run.guard.load_state_dict({"in_a_row": torch.zeros((), dtype=torch.int64), "rollbacks": 1})
    run.guard.begin()
    run.step(0)
    assert not run.guard.skipped and not same(run.state(), before)


def test_a_buffer_broken_between_epochs_is_mended() -> None:
    run = Run()
    run.step(0)
    before = run.state()
    run.model[1].running_var[2] = math.inf
    run.guard.begin()
    run.step(1)
    assert run.guard.skipped and same(run.state(), before)


def test_the_device_is_never_waited_for_in_a_step() -> None:
    """On meta tensors, which hold no numbers, anything that looks at one fails."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        norm, parts, indices = torch.ones(()), torch.ones(3), torch.ones(2, dtype=torch.int64)
    optimizer = build_optimizer(model, Settings("Adam"), LR, 0.0, fused=False)
    guard = StepGuard(model, optimizer, str)
    guard.fused = True  # what runs where kernels are
    guard.begin()
    means: dict[str, Tensor] = {}
    for step in range(1, guard_module.LOOK_EVERY):
        guard.add(parts, indices)
        assert guard.decide(means, step, norm).is_meta
    assert means["loss"].shape == (4,) and guard.in_a_row.is_meta


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_on_cuda_broken_steps_leave_no_trace_and_none_waits(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).cuda()
    optimizer = build_optimizer(model, Settings(kind), LR, 0.01, fused=True)
    ema, guard, means = ModelEMA(model, 0.9, 5.0), StepGuard(model, optimizer, str), {}
    optimizer.register_step_post_hook(lambda *_: ema.update_parameters(model, guard.skipped))
    guard.begin()
    images, indices = torch.rand(2, 3, 8, 8, device="cuda"), torch.arange(2, device="cuda")
    broken = torch.tensor(math.nan, device="cuda")
    for step in range(3 * guard_module.LOOK_EVERY):
        before = copy.deepcopy((model.state_dict(), ema.state_dict()))
        with never_waiting():
            loss = model(images).square().mean()
            loss = loss * broken if step % 3 == 0 else loss
            loss.backward()
            guard.add(loss.detach().expand(3), indices)
            guard.decide(means, step, clip_gradients(optimizer, 10.0))
            optimizer.step()
            optimizer.zero_grad()
            guard.look(step)
        after = (model.state_dict(), ema.state_dict())
        assert finite(after) and finite(NamedOptimizerState(model, optimizer).state_dict())
        assert all(same(a, b) for a, b in zip(after, before, strict=True)) == (step % 3 == 0)
    assert ema.updates == 2 * guard_module.LOOK_EVERY


@pytest.mark.cuda
def test_fp16_on_cuda_skips_overflowing_steps_without_waiting() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).cuda()
    optimizer = build_optimizer(model, Settings("SGD"), LR, 0.01, fused=True)
    ema, guard, means = ModelEMA(model, 0.9, 5.0), StepGuard(model, optimizer, str), {}
    optimizer.register_step_post_hook(lambda *_: ema.update_parameters(model, guard.skipped))
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    guard.begin()
    images, indices = torch.rand(2, 3, 8, 8, device="cuda"), torch.arange(2, device="cuda")
    for step in range(1, 60):
        with torch.autocast("cuda", torch.float16):
            loss = model(images).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        guard.add(loss.detach().expand(3), indices)
        norm = clip_gradients(optimizer, 10.0)
        guard.in_a_row.clamp_(max=5)  # the scale is far beyond the usual
        guard.decide(means, step, norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert finite((model.state_dict(), ema.state_dict()))
    skipped = 40 - math.log2(scaler.get_scale())
    assert 10 < skipped < 35 and ema.updates == 59 - skipped


def test_rows_without_what_is_not_finite() -> None:
    row = {"time": 1.5, "val/box_loss": math.nan, "val/cls_loss": math.inf, "epoch": 3, "note": "x", "none": None}
    assert finite_only(row) == {"time": 1.5, "epoch": 3, "note": "x", "none": None}


# The whole of training: 12 images, batches of 2, 6 steps an epoch.

FAST = ["--imgsz", "32", "--batch", "2", "--device", "cpu", "--workers", "0", "--noplots", "--noval"]


def main(data: Path, project: Path, *flags: str) -> Path:
    train.main(["--data", str(data), "--project", str(project), *FAST, *flags])
    return project / "exp"


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def inject(monkeypatch: pytest.MonkeyPatch, fault: str, when: Callable[[train.Training], bool]) -> list[train.Training]:
    """Bring a fault into the batches of a run for whose `Training` `when` holds; the list gets that object."""
    trainings: list[train.Training] = []

    def active() -> bool:
        return bool(trainings) and trainings[-1].model.training and when(trainings[-1])

    build, compute, move, clip = train.build_training, DetectionLoss.__call__, Batch.to, train.clip_gradients

    def build_and_tell(*args: Any) -> Any:
        training, curve = build(*args)
        trainings.append(training)
        return training, curve

    def compute_broken(self: DetectionLoss, *args: Any) -> Any:
        loss = compute(self, *args)
        factor = {"NaN loss": math.nan, "spike": 1e4}.get(fault, 1.0) if active() else 1.0
        return loss._replace(total=loss.total * factor, parts=loss.parts * factor)

    def move_broken(self: Batch, device: Any) -> Batch:
        batch = move(self, device)
        if fault == "NaN in a buffer" and active():
            next(m for m in trainings[-1].model.modules() if isinstance(m, nn.BatchNorm2d)).running_var[0] = math.nan
        if fault == "NaN pixels" and active():
            images = batch.images.float() / 255
            images[0, 1, 5:9, 7] = math.nan
            batch = replace(batch, images=images)
        return batch

    def clip_broken(optimizer: Any, most: float) -> Tensor:
        if fault == "Inf gradient" and active():
            optimizer.param_groups[0]["params"][3].grad.flatten()[2] = -math.inf
        return clip(optimizer, most)

    monkeypatch.setattr(train, "build_training", build_and_tell)
    monkeypatch.setattr(DetectionLoss, "__call__", compute_broken)
    monkeypatch.setattr(Batch, "to", move_broken)
    monkeypatch.setattr(train, "clip_gradients", clip_broken)
    return trainings


@pytest.mark.parametrize("fault", [*FAULTS, "spike"])
def test_a_run_with_broken_batches_keeps_and_writes_only_numbers(tiny_data, tmp_path, monkeypatch, fault) -> None:
    inject(monkeypatch, fault, lambda training: training.state.step in (0, 3, 4, 8))
    folder = main(tiny_data, tmp_path, "--epochs", "2", "--optimizer", "SGD")
    skips = 0 if fault == "spike" else 4
    for name in ("last", "best"):
        assert finite(load_checkpoint(folder / "weights" / f"{name}.pt")), name
    state = load_checkpoint(folder / "weights" / "last.pt")["state"]
    assert state["progress"]["step"] == 12, "the schedule's iteration goes on"
    assert state["components"]["ema"]["n_averaged"].item() == 12 - skips
    assert [float(row["train/skipped"]) for row in table(folder)] == (
        [0.0, 0.0] if fault == "spike" else [pytest.approx(3 / 6), pytest.approx(1 / 6)]
    )
    cells = [cell for row in table(folder) for cell in row.values() if cell]
    assert all(math.isfinite(float(cell)) for cell in cells)
    assert all(float(row["train/box_loss"]) > 0 for row in table(folder))


def test_a_run_that_stays_broken_ends_with_the_files_of_its_last_batch(tiny_data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(guard_module, "MAX_SKIPPED_IN_A_ROW", 3)
    monkeypatch.setattr(guard_module, "LOOK_EVERY", 2)
    trainings = inject(monkeypatch, "NaN pixels", lambda training: training.state.step >= 13)
    with pytest.raises(TrainingDiverged) as caught:
        main(tiny_data, tmp_path, "--epochs", "5")
    batches = list(trainings[0].loader.epoch(2))
    # Steps count from 1 for the user: the first broken one is 14, the third in a row 16, batch 3 of the third epoch.
    root = tiny_data.parent / "images" / "train"
    files = [str(root / f"{index:02d}.png") for index in batches[3].indices.tolist()]
    assert "step 16: " in str(caught.value) and str(caught.value).endswith(f"last batch: {shown(files)}")
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    state = load_checkpoint(tmp_path / "exp" / "weights" / "last.pt")
    assert state["state"]["progress"]["epoch"] == 2 and finite(state)
    assert len(table(tmp_path / "exp")) == 2


def shown(files: list[str]) -> str:
    return f"{', '.join(files[:3])}{f' and {len(files) - 3} more' * (len(files) > 3)}"


@pytest.fixture
def quick_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "MAX_SKIPPED_IN_A_ROW", 3)
    monkeypatch.setattr(guard_module, "LOOK_EVERY", 2)


ROLLBACK = ["--epochs", "4", "--on-divergence", "rollback", "--linear-lr", "--set", "warmup_epochs=0", "lrf=0.4"]


@pytest.mark.usefixtures("quick_to_give_up")
def test_rolled_back_a_run_goes_on_from_the_epochs_start_with_a_tenth_of_the_lr(
    tiny_data, tmp_path, monkeypatch, capsys
) -> None:
    """And interrupted after that, it is the same run."""

    def too_fast(training: train.Training) -> bool:
        return training.state.step >= 9 and training.lr.scheduler.base_lrs[0] == 0.002

    inject(monkeypatch, "NaN loss", too_fast)
    folder = main(tiny_data, tmp_path / "whole", *ROLLBACK)
    factors = [1.0, 0.08, 0.06, 0.04]  # the line 1, 0.8, 0.6, 0.4; a tenth of it from the second epoch on
    for group in ("decay", "no_decay", "bias"):
        assert [float(row[f"lr/{group}"]) / 0.002 for row in table(folder)] == pytest.approx(factors)
    assert [float(row["train/skipped"]) for row in table(folder)] == [0.0] * 4, "the epoch was trained anew"
    out = capsys.readouterr().out
    assert "rolled back  to the start of the epoch, 1 of at most 3" in out and "0.1 times the planned" in out
    content = load_checkpoint(folder / "weights" / "last.pt")
    assert finite(content) and content["state"]["components"]["guard"]["rollbacks"] == 1
    assert content["state"]["progress"]["step"] == 24

    save = train.save

    def save_and_die(training: train.Training, *args: Any) -> None:
        save(training, *args)
        if training.state.epoch == 3:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(train, "save", save_and_die)
        with pytest.raises(InterruptedError):
            main(tiny_data, tmp_path / "parts", *ROLLBACK)
    capsys.readouterr()
    train.main(["--resume", str(tmp_path / "parts" / "exp")])
    assert "rolled back  1 time so far: every learning rate is 0.1 times the planned one\n" in capsys.readouterr().out
    parts = load_checkpoint(tmp_path / "parts" / "exp" / "weights" / "last.pt")["state"]["components"]
    for part in ("model", "ema"):
        assert same(parts[part], content["state"]["components"][part])
    assert parts["scheduler"] == content["state"]["components"]["scheduler"]


@pytest.mark.usefixtures("quick_to_give_up")
def test_rollbacks_of_no_use_end(tiny_data, tmp_path, monkeypatch, capsys) -> None:
    inject(monkeypatch, "NaN loss", lambda training: training.state.step >= 8)
    with pytest.raises(TrainingDiverged, match="step 11: "):
        main(tiny_data, tmp_path, *ROLLBACK)
    assert capsys.readouterr().out.count("rolled back") == guard_module.MAX_ROLLBACKS == 3
    content = load_checkpoint(tmp_path / "exp" / "weights" / "rollback.pt")
    assert content["state"]["progress"]["step"] == 6 and finite(content)
    assert content["state"]["components"]["scheduler"]["base_lrs"][0] == pytest.approx(0.002 * 1e-3)


def test_a_way_back_of_before_is_gone_once_a_run_went_on_without(tiny_data, tmp_path, monkeypatch) -> None:
    """Later on it would be taken for the start of another epoch."""
    folder, save = tmp_path / "exp", train.save

    def save_and_die(training: train.Training, *args: Any) -> None:
        save(training, *args)
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(train, "save", save_and_die)
        with pytest.raises(InterruptedError):
            main(tiny_data, tmp_path, *ROLLBACK)
        assert (folder / "weights" / "rollback.pt").exists()
        with pytest.raises(InterruptedError):
            train.main(["--resume", str(folder), "--on-divergence", "stop"])
    assert not (folder / "weights" / "rollback.pt").exists()


def test_a_run_that_is_over_keeps_no_way_back(tiny_data, tmp_path) -> None:
    main(tiny_data, tmp_path, "--epochs", "2", "--on-divergence", "rollback")
    assert sorted(path.name for path in (tmp_path / "exp" / "weights").iterdir()) == [
        *("best.pt", "last.previous.pt", "last.pt")
    ]


def test_a_file_that_is_lowered_already_is_not_lowered_twice(tmp_path: Path) -> None:
    """A run saved in the middle of an epoch, before its fault, comes to the fault a second time."""
    run = Run()
    lr = LearningRate(run.optimizer, Schedule(Hyp(schedule="constant"), Course(3), 1), group_rates(run.optimizer, 0.0))
    scheduler = lr.scheduler
    file: dict[str, Any] = {}

    def save(path: Path) -> None:
        path.touch()
        file.update(copy.deepcopy({"guard": run.guard.state_dict(), "scheduler": scheduler.state_dict()}))

    def load(path: Path) -> None:
        run.guard.load_state_dict(file["guard"])
        scheduler.load_state_dict(copy.deepcopy(file["scheduler"]))

    rollback = Rollback(run.guard, lr.lower, tmp_path / "rollback.pt", save, load, lambda text: None)
    rollback.keep(at_start=True)
    middle = copy.deepcopy((run.guard.state_dict(), scheduler.state_dict()))
    rollback.recover(TrainingDiverged("x"))
    assert scheduler.get_last_lr() == pytest.approx([0.005] * 3)
    run.guard.load_state_dict(middle[0])
    scheduler.load_state_dict(middle[1])
    rollback.keep(at_start=False)
    rollback.recover(TrainingDiverged("x"))
    assert scheduler.get_last_lr() == pytest.approx([0.005] * 3) and run.guard.rollbacks == 1
    lowered = scheduler.get_last_lr()
    rollback.recover(TrainingDiverged("x"))
    twice = scheduler.get_last_lr()
    assert twice == pytest.approx([0.0005] * 3) and run.guard.rollbacks == 2
    run.guard.load_state_dict(middle[0])  # of before the first: the file is two ahead
    scheduler.load_state_dict(middle[1])
    for same in (lowered, twice):
        rollback.recover(TrainingDiverged("x"))
        assert scheduler.get_last_lr() == same, "to the last bit"


def test_without_being_asked_nothing_is_rolled_back() -> None:
    error = TrainingDiverged("step 7")
    Stop().keep(at_start=True)
    with pytest.raises(TrainingDiverged, match="step 7"):
        Stop().recover(error)


def test_a_model_that_finds_nothing_anywhere_is_the_end() -> None:
    """Its losses are numbers, 0, and stay so: no object has a point to learn from."""
    run = Run()
    run.step(0)
    run.means["loss"] = torch.tensor([0.0, 1e-12, 0.0, 2.0])
    with pytest.raises(TrainingDiverged, match="epoch 8: all losses are 0: the model no longer finds anything"):
        run.guard.end_epoch(run.means, 7)
    for losses in ([0.0, 4e-6, 0.0, 2.0], [1.0, 0.0, 0.0, 2.0]):  # images of nothing, well known as such; no classes
        run.means["loss"] = torch.tensor(losses)
        run.guard.end_epoch(run.means, 7)
    run.means["loss"] = torch.tensor([0.0, 4e-6, 0.0, 8.0])  # an image's share counts
    with pytest.raises(TrainingDiverged, match="all losses are 0"):
        run.guard.end_epoch(run.means, 7)


def test_only_some_of_many_images_are_named() -> None:
    run = Run()
    run.step(0, "NaN loss")
    run.guard._recent[-1] = (0, torch.arange(16))
    with pytest.raises(TrainingDiverged, match=r"image0.png, image1.png, image2.png and 13 more$"):
        run.guard.end_epoch(run.means, 0)


def test_predictions_that_leave_the_numbers_only_when_evaluated_end_a_run(tiny_data, tmp_path) -> None:
    """Steps of this size leave weights whose averages overflow where batch norm no longer takes the scale out."""
    with pytest.raises(TrainingDiverged, match=r"epoch 2: the predictions for the validation images are not finite"):
        run_with_huge_weights(tiny_data, tmp_path, "stop")
    assert [row["epoch"] for row in table(tmp_path / "exp")] == ["1"]


def test_and_are_rolled_back_where_that_was_asked_for(tiny_data, tmp_path, capsys) -> None:
    run_with_huge_weights(tiny_data, tmp_path, "rollback")
    assert [row["epoch"] for row in table(tmp_path / "exp")] == ["1", "2", "3"]
    assert "rolled back  to the start of the epoch, 1 of at most 3 times" in capsys.readouterr().out


def run_with_huge_weights(data: Path, project: Path, on_divergence: str) -> None:
    evaluate, calls = train.evaluate_ema, []

    def evaluate_huge(training: train.Training, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            with torch.no_grad():
                for parameter in training.ema.module.parameters():
                    parameter.mul_(1e20)
        return evaluate(training, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate_ema", evaluate_huge)
        flags = [*FAST[:-1], "--epochs", "3", "--on-divergence", on_divergence]  # without --noval
        train.main(["--data", str(data), "--project", str(project), *flags])


def test_all_processes_hear_of_an_evaluation_that_only_one_of_them_made(tiny_data, tmp_path, monkeypatch) -> None:
    """The others have none; what the main one found is what they go by."""
    monkeypatch.setattr(train.dist, "from_main", lambda value: False if value is True else value)
    with pytest.raises(TrainingDiverged, match="epoch 1: the predictions for the validation images are not finite"):
        main(tiny_data, tmp_path, "--epochs", "2")
