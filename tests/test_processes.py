"""Work over processes: the serial result, errors as they were, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import data.processes
from data.processes import WorkerDied, in_processes
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def square(number: int) -> int:
    if number == 13:
        raise UserError("no 13")
    if number == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def make(add: int) -> Callable[[int], tuple[int, int]]:
    return lambda number: (square(number) + add, os.getpid())


def large() -> Callable[[int], tuple[int, bytes]]:
    """More than a pipe holds: a process waits until it is taken."""
    return lambda number: (os.getpid(), bytes(200_000))


@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("length", [0, 1, 7, 12])
def test_results_come_in_order_from_as_many_processes(count: int, length: int) -> None:
    results = list(in_processes(partial(make, 5), range(length), count))
    assert [value for value, _ in results] == [number * number + 5 for number in range(length)]
    assert len({process for _, process in results}) == min(count, length) and os.getpid() not in dict(results).values()


def test_processes_that_start_anew_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.processes, "FORKS", False)
    assert [value for value, _ in in_processes(partial(make, 1), range(3), 2)] == [1, 2, 5]


def test_errors_are_raised_as_they_were() -> None:
    with pytest.raises(UserError, match="no 13"):
        list(in_processes(partial(make, 0), [1, 2, 13, 3], 2))
    with pytest.raises(WorkerDied) as caught:
        list(in_processes(partial(make, 0), [1, 2, 3, 14, 5, 6], 2))
    assert caught.value.item == 14


def alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_no_process_is_left_when_the_results_are_not_wanted() -> None:
    results = in_processes(large, range(10), 3)
    processes = {next(results)[0] for _ in range(3)}
    assert len(processes) == 3 and all(map(alive, processes))
    results.close()
    assert not any(map(alive, processes))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_with_a_parent_that_is_killed() -> None:
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
from data.processes import in_processes
print(*{process for process, _ in zip(in_processes(lambda: lambda i: (os.getpid(), bytes(99999))[0], range(9**6), 3),
      range(9))}, flush=True)
results = in_processes(lambda: lambda i: (os.getpid(), bytes(99999)), range(9**6), 3)
print(*[next(results)[0] for _ in range(3)], flush=True)
os.kill(os.getpid(), 9)
"""
    output = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, timeout=60)
    assert output.stderr == "" and len(output.stdout.split()) == 6
    for _ in range(100):
        if not any(alive(int(process)) for process in output.stdout.split()):
            return
        time.sleep(0.05)
    raise AssertionError("workers outlive their parent")
