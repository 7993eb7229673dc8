"""Memory that workers fill and the trainer reads, used again only when nothing reads it any more."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import sys

import numpy as np
import pytest
import torch

from data.handover import Slots

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is inherited by fork")


def free(slots: Slots) -> int:
    """How many slots are free."""
    return int((slots._taken == 0).sum())


def test_a_slot_is_taken_until_nothing_uses_what_was_received() -> None:
    slots = Slots(2, 24)
    first, second = slots.take(24), slots.take(12)
    assert free(slots) == 0
    first.array[:], second.array[:] = 1, 2
    received = pickle.loads(pickle.dumps(first))
    assert received.array.tolist() == [1] * 24 and pickle.loads(pickle.dumps(second)).array.tolist() == [2] * 12
    assert free(slots) == 1  # the second one's, which nobody kept
    images = torch.from_numpy(received.array).view(2, 2, 2, 3).permute(0, 3, 1, 2)[1:]
    del first, second, received
    assert free(slots) == 1  # a part of it is still in use
    slots.take(24).array[:] = 3
    slots.take(24).array[:] = 4  # there is no room for it
    assert (images == 1).all() and free(slots) == 0
    del images
    assert free(slots) == 1


def test_a_slot_that_an_error_keeps_from_being_filled_is_free_again() -> None:
    slots = Slots(1, 8)
    for size in (8, 8):
        with pytest.raises(ZeroDivisionError), slots.filling(size) as pixels:
            assert pixels.slot == 0
            raise ZeroDivisionError
    assert free(slots) == 1
    with slots.filling(8) as pixels, pytest.raises(ZeroDivisionError), slots.filling(8) as more:
        assert more.slot is None
        raise ZeroDivisionError
    assert free(slots) == 0 and pixels.slot == 0


def drop(kept: list[np.ndarray], results: multiprocessing.Queue) -> None:
    kept.clear()
    gc.collect()
    results.put(0)


def test_a_process_that_is_forked_meanwhile_gives_nothing_back() -> None:
    slots, fork = Slots(1, 8), multiprocessing.get_context("fork")
    kept = [pickle.loads(pickle.dumps(slots.take(8))).array]
    results = fork.Queue()
    process = fork.Process(target=drop, args=(kept, results))
    process.start()
    results.get(timeout=60)
    process.join()
    assert free(slots) == 0
    kept.clear()
    assert free(slots) == 1


def test_what_a_process_fills_another_reads() -> None:
    slots, fork = Slots(1, 8), multiprocessing.get_context("fork")
    results = fork.Queue()

    def fill() -> None:
        pixels = slots.take(6)
        pixels.array[:] = 7
        results.put(pixels)

    process = fork.Process(target=fill)
    process.start()
    received = results.get(timeout=60)
    process.join()
    assert received.array.tolist() == [7] * 6 and free(slots) == 0


def test_what_finds_no_slot_is_sent_whole() -> None:
    slots = Slots(1, 8)
    first, second = slots.take(8), slots.take(6)
    first.array[:], second.array[:] = 1, 2
    received = pickle.loads(pickle.dumps(second))
    assert received.array.tolist() == [2] * 6 and received.slot is None
    assert received.array.flags.writeable and free(slots) == 0
