"""Memory that processes share: forked ones inherit it, others of the same user find it by a path."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # no POSIX system
    fcntl = None  # type: ignore[assignment]


class SharedMemory:
    """Zeros of a fixed size that processes read and write together, with locks.

    It is not bounded by /dev/shm (64 MB in many containers); what isn't written isn't taken.
    """

    def __init__(self, size: int, path: str | None = None) -> None:
        """path: that of another process's memory of this size, to be shared; None for memory of its own."""
        if path is None:
            path, release = memory_file(size)
            weakref.finalize(self, release)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._memory = mmap.mmap(self._descriptor, size)

    def array(self, shape: tuple[int, ...], dtype: type[np.generic], offset: int = 0) -> np.ndarray:
        """A part of it, from byte `offset` on, as an array."""
        return np.frombuffer(self._memory, dtype, math.prod(shape), offset).reshape(shape)

    @contextlib.contextmanager
    def locked(self, number: int = 0) -> Iterator[None]:
        """Lock `number` (0, 1, …) is this process's. The system takes it back from a process that ends."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, number)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, number)


def memory_file(size: int) -> tuple[str, Callable[[], None]]:
    """Zeros that any process of this user can map by a path: (path, function that gives the memory back)."""
    if hasattr(os, "memfd_create"):
        # Anonymous memory with a path: not bounded by /dev/shm (64 MB in many containers), and the kernel frees it
        # when the last process that maps it ends, however it ends.
        descriptor = os.memfd_create("lockstep")
        os.ftruncate(descriptor, max(size, 1))
        return f"/proc/{os.getpid()}/fd/{descriptor}", lambda: os.close(descriptor)
    descriptor, path = tempfile.mkstemp(prefix="lockstep-")
    os.ftruncate(descriptor, max(size, 1))
    os.close(descriptor)
    owner = os.getpid()

    def release() -> None:
        if os.getpid() == owner:  # not in a process that was forked
            Path(path).unlink(missing_ok=True)

    return path, release
