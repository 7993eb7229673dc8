"""Tiny runs of train.py in forked processes, to be stopped, killed and resumed at chosen moments.

A run is 3 epochs of 4 steps on 16 images of 64 pixels and takes about a second: torch is imported once, in the process
that forks. Parent and child speak through a pipe, so nothing depends on how fast the machine is.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import hashlib
import importlib
import importlib.util
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import models.yolo
import train
from utils import signals
from utils.checkpoint import TrainState, load_checkpoint
from utils.errors import run_cli
from utils.keeper import Keeper

EPOCHS, BATCHES = 3, 4
PATIENCE = 60.0  # seconds of silence of a child before the test fails
SETTINGS = {"nominal_batch": 4, "warmup_epochs": 1, "close_mosaic": 2, "mosaic": 1, "mixup": 0.5}
CRASHED = 70  # the exit code of a child that raised something unforeseen

Hook = Callable[["Wire"], None]

# What a run imports when it first needs it: once here is quicker than once a child.
import faster_coco_eval  # noqa: E402, F401

if importlib.util.find_spec("tensorboard"):
    importlib.import_module("torch.utils.tensorboard")


@dataclass
class Wire:
    """The child's end of the pipe."""

    descriptor: int

    def say(self, *words: object) -> None:
        os.write(self.descriptor, (" ".join(map(str, words)) + "\n").encode())

    def signal_self(self, number: int, times: int = 1) -> None:
        """Say `signalled`, and send this process a signal here and now."""
        self.say("signalled")
        for _ in range(times):
            os.kill(os.getpid(), number)

    def block(self) -> None:
        """Say `waiting`, and wait for longer than any test does: the parent acts on it."""
        self.say("waiting")
        time.sleep(2 * PATIENCE)


@dataclass
class Trial:
    """A child that trains, in a session of its own. `end` is readable once it has ended."""

    pid: int
    pipe: int
    end: int
    log: Path
    buffer: bytes = b""
    words: list[str] = field(default_factory=list)

    def hear(self) -> str | None:
        """Wait for the next line that the child says; None when it has ended."""
        while b"\n" not in self.buffer:
            ready = select.select([self.pipe, self.end], [], [], PATIENCE)[0]
            if not ready:
                self.send(signal.SIGKILL)
                raise AssertionError(f"the child says nothing; it printed:\n{self.output()}")
            data = os.read(self.pipe, 65536) if self.pipe in ready else b""
            if not data:
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        self.words.append(line.decode())
        return self.words[-1]

    def expect(self, start: str) -> str:
        """Wait for the child to say a line that begins with `start`; return the line."""
        while (line := self.hear()) is not None:
            if line.startswith(start):
                return line
        raise AssertionError(f"the child never said {start!r}; it printed:\n{self.output()}")

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for the end; return the exit code, or minus the signal that killed it."""
        while self.hear() is not None:
            pass
        os.close(self.pipe)
        os.close(self.end)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def output(self) -> str:
        return self.log.read_text()

    def family(self) -> list[int]:
        """The processes of its session that live."""
        return [pid for pid in _processes() if pid != self.pid and _session(pid) == self.pid]


def make_data(root: Path) -> Path:
    """A data yaml of 16 training and 5 validation images of 64 pixels with one or two boxes each."""
    draw = np.random.default_rng(11)
    for split, count in (("train", 16), ("val", 5)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            image = draw.integers(90, 140, (64, 64, 3), np.uint8)
            rows = []
            for label in range(1 + number % 2):
                x, y = draw.integers(0, 40, 2)
                image[y : y + 20, x : x + 24] = (250, 5)[label]
                rows.append(f"{label} {(x + 12) / 64} {(y + 10) / 64} {24 / 64} {20 / 64}\n")
            cv2.imwrite(str(root / "images" / split / f"{number:02d}.png"), image)
            (root / "labels" / split / f"{number:02d}.txt").write_text("".join(rows))
    file = root / "tiny.yaml"
    file.write_text("train: images/train\nval: images/val\nnames: [square, bar]\n")
    return file


def new_run(data: Path, project: Path, *flags: str, **settings: float) -> list[str]:
    """The command line of a new run in `project`/exp."""
    fixed = ["--cfg", "yolo-t", "--imgsz", "64", "--device", "cpu", "--noplots", "--epochs", str(EPOCHS)]
    fixed += ["--data", str(data), "--project", str(project), "--save-minutes", "0"]
    fixed += [] if "--batch" in flags else ["--batch", "4"]
    fixed += [] if "--workers" in flags else ["--workers", "0"]
    return [*fixed, *flags, "--set", *(f"{key}={value}" for key, value in (SETTINGS | settings).items())]


def start(argv: list[str], log: Path, *hooks: Hook) -> Trial:
    """Fork a child that runs train.py with `argv`, as its entry point does; `hooks` are run in it before."""
    if not gc.get_freeze_count():
        gc.freeze()  # what is here now is not looked through, and so copied, by every child
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(writer)
        return Trial(pid, reader, os.pidfd_open(pid), log)
    code = CRASHED
    try:
        os.close(reader)
        code = _child(argv, log, [hook for hook in hooks], Wire(writer))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run(argv: list[str], log: Path, *hooks: Hook) -> Trial:
    """Start a child and wait for its end. Its exit code is in `trial.words[-1]`."""
    trial = start(argv, log, *hooks)
    trial.words.append(str(trial.wait()))
    return trial


def _child(argv: list[str], log: Path, hooks: list[Hook], wire: Wire) -> int:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # two workers, and perhaps one core
    for number in signals.STOPPING:
        signal.signal(number, signal.SIG_DFL)
    models.yolo.SIZES["t"] = (1 / 3, 1 / 64, 1024)
    signals.catch()
    for hook in hooks:
        hook(wire)
    try:
        run_cli(lambda: train.main(argv))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


# What a child can be told to do: hooks.


def after_steps(action: Callable[[Wire, int], None]) -> Hook:
    """Call `action(wire, number)` after each optimizer step of this process, counted from 1."""

    def hook(wire: Wire) -> None:
        original, count = Keeper.after_step, iter(range(1, 1_000_000))

        def after_step(keeper: Keeper) -> None:
            original(keeper)
            action(wire, next(count))

        Keeper.after_step = after_step  # type: ignore[method-assign]

    return hook


def stop_after(steps: int, number: int = signal.SIGTERM) -> Hook:
    """Signal the child right after its `steps`-th optimizer step."""
    return after_steps(lambda _, count: os.kill(os.getpid(), number) if count == steps else None)


def report_steps(wire: Wire) -> None:
    """Say `at EPOCH BATCH DIGEST` after every optimizer step and every save."""
    for name in ("after_step", "save"):
        _report(name, wire)


def _report(name: str, wire: Wire) -> None:
    original = getattr(Keeper, name)

    def wrapper(keeper: Keeper) -> None:
        original(keeper)
        wire.say("at", keeper.state.epoch, keeper.state.batch, digest(keeper.state.state_dict()))

    setattr(Keeper, name, wrapper)


def report_load(wire: Wire) -> None:
    """Say `loaded EPOCH BATCH DIGEST` of the state that a resumed run begins with."""
    original = TrainState.load_state_dict

    def load_state_dict(state: TrainState, saved: dict[str, Any], *others: bool) -> None:
        original(state, saved, *others)
        wire.say("loaded", state.epoch, state.batch, digest(state.state_dict()))

    TrainState.load_state_dict = load_state_dict  # type: ignore[method-assign]


def at_call(owner: Any, name: str, call: int, action: Callable[[Wire], None], after: bool = False) -> Hook:
    """Call `action(wire)` before, or after, the `call`-th call (from 1) of a function in this process."""

    def hook(wire: Wire) -> None:
        original, calls = getattr(owner, name), iter(range(1, 1_000_000))

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            due = next(calls) == call
            if due and not after:
                action(wire)
            result = original(*args, **kwargs)
            if due and after:
                action(wire)
            return result

        setattr(owner, name, wrapper)

    return hook


# What is compared.


def digest(state: dict[str, Any]) -> str:
    """SHA-256 over the names, types, shapes and bytes of a run's state; only the seconds it took are left out."""
    total = hashlib.sha256()
    for name, value in leaves(state):
        if name == "/progress/seconds":
            continue
        if isinstance(value, torch.Tensor):
            head = f"{name} {value.dtype} {tuple(value.shape)}"
            total.update(head.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        else:
            total.update(f"{name} {value!r}\n".encode())
    return total.hexdigest()


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is no dict or list, by its path; of empty ones the path alone."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        yield name, value
        return
    yield name, f"{type(value).__name__} of {len(value)}"
    for key, item in items:
        yield from leaves(item, f"{name}/{key}")


def last_state(folder: Path) -> dict[str, Any]:
    return load_checkpoint(folder / "weights" / "last.pt")["state"]


def rows(folder: Path) -> list[dict[str, str]]:
    """results.csv without the time, as text: equal to the last bit or not equal."""
    with (folder / "results.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if name != "time"} for row in csv.DictReader(file)]


def outcome(folder: Path) -> dict[str, Any]:
    """All that must not depend on what happened to a run."""
    best = load_checkpoint(folder / "weights" / "best.pt")
    shipped = {key: best[key] for key in ("weights", "epoch", "fitness", "names", "model")}
    return {"state": digest(last_state(folder)), "rows": rows(folder), "best": digest(shipped)}


# Processes.


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _session(pid: int) -> int:
    """The session of a process; -1 where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[3])
