"""Decoded images that loaders' workers share: none decodes what another has just decoded."""

from __future__ import annotations

import numpy as np

from data.memory import SharedMemory


class RecentImages:
    """The last decoded images of an epoch's order, in memory that the workers of all trainers of a machine share.

    The image at `place` of the order lies in slot `place % slots` until another takes the slot. Whoever misses one
    decodes it: the pixels are the same, so what is found here, which depends on the workers' pace, changes no sample.
    """

    def __init__(self, slots: int, size: int, path: str | None = None) -> None:
        """`size`: the bytes of the largest image.  `path`: of another process's, with as many slots of that size."""
        table = 3 * 8 * slots
        self._memory = SharedMemory(table + slots * size, path)
        # The image in a slot, by its number + 1, with its height and width; zeros while there is none.
        self._names = self._memory.array((slots, 3), np.int64)
        self._pixels = self._memory.array((slots, size), np.uint8, table)

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def path(self) -> str:
        """Where another process of this machine finds them."""
        return self._memory.path

    def get(self, place: int, number: int) -> np.ndarray | None:
        """Image `number`, uint8 `[h, w, 3]`, a copy, where its place still holds it."""
        slot = place % len(self)
        with self._memory.locked(slot):
            name, height, width = self._names[slot].tolist()
            if name != number + 1:
                return None
            return self._pixels[slot, : 3 * height * width].reshape(height, width, 3).copy()

    def put(self, place: int, number: int, image: np.ndarray) -> None:
        """Keep image `number`, uint8 `[h, w, 3]`, in place of what was there."""
        slot = place % len(self)
        with self._memory.locked(slot):
            self._names[slot] = 0  # a process that is killed here leaves no image under the name of another
            self._pixels[slot, : image.size] = image.reshape(-1)
            self._names[slot] = number + 1, *image.shape[:2]
