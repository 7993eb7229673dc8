"""A flat array that grows in place: what it has outgrown goes back to the system, and nothing is there twice."""

from __future__ import annotations

import mmap

import numpy as np

SHARE = 0.25  # more than is needed; memory that was never written to is not taken
FIRST = 1 << 20  # bytes
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}


class Growing:
    """Bytes that are added to. The allocator of C would keep the pieces of a growing array for other uses."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, FIRST, **PRIVATE)
        self._size = 0

    def add(self, part: np.ndarray | bytes) -> None:
        data = part.tobytes() if isinstance(part, np.ndarray) else part
        end = self._size + len(data)
        if end > len(self._map):
            self._enlarge(int(end * (1 + SHARE)))
        self._map[self._size : end] = data
        self._size = end

    def array(self, kind: str) -> np.ndarray:
        """All that was added, as an array of this dtype, [N]; nothing can be added from now on."""
        return np.frombuffer(memoryview(self._map)[: self._size], kind)

    def _enlarge(self, size: int) -> None:
        try:
            self._map.resize(size)
        except (SystemError, OSError, ValueError):  # not every system can
            larger = mmap.mmap(-1, size, **PRIVATE)
            larger[: self._size] = self._map[: self._size]
            self._map.close()
            self._map = larger
