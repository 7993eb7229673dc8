"""How the pixels of a batch come from a worker to the trainer: through memory that both keep.

Torch makes a file in /dev/shm of each tensor: every page of it is new to the worker and to the trainer, and many
containers have 64 MB there in all. These slots are used again and again, and are no files.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator
from itertools import count
from typing import ClassVar

import numpy as np

from data.memory import SharedMemory


class Slots:
    """Room for the pixels of some batches, of at most `size` bytes each, which forked processes share."""

    known: ClassVar[weakref.WeakValueDictionary[int, Slots]] = weakref.WeakValueDictionary()
    _keys: ClassVar[count] = count()

    def __init__(self, slots: int, size: int) -> None:
        self._memory = SharedMemory(slots * size + slots)
        self._pixels = self._memory.array((slots, size), np.uint8)
        self._taken = self._memory.array((slots,), np.uint8, slots * size)
        self.key = next(self._keys)
        self.known[self.key] = self

    def take(self, size: int) -> Pixels:
        """In a worker: pixels to be filled and sent; in memory of their own where the trainer keeps all slots."""
        with self._memory.locked():  # among workers: the trainer never waits for it
            slot = int(self._taken.argmin())
            if not self._taken[slot]:
                self._taken[slot] = 1
                return Pixels(self._pixels[slot, :size], self.key, slot)
        return Pixels(np.empty(size, np.uint8))

    @contextlib.contextmanager
    def filling(self, size: int) -> Iterator[Pixels]:
        """As `take`; the slot is free again where an error keeps it from being filled."""
        pixels = self.take(size)
        try:
            yield pixels
        except BaseException:
            if pixels.slot is not None:
                self._taken[pixels.slot] = 0
            raise

    def lend(self, slot: int, size: int) -> np.ndarray:
        """In the trainer: a slot that was received. It is free again when nothing uses the array any more."""
        pixels = self._pixels[slot, :size]
        weakref.finalize(pixels, self._give_back, slot, os.getpid())
        return pixels

    def _give_back(self, slot: int, owner: int) -> None:
        if os.getpid() == owner:  # not in a process that was forked while the trainer used it
            self._taken[slot] = 0


class Pixels:
    """uint8 `[N]`. What is pickled is the slot where they lie, or all of them where it is none."""

    def __init__(self, array: np.ndarray, key: int = 0, slot: int | None = None) -> None:
        self.array, self._key, self.slot = array, key, slot

    def __getstate__(self) -> tuple[int, int, int] | np.ndarray:
        return self.array if self.slot is None else (self._key, self.slot, self.array.size)

    def __setstate__(self, state: tuple[int, int, int] | np.ndarray) -> None:
        if isinstance(state, np.ndarray):
            self.__init__(state)
        else:
            key, slot, size = state
            self.__init__(Slots.known[key].lend(slot, size), key, slot)
