"""utils/signals.py: what a signal does, where; in this process, whose own handlers are put back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils import signals
from utils.errors import EXIT_INTERRUPTED, EXIT_STOPPED, Stopped, run_cli

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in signals.STOPPING}
    for number in signals.STOPPING:
        signal.signal(number, signal.SIG_DFL)
    yield
    signals.hold()
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._Stop.signal = ""


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_signal_is_raised_at_once_and_only_once(number: int) -> None:
    signals.catch()
    assert not signals.requested()
    with pytest.raises(Stopped, match=f"stopped by {signal.Signals(number).name}"):
        send(number)
    send(number)  # the run is ending: nothing breaks that off
    assert signals.requested()


def test_held_signals_wait_for_a_check() -> None:
    signals.catch()
    signals.hold()
    send(signal.SIGTERM)
    send(signal.SIGINT)
    assert signals.requested()
    signals.allow()
    with pytest.raises(Stopped, match="stopped by SIGTERM"):  # the first one counts
        signals.check()


def test_what_is_interruptible_is_left_for_a_signal_that_came_before_or_comes_now() -> None:
    signals.catch()
    signals.hold()
    with signals.interruptible():
        pass
    reached = False
    with pytest.raises(Stopped), signals.interruptible():
        reached = True
        send(signal.SIGUSR1)
        pytest.fail("went on")
    assert reached
    with pytest.raises(Stopped), signals.interruptible():
        pytest.fail("began")


def test_after_what_is_interruptible_signals_are_held_again() -> None:
    signals.catch()
    signals.hold()
    with signals.interruptible():
        pass
    send(signal.SIGHUP)
    assert signals.requested()


def test_what_is_deferred_is_finished_first() -> None:
    signals.catch()
    done = False
    with pytest.raises(Stopped), signals.deferred():
        send(signal.SIGTERM)
        done = True
    assert done


def test_what_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    signals.catch()
    send(signal.SIGHUP)
    assert not signals.requested()


def test_without_catch_nothing_is_interruptible_or_held() -> None:
    with signals.interruptible():
        signals.check()
    assert all(signal.getsignal(number) == signal.SIG_DFL for number in signals.STOPPING)


def test_a_fork_does_not_answer_for_its_parent() -> None:
    signals.catch()
    child = os.fork()
    if child == 0:
        send(signal.SIGTERM)  # noted by nobody
        os._exit(int(signals.requested()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_except_exception_holds_a_stop_up() -> None:
    def main() -> None:
        try:
            raise Stopped("stopped by SIGTERM")
        except Exception:
            pytest.fail("held up")

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code == EXIT_STOPPED


def test_kill_ends_processes_that_would_not_end() -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_stubborn) for _ in range(2)]
    for process in processes:
        process.start()
    begin = time.monotonic()
    signals.kill(processes)
    assert time.monotonic() - begin < 2
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2


def _stubborn() -> None:
    signals.leave_to_parent()
    time.sleep(60)


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_signal_while_train_py_imports_ends_it_with_its_code(tmp_path: Path, number: int) -> None:
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(number)
        assert process.wait(30) == EXIT_STOPPED
        said = f"stopped by {signal.Signals(number).name} before anything was begun\n"
        assert process.stderr.read().decode() == said


@pytest.mark.parametrize("program", ["val.py", "detect.py"])
def test_ctrl_c_while_val_and_detect_import_ends_them_with_a_word(tmp_path: Path, program: str) -> None:
    for name in ("cv2", "numpy"):  # whichever is first
        (tmp_path / f"{name}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, str(ROOT / program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == EXIT_INTERRUPTED
        assert process.stderr.read() == b"stopped by SIGINT before anything was begun\n"


def test_after_the_imports_ctrl_c_is_a_keyboard_interrupt_again() -> None:
    signals.end_at_once(9, [signal.SIGINT])
    signals.as_usual()
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # by nohup: nothing takes that back
    signals.end_at_once(9, [signal.SIGINT])
    signals.as_usual()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
