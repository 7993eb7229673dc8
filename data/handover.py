"""How the pixels of a batch come from a worker to the trainer: through memory that both keep.

Torch makes a file in /dev/shm of each tensor: every page of it is new to the worker and to the trainer, and many
containers have 64 MB there in all. These slots are used again and again, and are no files.
"""

from __future__ import annotations

import mmap
import os
import weakref
from itertools import count
from typing import ClassVar

import numpy as np

from data.processes import inherited_lock


class Slots:
    """Room for the pixels of some batches, of at most `size` bytes each, which forked processes share."""

    known: ClassVar[weakref.WeakValueDictionary[int, Slots]] = weakref.WeakValueDictionary()
    _keys: ClassVar[count] = count()

    def __init__(self, slots: int, size: int) -> None:
        self._pixels = np.frombuffer(mmap.mmap(-1, slots * size), np.uint8).reshape(slots, size)
        self._taken = np.frombuffer(mmap.mmap(-1, slots), np.uint8)
        self._lock = inherited_lock()  # among workers: the trainer never waits for it
        self.key = next(self._keys)
        self.known[self.key] = self

    def take(self, size: int) -> Pixels | None:
        """In a worker: pixels to be filled and sent. None where no slot is free: the trainer keeps the batches."""
        with self._lock:
            slot = int(self._taken.argmin())
            if self._taken[slot]:
                return None
            self._taken[slot] = 1
        return Pixels(self.key, slot, self._pixels[slot, :size])

    def lend(self, slot: int, size: int) -> np.ndarray:
        """In the trainer: a slot that was received. It is free again when nothing uses the array any more."""
        pixels = self._pixels[slot, :size]
        weakref.finalize(pixels, self._give_back, slot, os.getpid())
        return pixels

    def free(self) -> int:
        """How many slots are free."""
        return int((self._taken == 0).sum())

    def _give_back(self, slot: int, owner: int) -> None:
        if os.getpid() == owner:  # not in a process that was forked while the trainer used it
            self._taken[slot] = 0


class Pixels:
    """uint8 `[N]` in a slot. What is pickled is where."""

    def __init__(self, key: int, slot: int, array: np.ndarray) -> None:
        self._key, self._slot, self.array = key, slot, array

    def __getstate__(self) -> tuple[int, int, int]:
        return self._key, self._slot, self.array.size

    def __setstate__(self, state: tuple[int, int, int]) -> None:
        self._key, self._slot, size = state
        self.array = Slots.known[self._key].lend(self._slot, size)
