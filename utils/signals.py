"""Signals: the only place that handles them. One asks a run to stop; the run ends where its state is whole."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.process import BaseProcess

from utils.errors import Stopped

# A scheduler's notice, Ctrl-C, a closed terminal, and what Slurm's `--signal=USR1` sends. SIGQUIT (Ctrl-\) stays as it
# is: it ends the process at once.
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name))

INTERRUPT = (signal.SIGINT,)  # Ctrl-C, for programs with no state to save


class _Stop:
    """The process's one request to stop. `at_once`: the handler itself may raise `Stopped`."""

    signal = ""
    at_once = False
    process = 0


def catch() -> None:
    """From now on a signal raises `Stopped`: at once, or where a held section lets it. Call in the main thread.

    What was ignored when the program started (by `nohup`, or in the background of a script) stays ignored. Only the
    first signal does something: the run is ending already when the second comes.
    """
    _Stop.signal, _Stop.at_once, _Stop.process = "", True, os.getpid()
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _note)


def end_at_once(code: int, numbers: Iterable[int] = STOPPING) -> None:
    """From now on a signal ends the process with a word and the code: for while its modules are loaded.

    Nothing is open then that would have to be saved or closed, and an exception would end as some module's traceback.
    """

    def end(number: int, _frame: object) -> None:
        if number == getattr(signal, "SIGHUP", None):
            _leave_terminal()
        with contextlib.suppress(OSError):
            os.write(2, f"stopped by {signal.Signals(number).name} before anything was begun\n".encode())
        os._exit(code)

    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def as_usual() -> None:
    """End what `end_at_once` began for SIGINT: it is Python's `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def requested() -> bool:
    """Has a signal asked this process to stop?"""
    return bool(_Stop.signal)


def check() -> None:
    """Raise `Stopped` if a signal asked for it."""
    if _Stop.signal:
        _Stop.at_once = False
        if _Stop.signal == "SIGHUP":
            _leave_terminal()  # when the signal came, the terminal may still have looked alive
        raise Stopped(f"stopped by {_Stop.signal}")


def hold() -> None:
    """From now on a signal is only noted, until `allow` or within `interruptible`."""
    _Stop.at_once = False


def allow() -> None:
    """End what `hold` began; nothing is raised for a signal that came in between: see `check`."""
    _Stop.at_once = _Stop.process == os.getpid() and not _Stop.signal


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Stopped` here for a signal that came before or comes now: what runs inside leaves nothing half done."""
    before = _Stop.at_once
    try:
        allow()
        check()
        yield
    finally:
        _Stop.at_once = before and not _Stop.signal


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Raise for a signal that comes now only at the end: what runs inside is short and must not be left half done."""
    before = _Stop.at_once
    hold()
    try:
        yield
    finally:
        _Stop.at_once = before
    if before:
        check()


def leave_to_parent() -> None:
    """Take no notice of what stops a run: for its worker processes, which the run ends itself once it has saved.

    Schedulers signal every process of a job; Ctrl-C and `timeout` signal the whole process group, which is left, too.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def kill(processes: Iterable[BaseProcess]) -> None:
    """End child processes that have nothing to lose, whatever they do, and wait for their end."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(timeout=2)  # one that waits for a dead disk dies when the disk answers


def ignore_deaths() -> None:
    """Take no notice of child processes that end: torch would raise wherever the main thread is, in a save perhaps.

    Call after torch has set its handler, which it does once. It finds out anyway when it waits for a dead worker.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _note(number: int, _frame: object) -> None:
    if _Stop.process != os.getpid():  # a forked process that has not yet set its own handlers
        return
    if number == getattr(signal, "SIGHUP", None):
        _leave_terminal()
    _Stop.signal = _Stop.signal or signal.Signals(number).name
    if _Stop.at_once:
        check()


def _leave_terminal() -> None:
    """Send what is printed on a terminal that is gone to nowhere: writing to it would be an error before the save."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), descriptor)
