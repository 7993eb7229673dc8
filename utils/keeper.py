"""When the state of a run is saved: every few minutes, at the end of an epoch, and when a signal ends the run."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from utils import dist, signals
from utils.errors import Stopped

T = TypeVar("T")

DEFAULT_MINUTES = 5.0
MAX_COST = 0.01  # share of the time that saves within an epoch take at most, unless the user says how often


class Progressing(Protocol):
    """What is needed of a run's state."""

    epoch: int
    batch: int
    seconds: float
    means: dict[str, Tensor]


def state_saved(stopped: Stopped, resume: str) -> Stopped:
    """The stop, in words that say how to go on."""
    return Stopped(f"{stopped}, the state is saved; go on with: {resume}", saved=True)


@contextlib.contextmanager
def before_training(resume: str | None) -> Iterator[None]:
    """Say of a stop before training what is on the disk: the state that the run goes on from by `resume`, or none."""
    try:
        yield
    except Stopped as stopped:
        if stopped.saved:
            raise
        if resume is not None:
            raise state_saved(stopped, resume) from None
        again = "nothing is saved, so start it again without --resume"
        raise Stopped(f"{stopped} before training began: {again}", saved=True) from None


class Keeper:
    """Decides when a run's state is saved, always as it is at an optimizer step's boundary.

    Inside `with keeper:` a signal does not break off a step, an evaluation's bookkeeping or a save. It raises `Stopped`
    while the run waits for data, after a batch, or in what `signals.interruptible()` encloses; the state is then put
    back to the last boundary, saved, and `Stopped` goes on with a line on how to resume. Several processes stop
    together, after the same optimizer step.
    """

    def __init__(
        self,
        state: Progressing,
        write: Callable[[], None],
        *,
        minutes: float | None,
        resume: str,
        buffers: Iterable[Tensor],
    ) -> None:
        """write: saves the state.  resume: the command to go on.

        minutes: between saves within an epoch, 0 for none, None for as many as cost little of the training time.

        buffers: what batches change between two boundaries beside `state.means`, the statistics of batch norm; none
        where every batch is a step.
        """
        self.state, self._write, self._resume = state, write, resume
        self._interval = math.inf if minutes == 0 else 60 * (DEFAULT_MINUTES if minutes is None else minutes)
        self._pause = 1 / MAX_COST if minutes is None else 0.0
        self._cost = 0.0
        self._buffers = list(buffers)
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._means: dict[str, Tensor] = {}
        self._saved: tuple[int, int] | None = None
        self._since = self._last_save = time.perf_counter()

    def __enter__(self) -> Keeper:
        signals.hold()
        self._last_save = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Stopped):
            self._rewind()
            if self._saved != self._place():
                self.save()
            raise state_saved(error, self._resume) from None
        signals.allow()

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield an epoch's batches from the state's on; a stop need not wait for the next one."""
        self._mark()
        self._since = time.perf_counter()
        # Processes that wait for each other's gradients stop after the same step or wait forever.
        waiting = signals.interruptible if dist.world_size() == 1 else contextlib.nullcontext
        iterator = iter(batches)
        while True:
            with waiting():
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def after_step(self) -> None:
        """An optimizer step is done and counted in the state: save if it is time, stop if all are to stop."""
        now = time.perf_counter()
        self.state.seconds += now - self._since
        self._since = now
        self._mark()
        if dist.any_process(signals.requested()):
            self.save()
            dist.barrier()  # where one process has ended, `torchrun` soon kills the others, in the middle of a save
            signals.check()
            raise Stopped("stopped with another process")
        if now - self._last_save >= max(self._interval, self._pause * self._cost):
            self.save()

    def save(self) -> None:
        """Save the state now; it must be at a boundary."""
        begin = time.perf_counter()
        self._write()
        self._saved, self._last_save = self._place(), time.perf_counter()
        self._cost = self._last_save - begin

    def on_disk(self) -> None:
        """Say that the state as it is was read from the disk, so that there is nothing to save yet."""
        self._saved = self._place()

    def changed(self) -> None:
        """Say that the state is another than was saved, at whatever place."""
        self._saved = None

    def _place(self) -> tuple[int, int]:
        return self.state.epoch, self.state.batch

    def _mark(self) -> None:
        """Remember what the batches until the next boundary will change."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)
            self._means = {name: value.clone() for name, value in self.state.means.items()}

    def _rewind(self) -> None:
        """Take back the batches since the last boundary: they come again when the run goes on."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
            self.state.means = dict(self._means)
