"""The guard of a run: an optimizer step with a number in it that is not finite leaves no trace, and a run of such steps
is the end of the training or, where asked for, a way back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from utils import dist
from utils.device import Arriving
from utils.errors import TrainingDiverged, some

MAX_SKIPPED_IN_A_ROW = 20  # fp16 starts with a scale of 2^16 and may halve it that often before it is at fault
LOOK_EVERY = 10  # steps between looks at the device's count of skips
SHOWN_FILES = 3  # of a batch's images, at most
DEAD = 1e-6  # a mean loss below which nothing is learned from, ever again: sound ones are far above
MAX_ROLLBACKS = 3
ROLLBACK_LR = 0.1  # what a rollback multiplies the learning rate by


class StepGuard:
    """Decide on the device whether a step is taken; one that is not changes nothing but the count of skips.

    A step is skipped where its loss, its gradients, or a buffer of the model (batch-norm statistics) after its forward
    passes is not finite, on any process. Fused optimizers then leave weights and state as they are (`found_inf`, which
    gradient scaling uses for the same); others get no gradients, which costs a wait for the device. Buffers are put
    back to what they were after the last good step. Losses that are not finite are not counted.

    After `MAX_SKIPPED_IN_A_ROW` skips no further step is taken; the host learns of it up to 2·`LOOK_EVERY` steps later,
    without waiting, and finds everything as it was when the last good step was done.

    Call `begin` before the steps of an epoch, `add` for each batch, `decide` between clipping and the optimizer's step,
    `look` after it, `end_epoch` after the last. `skipped` is then the step's flag, a scalar bool on the device.

    Args:
        model: all its buffers are guarded.
        name: gives the file of an image by its place in the index.
        mixed: the precision is, which may be why numbers aren't finite.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, name: Callable[[int], str], mixed: bool = False) -> None:
        self.model, self.optimizer, self.name, self._mixed = model, optimizer, name, mixed
        self.device = next(model.parameters()).device
        self.fused = all(group.get("fused") for group in optimizer.param_groups)
        self.rollbacks = 0
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=self.device)
        self.skipped = torch.zeros((), dtype=torch.bool, device=self.device)
        self._buffers: list[_Buffers] = []
        self._loss: Tensor | None = None
        self._recent: deque[tuple[int, Tensor]] = deque(maxlen=2 * LOOK_EVERY + 1)
        self._report: _Report | None = None
        if self.fused:
            optimizer.register_step_pre_hook(self._tell_optimizer)

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row.clone(), "rollbacks": self.rollbacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state; the model's buffers, as `begin` finds them, are the good ones."""
        self.in_a_row = state["in_a_row"].to(self.device, copy=True)
        self.rollbacks = state["rollbacks"]
        self._buffers, self._report, self._loss = [], None, None
        self._recent.clear()

    def begin(self) -> None:
        """Get ready for steps; between epochs nothing is copied anew, so that a buffer broken there is mended too."""
        self._loss = None
        if not self._buffers:
            by_type: dict[torch.dtype, list[Tensor]] = {}
            for buffer in self.model.buffers():
                by_type.setdefault(buffer.dtype, []).append(buffer)
            self._buffers = [_Buffers(buffers) for buffers in by_type.values()]
        if self.fused and isinstance(self.optimizer, SGD):
            self._start_momentum()

    def add(self, parts: Tensor, indices: Tensor) -> None:
        """Take in a batch: its mean losses, and the places `[B]` of its images in the index."""
        images = len(indices)
        weighted = torch.cat([parts * images, parts.new_full((1,), images)])  # `new_tensor` would wait for the device
        self._loss = weighted if self._loss is None else self._loss + weighted
        self._indices = indices

    @torch.no_grad()
    def decide(self, means: dict[str, Tensor], step: int, norm: Tensor) -> Tensor:
        """Decide on step number `step`, put buffers right, and return `skipped`.

        Args:
            means: gets the losses of the batches since the last step added to `loss` (`[4]`: box, cls and dfl times
                images, images; the mean over all processes), if they are finite.
            norm: of all gradients before clipping; scaled ones are to be unscaled before.
        """
        assert self._loss is not None
        finite_loss = torch.isfinite(self._loss).all()
        finite = torch.isfinite(norm) & finite_loss
        for buffers in self._buffers:
            finite = finite & buffers.gather()
        counted = torch.where(finite_loss, self._loss, 0.0)
        # Over all processes, so that each has the same sums: a run that goes on from those of one loses nothing.
        shared = dist.mean(torch.cat([counted, (~finite).to(counted.dtype)[None]]))
        counted, broken = shared[:-1], shared[-1] > 0
        self.skipped = broken | (self.in_a_row >= MAX_SKIPPED_IN_A_ROW)
        for buffers in self._buffers:
            buffers.settle(self.skipped)
        self.in_a_row = torch.where(self.skipped, self.in_a_row + 1, 0)
        means["loss"] = means["loss"].to(counted.device) + counted if "loss" in means else counted
        self._loss = None
        self._recent.append((step, self._indices))
        if not self.fused and self.skipped:
            self.optimizer.zero_grad(set_to_none=True)
        return self.skipped

    def look(self, step: int) -> None:
        """Judge now and then how the steps went; call when step number `step` is done and its gradients are gone.

        Raises:
            TrainingDiverged: too many steps in a row were skipped.
        """
        if step % LOOK_EVERY == 0:
            report, self._report = self._report, _Report(step, self.in_a_row)  # today's count comes over meanwhile
            if report is not None:
                self._judge(report)

    def end_epoch(self, means: Mapping[str, Tensor], epoch: int) -> None:
        """Look at how the epoch (counted from 0) went, waiting for the device.

        Raises:
            TrainingDiverged: too many steps in a row were skipped, no loss of the epoch was finite, or all were 0.
        """
        step = self._recent[-1][0] if self._recent else 0
        self._judge(_Report(step, self.in_a_row))
        *losses, images = means["loss"].tolist() if "loss" in means else (1.0, 1.0)
        if not images:
            raise TrainingDiverged(f"epoch {epoch + 1}: the training loss was never finite; {self._advice(step)}")
        if sum(losses) < DEAD * images:
            raise TrainingDiverged(
                f"epoch {epoch + 1}: all losses are 0: the model no longer finds anything anywhere, and nothing that "
                f"it could learn from is left; {self._advice(step)}"
            )

    def judge_evaluation(self, epoch: int, finite: bool) -> None:
        """Take in whether the epoch's (counted from 0) predictions of validation images were numbers.

        Raises:
            TrainingDiverged: they were not; weights may be huge before any of them leaves the numbers.
        """
        if not finite:
            raise TrainingDiverged(
                f"epoch {epoch + 1}: the predictions for the validation images are not finite; {self._advice(-1)}"
            )

    def _tell_optimizer(self, optimizer: Optimizer, *_: Any) -> None:
        optimizer.found_inf = self.skipped.float()  # what gradient scaling found there is among the reasons to skip

    def _start_momentum(self) -> None:
        """Fused SGD takes uninitialised memory for its first momentum, and a step it skips leaves it like that.

        Zeros give the same first step: momentum · 0 + gradient.
        """
        for group in self.optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] > 0 or group["nesterov"] else ():
                state = self.optimizer.state[parameter]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)

    def _judge(self, report: _Report) -> None:
        excess = report.read() - MAX_SKIPPED_IN_A_ROW
        if excess >= 0:
            step = report.step - excess
            raise TrainingDiverged(
                f"step {step + 1}: the training loss or its gradients were not finite, {MAX_SKIPPED_IN_A_ROW} steps in "
                f"a row; {self._advice(step)}"
            )

    def _advice(self, step: int) -> str:
        files = [self.name(i) for number, indices in self._recent if number == step for i in indices.tolist()]
        images = f"; images of the last batch: {some(files, SHOWN_FILES)}" if files else ""
        return f"what was saved before stands; try a smaller lr0{', or --amp off' * self._mixed}{images}"


class _Buffers:
    """A model's buffers of one type, with a copy of what they were after the last good step, in one piece."""

    def __init__(self, buffers: list[Tensor]) -> None:
        self.buffers = buffers
        self.good = self.now = torch.cat([buffer.flatten() for buffer in buffers])

    def gather(self) -> Tensor:
        """Read what they are now; return whether all of it is finite (a scalar bool)."""
        self.now = torch.cat([buffer.flatten() for buffer in self.buffers])
        return torch.isfinite(self.now).all()

    def settle(self, skipped: Tensor) -> None:
        """Keep what they are now, or put back what they were."""
        self.good = torch.where(skipped, self.good, self.now)
        pieces = self.good.split([buffer.numel() for buffer in self.buffers])
        torch._foreach_copy_(self.buffers, [p.view_as(b) for p, b in zip(pieces, self.buffers, strict=True)])


class _Report:
    """A count on its way from the device: asked for at one step, read some steps later."""

    def __init__(self, step: int, count: Tensor) -> None:
        self.step, self._count = step, Arriving(count)

    def read(self) -> int:
        return int(self._count.read()[0])


class Recovery(Protocol):
    """What is done when a run diverges."""

    def keep(self, at_start: bool) -> None:
        """Called before an epoch is trained (`at_start`), or the rest of one."""

    def recover(self, error: TrainingDiverged) -> None:
        """Bring the run back to where it can go on, or raise `error`."""


class Stop:
    """`--on-divergence stop`: the error is the end."""

    def keep(self, at_start: bool) -> None:
        """Nothing is needed for that."""

    def recover(self, error: TrainingDiverged) -> None:
        raise error


class Rollback:
    """`--on-divergence rollback`: back to the start of the epoch with a lower learning rate, a few times a run.

    The state to go back to is a file of its own, so that an interrupted run goes back to the very same.

    Args:
        guard: counts the rollbacks, as part of the state.
        lower: takes a share of all planned learning rates from here on, once more `ROLLBACK_LR` at each.
        path: the file.  save: writes the state there.  load: takes it from there.
        say: tells the user.
    """

    def __init__(
        self,
        guard: StepGuard,
        lower: Callable[[float], None],
        path: Path,
        save: Callable[[Path], None],
        load: Callable[[Path], None],
        say: Callable[[str], None],
    ) -> None:
        self.guard, self.lower = guard, lower
        self.path, self.save, self.load, self.say = path, save, load, say

    def keep(self, at_start: bool) -> None:
        if at_start or not dist.from_main(self.path.exists()):  # another process may write it while one looks
            self.save(self.path)

    def recover(self, error: TrainingDiverged) -> None:
        """Go back, or raise `error` where `MAX_ROLLBACKS` were of no use."""
        count = self.guard.rollbacks + 1
        if count > MAX_ROLLBACKS:
            raise error
        self.load(self.path)
        # Of what was planned: a run that was interrupted before its fault finds a file that is lowered already.
        self.lower(ROLLBACK_LR**count)
        self.guard.rollbacks = count
        self.save(self.path)
        self.say(
            f"diverged     {error}\nrolled back  to the start of the epoch, {count} of at most {MAX_ROLLBACKS} times; "
            f"from here on {lowered(count)}"
        )


def lowered(rollbacks: int) -> str:
    """What so many rollbacks have made of the plan, in words."""
    return f"every learning rate is {ROLLBACK_LR**rollbacks:g} times the planned one"


def finite_only(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without the numbers that are not finite: its table has empty cells there."""
    return {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
