"""utils/keeper.py: when it saves, what it puts back, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from utils import dist, keeper, signals
from utils.errors import Stopped
from utils.keeper import Keeper


@dataclass
class State:
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    means: dict[str, Tensor] = field(default_factory=dict)


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(keeper, "time", made)
    return made


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Stands for a signal that came."""
    yield lambda: monkeypatch.setattr(signals._Stop, "signal", "SIGTERM")
    signals.hold()


def build(
    state: State, saved: list[tuple[int, int]], minutes: float | None = 5, buffers: tuple[Tensor, ...] = ()
) -> Keeper:
    def write() -> None:
        saved.append((state.epoch, state.batch))

    return Keeper(state, write, minutes=minutes, resume="train again", buffers=buffers)


@pytest.mark.parametrize(("minutes", "expected"), [(0, []), (1, [2, 4]), (2, [3]), (0.5, [1, 2, 3, 4]), (9, [])])
def test_saves_within_an_epoch_come_by_the_clock(clock: Clock, minutes: float, expected: list[int]) -> None:
    state, saved = State(), []
    with build(state, saved, minutes) as keeper:
        for batch in keeper.watch(range(1, 5)):
            clock.now += 40
            state.batch = batch
            keeper.after_step()
    assert [batch for _, batch in saved] == expected
    assert state.seconds == 160


@pytest.mark.parametrize(("seconds", "expected"), [(1, [300, 601]), (4, [300, 704])])
def test_unless_told_saves_cost_a_hundredth_at_most(clock: Clock, seconds: float, expected: list[int]) -> None:
    """Steps of a second; a save of 1 second comes every 300, one of 4 seconds every 400."""
    state, saved, begin = State(), [], clock.now

    def write() -> None:
        saved.append(round(clock.now - begin))
        clock.now += seconds

    with Keeper(state, write, minutes=None, resume="", buffers=()) as keeper:
        for _ in keeper.watch(range(720)):
            clock.now += 1
            keeper.after_step()
    assert saved[:2] == expected


def test_an_epochs_save_starts_the_interval_anew(clock: Clock) -> None:
    state, saved = State(), []
    with build(state, saved, 1) as keeper:
        clock.now += 50
        keeper.save()
        for _ in keeper.watch(range(2)):
            clock.now += 40
            state.batch += 1
            keeper.after_step()
    assert saved == [(0, 0), (0, 2)]


def test_a_stop_saves_and_says_how_to_go_on(ask: Callable[[], None]) -> None:
    state, saved = State(), []
    with pytest.raises(Stopped) as caught, build(state, saved) as keeper:
        for batch in keeper.watch(range(1, 9)):
            state.batch = batch
            if batch == 3:
                ask()
    assert saved == [(0, 3)]
    assert str(caught.value) == "stopped by SIGTERM, the state is saved; go on with: train again"


def test_what_is_on_the_disk_is_not_saved_again(ask: Callable[[], None]) -> None:
    for how in (Keeper.save, Keeper.on_disk):
        state, saved = State(epoch=2), []
        kept = build(state, saved)
        how(kept)
        ask()
        with pytest.raises(Stopped), kept:
            next(kept.watch(range(3)))
        assert saved == ([(2, 0)] if how is Keeper.save else [])


def test_a_state_that_changed_at_the_place_of_the_save_is_saved_again(ask: Callable[[], None]) -> None:
    """A rollback to the start of an epoch, whose state is on the disk with the lr of before."""
    state, saved = State(epoch=2), []
    kept = build(state, saved)
    kept.save()
    kept.changed()
    ask()
    with pytest.raises(Stopped), kept:
        next(kept.watch(range(3)))
    assert saved == [(2, 0), (2, 0)]


def test_half_a_step_is_taken_back(ask: Callable[[], None]) -> None:
    state, saved, buffers = State(), [], (torch.zeros(3), torch.zeros((), dtype=torch.int64))
    with pytest.raises(Stopped), build(state, saved, buffers=buffers) as keeper:
        for number in keeper.watch(range(9)):
            for buffer in buffers:
                buffer += 1
            state.means = {"loss": state.means.get("loss", torch.zeros(2)) + 1}
            if number % 3 == 2:
                state.batch = number + 1
                keeper.after_step()
            if number == 4:
                ask()
    assert saved == [(0, 3)]
    assert buffers[0].tolist() == [3, 3, 3] and buffers[1].item() == 3
    assert state.means["loss"].tolist() == [3, 3]


def test_other_errors_save_nothing() -> None:
    state, saved = State(), []
    with pytest.raises(ZeroDivisionError), build(state, saved):
        state.batch = 1
        raise ZeroDivisionError
    assert saved == []


def test_processes_stop_together(monkeypatch: pytest.MonkeyPatch, ask: Callable[[], None]) -> None:
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    others = iter([False, False, True])
    monkeypatch.setattr(dist, "any_process", lambda mine: next(others))
    state, saved = State(), []
    # The one that saves may take long: whoever ended meanwhile would have it killed.
    monkeypatch.setattr(dist, "barrier", lambda: saved.append("all are here"))
    with pytest.raises(Stopped, match="stopped with another process"), build(state, saved) as keeper:
        for batch in keeper.watch(range(1, 9)):
            state.batch = batch
            keeper.after_step()
    assert saved == [(0, 3), "all are here"]
