"""utils/stopping.py: which epoch is the best, and when a run stops."""

from __future__ import annotations

import math

import pytest

from utils.stopping import EarlyStopping


def stop_epoch(stopping: EarlyStopping, fitness: dict[int, float], epochs: int = 100) -> int | None:
    """The epoch after which the run stops; `fitness` holds the validated epochs."""
    for epoch in range(epochs):
        if epoch in fitness:
            stopping.update(epoch, fitness[epoch])
        if stopping.should_stop(epoch):
            return epoch
    return None


def curve(*values: float) -> dict[int, float]:
    """Fitness of the first epochs, and of the last of them for ever after."""
    return {epoch: values[min(epoch, len(values) - 1)] for epoch in range(100)}


@pytest.mark.parametrize(
    ("patience", "fitness", "stop", "best"),
    [
        (3, curve(0.1, 0.2, 0.3), 5, 2),  # 3, 4 and 5 are no better than 2
        (1, curve(0.1, 0.2, 0.3), 3, 2),
        (3, curve(0.5, 0.1, 0.1, 0.6, 0.2), 6, 3),  # the second peak comes just in time
        (2, curve(0.5, 0.1, 0.1, 0.6, 0.2), 2, 0),  # … and here too late
        (3, curve(0.0), None, 99),  # nothing was found yet: the later epoch is as good
        (3, curve(0.0, 0.0, 0.1, 0.0), 5, 2),
        (3, {0: 0.1, 5: 0.2, 10: 0.15}, 3, 0),  # counted in epochs, not in validations
        (6, {0: 0.1, 5: 0.2, 10: 0.15}, 11, 5),
        (3, curve(math.nan), None, -1),
        (3, {}, None, -1),  # never validated: nothing to go by
        (0, curve(0.5, 0.1), None, 0),  # off
        (100, curve(0.5, 0.1), None, 0),
    ],
)
def test_when_a_run_stops(patience: int, fitness: dict[int, float], stop: int | None, best: int) -> None:
    stopping = EarlyStopping(patience)
    assert stop_epoch(stopping, fitness) == stop
    assert stopping.best_epoch == best


def test_only_a_better_epoch_is_the_best() -> None:
    stopping = EarlyStopping(3)
    values = (0.0, 0.2, 0.2, 0.1, math.nan, 0.3)
    assert [stopping.update(epoch, fitness) for epoch, fitness in enumerate(values)] == [
        *(True, True, False, False, False, True)
    ]
    assert (stopping.best_epoch, stopping.best_fitness) == (5, 0.3)


def test_a_resumed_run_stops_at_the_same_epoch() -> None:
    fitness = curve(0.1, 0.4, 0.2)
    for interrupted in range(5):
        first, second = EarlyStopping(4), EarlyStopping(4)
        assert stop_epoch(first, fitness, interrupted) is None
        second.load_state_dict(first.state_dict())
        later = {epoch: value for epoch, value in fitness.items() if epoch >= interrupted}
        assert stop_epoch(second, later) == 5 and second.best_fitness == 0.4


def test_the_state_is_plain_values() -> None:
    stopping = EarlyStopping(3)
    stopping.update(7, 0.5)
    stopping.restart(8)
    assert stopping.state_dict() == {"best_fitness": 0.5, "best_epoch": 7, "since": 8}
    fresh = EarlyStopping(9)
    fresh.load_state_dict(stopping.state_dict())
    assert (fresh.best_fitness, fresh.best_epoch, fresh.patience) == (0.5, 7, 9), "patience is the new run's own"
    assert [fresh.should_stop(epoch) for epoch in (16, 17)] == [False, True], "it counts from where the run went on"
