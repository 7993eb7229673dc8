"""Work spread over processes, its results in order: for what Python computes, which threads can't speed up."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from utils import signals
from utils.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Forking takes milliseconds and shares what is in memory; elsewhere a process starts anew and imports all again.
FORKS = sys.platform == "linux"
MOST = 16


class WorkerDied(UserError):
    """A process ended while it worked on `item`: out of memory, or killed."""

    def __init__(self, item: Any, text: str = "a worker process ended: the memory may be too short") -> None:
        super().__init__(text)
        self.item = item


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(make: Callable[[], Callable[[Item], Result]], items: Sequence[Item], count: int) -> Iterator[Result]:
    """Yield `make()(item)` for every item, in order, computed by `count` processes.

    Each process calls `make` once. Process k takes the items k, k + count, …, so that no queue is needed; one that is
    ahead waits until its results are taken. What `make` holds and the results must pickle. An exception of the work is
    raised here. Raises `WorkerDied` where a process ends before its work does.
    """
    if not items:
        return
    context = multiprocessing.get_context("fork" if FORKS else "spawn")
    count = min(count, len(items))
    readers: list[Connection] = []
    workers = []
    try:
        with signals.deferred():  # a process that is half started could not be ended below
            for k in range(count):
                reader, writer = context.Pipe(duplex=False)
                readers.append(reader)
                inherited = readers if FORKS else []
                worker = context.Process(target=_work, args=(make, items[k::count], writer, inherited), daemon=True)
                workers.append(worker)
                worker.start()
                writer.close()
        del make, worker  # the processes have what they need, and here it may be large
        for i, item in enumerate(items):
            try:
                result = readers[i % count].recv()
            except (EOFError, ConnectionResetError):
                raise WorkerDied(item) from None
            if isinstance(result, _Failure):
                raise result.error
            yield result
    finally:
        signals.kill([worker for worker in workers if worker.pid is not None])
        for reader in readers:
            reader.close()


class _Failure:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _work(
    make: Callable[[], Callable[[Any], Any]], items: Sequence[Any], writer: Connection, inherited: Sequence[Connection]
) -> None:
    for reader in inherited:  # as long as any process holds one, a worker would not notice that its parent is gone
        reader.close()
    signals.leave_to_parent()
    try:
        work = make()
        for item in items:
            writer.send(work(item))
    except (BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone
    except Exception as error:
        writer.send(_Failure(error))
