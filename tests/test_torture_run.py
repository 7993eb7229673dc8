"""A run that is stopped, signalled, killed and resumed is the uninterrupted run, to the last bit."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pty
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import train
import val
from data.dataset import DetectionDataset
from tests import harness
from tests.harness import at_call
from utils.checkpoint import TrainState
from utils.errors import EXIT_STOPPED, EXIT_USAGE
from utils.loggers import CsvLogger

pytestmark = pytest.mark.torture
ROOT = Path(__file__).resolve().parents[1]

# accumulation -> batch size and nominal batch: 4 steps an epoch of one batch each, or 3 of 3, 3 and 2 batches
SHAPES = {1: ("4", 4), 3: ("2", 6)}
CLOSING = {"mosaic": 0, "closing": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return harness.make_data(tmp_path_factory.mktemp("data"))


def command(
    data: Path, project: Path, optimizer: str = "SGD", accumulate: int = 1, mosaic: str = "closing", *flags: str
) -> list[str]:
    batch, nominal = SHAPES[accumulate]
    flags = ("--optimizer", optimizer, "--batch", batch, *flags)
    return harness.new_run(data, project, *flags, nominal_batch=nominal, close_mosaic=CLOSING[mosaic])


def place(words: str) -> tuple[int, int]:
    """Epoch and batch of a child's line."""
    return int(words.split()[1]), int(words.split()[2])


References = dict[tuple, tuple[dict[tuple[int, int], str], dict[str, Any]]]


@pytest.fixture(scope="module")
def references() -> References:
    return {}


def reference(
    references: References, data: Path, folder: Path, *case: Any
) -> tuple[dict[tuple[int, int], str], dict[str, Any]]:
    """The uninterrupted run of a case: {(epoch, batch): digest of the state there}, and its outcome."""
    if case not in references:
        trial = harness.run(command(data, folder / "whole", *case), folder / "whole.log", harness.report_steps)
        assert trial.words.pop() == "0", trial.output()
        boundaries = {place(word): word.split()[-1] for word in trial.words}
        references[case] = boundaries, harness.outcome(folder / "whole" / "exp")
    return references[case]


CASES = list(itertools.product(("SGD", "Adam"), (1, 3), ("mosaic", "closing")))


@pytest.mark.parametrize(
    ("optimizer", "accumulate", "mosaic", "workers"),
    [(*case, workers) for case in CASES for workers in ("0", "2")]
    + [("SGD", 1, "closing", "changing"), ("Adam", 3, "closing", "changing")],
)
def test_stopped_at_every_step_boundary(data, tmp_path, references, optimizer, accumulate, mosaic, workers):
    """Each process takes one step: what it loads, and what the last one leaves, is what the whole run was there."""
    boundaries, expected = reference(references, data, tmp_path, optimizer, accumulate, mosaic)
    places = [key for key in boundaries if key[1]]
    assert len(places) == harness.EPOCHS * {1: 4, 3: 3}[accumulate]
    argv, folder, log = command(data, tmp_path, optimizer, accumulate, mosaic), tmp_path / "exp", tmp_path / "log"
    for number in range(len(places) + 1):
        chosen = str(2 * (number % 2)) if workers == "changing" else workers
        trial = harness.run([*argv, "--workers", chosen], log, harness.stop_after(1), harness.report_load)
        assert trial.words.pop() == str(0 if number == len(places) else EXIT_STOPPED), trial.output()
        if number:
            epoch, batch = places[number - 1]
            assert trial.words == [f"loaded {epoch} {batch} {boundaries[epoch, batch]}"]
        argv = ["--resume", str(folder)]
    assert harness.outcome(folder) == expected


def kill(wire: harness.Wire) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        (train, "evaluate_ema", 2, False),
        (train, "evaluate_ema", 2, True),
        (train, "end_epoch", 2, True),
        (CsvLogger, "log", 2, True),
        (train, "save_model", 1, True),
        (TrainState, "state_dict", 2, True),  # the save of the second epoch has begun
        (train, "save", 2, True),
        (train, "save", 3, True),  # nothing is left to train
    ],
)
def test_killed_between_an_epochs_last_step_and_its_end(data, tmp_path, references, owner, name, call, after):
    _, expected = reference(references, data, tmp_path, "SGD", 3, "closing")
    argv, log = command(data, tmp_path, "SGD", 3, "closing"), tmp_path / "log"
    trial = harness.run(argv, log, at_call(owner, name, call, kill, after))
    assert trial.words[-1] == str(-signal.SIGKILL), trial.output()
    folder = tmp_path / "exp"
    if (owner, name) == (train, "save_model"):  # the first epoch: nothing was saved yet
        trial = harness.run([*argv, "--exist-ok"], log)
    else:
        trial = harness.run(["--resume", str(folder)], log)
    if call == 3:
        assert trial.words[-1] == str(EXIT_USAGE) and "has trained all" in trial.output()
    else:
        assert trial.words[-1] == "0", trial.output()
    assert harness.outcome(folder) == expected


@pytest.mark.parametrize(("case", "minutes"), [(("SGD", 3, "closing"), "0.0000001"), (("Adam", 1, "mosaic"), "0")])
def test_killed_at_random_moments(data, tmp_path, references, case, minutes):
    """25 kills with a save at every step, 25 with one an epoch: what is found is always a state of the run."""
    boundaries, expected = reference(references, data, tmp_path, *case)
    draw, kills, runs = random.Random(minutes), 0, 0
    while kills < 25:
        runs, seen, code = runs + 1, (0, 0), -signal.SIGKILL
        folder, log = tmp_path / str(runs) / "exp", tmp_path / f"{runs}.log"
        new = [*command(data, folder.parent, *case), "--exist-ok", "--save-minutes", minutes]
        while code == -signal.SIGKILL:
            saved = (folder / "weights" / "last.pt").exists()
            argv = ["--resume", str(folder)] if saved else new
            trial = harness.start(argv, log, harness.report_load, harness.report_steps)
            alive = all(trial.hear() for _ in range(draw.randrange(8)))
            time.sleep(draw.uniform(0, 0.06 if trial.words else 0.3) if alive else 0)
            if kills < 25:
                trial.send(signal.SIGKILL)
            code = trial.wait()
            kills += code == -signal.SIGKILL
            for words in trial.words:
                assert words.split()[-1] == boundaries[place(words)], f"{words}: not a state of the run"
            if saved and trial.words:  # what was found is not older than one save interval
                assert place(trial.words[0]) >= (seen if minutes != "0" else (seen[0], 0))
            seen = max([seen, *map(place, trial.words)])
        # Killed after its last save, a run has nothing left to train.
        assert code == 0 or (code == EXIT_USAGE and "has trained all" in trial.output()), trial.output()
        assert harness.outcome(folder) == expected
    assert runs > 1


SIGNALS = {name: getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")}


def stopped(trial: harness.Trial, number: int | None = None, times: int = 1) -> None:
    """Signal the child where it waits, or take it that it signals itself, and hold it to five seconds."""
    trial.expect("signalled" if number is None else "waiting")
    begin = time.monotonic()
    for _ in range(times if number is not None else 0):
        trial.send(number)
    code = trial.wait()
    assert time.monotonic() - begin < 5
    assert code == EXIT_STOPPED, trial.output()
    assert trial.family() == []


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", SIGNALS)
def test_signalled_at_start_in_a_step_in_validation_in_a_save_and_waiting_for_data(
    data, tmp_path, references, name, times
):
    """One run that meets a signal, or two, in every place, and comes out as the one that met none."""
    case, (middle, end) = ("SGD", 3, "closing"), (6, 8)
    if times == 2:
        case, (middle, end) = ("Adam", 1, "mosaic"), (2, 4)
    boundaries, expected = reference(references, data, tmp_path, *case)
    number, folder, log = SIGNALS[name], tmp_path / "exp", tmp_path / "log"
    argv, resume = command(data, tmp_path, *case), ["--resume", str(folder)]

    def hit(wire: harness.Wire) -> None:
        wire.signal_self(number, times)

    blocked = at_call(train, "build_training", 1, harness.Wire.block)
    stopped(harness.start(argv, log, blocked), number, times)
    assert not folder.exists()
    # In a step; a second signal comes while the state is written.
    second = [at_call(torch, "save", 1, lambda _: os.kill(os.getpid(), number))] if times == 2 else []
    stopped(harness.start(argv, log, at_call(train, "clip_gradients", 2, hit), *second))
    # While a worker, or the trainer itself, waits for an image that does not come.
    blocked = at_call(DetectionDataset, "samples", 2, harness.Wire.block)
    trial = harness.start([*resume, "--workers", "2"], log, harness.report_load, blocked)
    stopped(trial, number, times)
    assert trial.words[0] == f"loaded 0 {middle} {boundaries[0, middle]}"
    stopped(harness.start([*resume, "--workers", "0"], log, blocked), number, times)
    # In validation: the epoch's last step is done, its end is not.
    trial = harness.start(resume, log, at_call(val, "detect", 1, hit))
    stopped(trial)
    assert not (folder / "results.csv").exists()
    # In the save at the epoch's end.
    trial = harness.start(resume, log, harness.report_load, at_call(TrainState, "state_dict", 2, hit))
    stopped(trial)
    assert trial.words[0] == f"loaded 0 {end} {boundaries[0, end]}" and len(harness.rows(folder)) == 1
    # During a resumed run's start.
    stopped(harness.start(resume, log, at_call(train, "open_output", 1, hit)))
    assert f"stopped by {name}, the state is saved; go on with: python train.py --resume {folder}" in log.read_text()
    trial = harness.run(resume, log, harness.report_load)
    assert trial.words[0] == f"loaded 1 0 {boundaries[1, 0]}" and trial.words[-1] == "0", trial.output()
    assert harness.outcome(folder) == expected


def test_a_signal_after_the_last_save_leaves_a_complete_run(data, tmp_path, references):
    _, expected = reference(references, data, tmp_path, "SGD", 3, "closing")
    hit = at_call(train, "report", 1, lambda wire: wire.signal_self(signal.SIGTERM))
    trial = harness.run(command(data, tmp_path, "SGD", 3, "closing"), tmp_path / "log", hit)
    assert trial.words[-1] == "0" and "when training was complete" in trial.output()
    assert harness.outcome(tmp_path / "exp") == expected


def test_a_live_process_keeps_others_out_and_a_dead_one_does_not(data, tmp_path, references):
    _, expected = reference(references, data, tmp_path, "SGD", 3, "closing")
    argv = [*command(data, tmp_path, "SGD", 3, "closing"), "--save-minutes", "0.0000001", "--exist-ok"]
    folder, resume = tmp_path / "exp", ["--resume", str(tmp_path / "exp")]
    block = harness.after_steps(lambda wire, count: wire.block() if count == 2 else None)
    first = harness.start([*argv, "--workers", "2"], tmp_path / "first.log", block)
    first.expect("waiting")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for second in (argv, resume):
        trial = harness.run(second, tmp_path / "second.log")
        assert trial.words[-1] == str(EXIT_USAGE)
        line = f"error: {folder}: process {first.pid} is training in it; wait for its end"
        assert trial.output().splitlines()[-1] == line
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert first.family() != []  # its workers have not noticed yet, and hold nothing
    trial = harness.run(resume, tmp_path / "third.log")
    assert trial.words[-1] == "0", trial.output()
    assert harness.outcome(folder) == expected


def test_the_same_seed_is_the_same_run_and_another_is_another(data, tmp_path, references):
    case = ("Adam", 1, "mosaic")
    boundaries, expected = reference(references, data, tmp_path, *case)
    trial = harness.run(command(data, tmp_path / "again", *case), tmp_path / "log", harness.report_steps)
    assert {place(word): word.split()[-1] for word in trial.words[:-1]} == boundaries
    assert harness.outcome(tmp_path / "again" / "exp") == expected
    harness.run([*command(data, tmp_path / "other", *case), "--seed", "1"], tmp_path / "log")
    assert harness.outcome(tmp_path / "other" / "exp")["state"] != expected["state"]


def test_the_state_names_all_that_a_run_is(data, tmp_path):
    harness.run(command(data, tmp_path), tmp_path / "log", harness.stop_after(1))
    components = harness.last_state(tmp_path / "exp")["components"]
    assert set(components) == {"model", "ema", "optimizer", "scheduler", "scaler", "stopping", "guard"}


def test_a_run_that_ended_for_want_of_a_better_epoch_stays_ended(data, tmp_path):
    """Killed after its last save, before its last word."""
    argv, log = [*command(data, tmp_path), "--patience", "1"], tmp_path / "log"

    def no_better(_: harness.Wire) -> None:
        train.fitness = lambda *_: 0.5

    trial = harness.run(argv, log, no_better, at_call(train, "save", 2, kill, after=True))
    assert trial.words[-1] == str(-signal.SIGKILL), trial.output()
    before = harness.outcome(tmp_path / "exp")
    assert len(before["rows"]) == 2
    trial = harness.run(["--resume", str(tmp_path / "exp")], log)
    assert trial.words[-1] == str(EXIT_USAGE) and "stopped early, after epoch 2 of 3" in trial.output()
    assert harness.outcome(tmp_path / "exp") == before


def test_other_data_is_refused_unless_forced(tmp_path):
    data = harness.make_data(tmp_path / "data")
    argv, folder, log = command(data, tmp_path), tmp_path / "exp", tmp_path / "log"
    assert harness.run(argv, log, harness.stop_after(2)).words[-1] == str(EXIT_STOPPED)
    label = data.parent / "labels" / "train" / "00.txt"
    label.write_text(label.read_text().replace("0 0.", "1 0."))
    threads = at_call(train, "build_data", 1, lambda _: torch.set_num_threads(2))
    trial = harness.run(["--resume", str(folder)], log, threads)
    assert trial.words[-1] == str(EXIT_USAGE)
    (line,) = [line for line in trial.output().splitlines() if line.startswith("error")]
    assert "data/train was" in line and "device/threads was 1, is 2" in line and "data/val" not in line
    trial = harness.run(["--resume", str(folder), "--force"], log)
    assert trial.words[-1] == "0" and "warning: data/train was" in trial.output()
    assert len(harness.rows(folder)) == harness.EPOCHS


def test_two_hundred_epochs_leave_memory_and_handles_flat(data, tmp_path):
    def report(wire: harness.Wire) -> None:
        original = train.save

        def save(*args: Any) -> None:
            original(*args)
            workers = [process.pid for process in multiprocessing.active_children()]
            own = proc_status("self")
            resident = own["VmRSS"] + sum(proc_status(pid)["VmRSS"] for pid in workers)
            handles = len(os.listdir("/proc/self/fd"))
            wire.say("at", resident, own["RssShmem"], handles, own["Threads"], len(workers))

        train.save = save

    flags = ("--epochs", "200", "--workers", "1", "--patience", "0")
    trial = harness.run(command(data, tmp_path, "SGD", 1, "mosaic", *flags), tmp_path / "log", report)
    assert trial.words.pop() == "0", trial.output()
    facts = [[int(word) for word in words.split()[1:]] for words in trial.words]
    assert len(facts) == 200 and facts[-1][-1] == 2
    growth = [max(column) - column[0] for column in zip(*facts[9:], strict=True)]
    assert growth[0] < 6144 and growth[1] < 512, f"kilobytes, resident and shared: {growth}"
    assert growth[2:] == [0, 0, 0], f"handles, threads, processes: {growth}"


def proc_status(pid: int | str) -> dict[str, int]:
    """The numbers of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    words = [(line.partition(":")[0], line.split()[1]) for line in lines if len(line.split()) > 1]
    return {name: int(word) for name, word in words if word.isdecimal()}


def on_terminal(argv: list[str], until: bytes) -> tuple[int, int]:
    """Start train.py on a terminal of its own and wait for the output to hold `until`: (process, terminal)."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        for number in (signal.SIGINT, signal.SIGHUP):  # ignored in a script's background jobs
            signal.signal(number, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "train.py", *argv])
    seen = b""
    while until not in seen:
        seen += os.read(terminal, 4096)
    return pid, terminal


@pytest.mark.parametrize("closed", [False, True])
def test_on_a_terminal(data, tmp_path, closed):
    """Ctrl-C prints how to go on; a terminal that is closed is no reason to lose anything."""
    argv = command(data, tmp_path, "SGD", 1, "mosaic", "--epochs", "100", "--workers", "1")
    argv[argv.index("yolo-t")] = "yolo-n"
    pid, terminal = on_terminal(argv, b"mAP50-95")
    begin, seen = time.monotonic(), b""
    if closed:
        os.close(terminal)
    else:
        os.write(terminal, b"\x03")
        with contextlib.suppress(OSError):  # how the end of a terminal reads
            while data := os.read(terminal, 4096):
                seen += data
        os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert time.monotonic() - begin < 5
    assert code == EXIT_STOPPED, seen.decode()
    assert harness.last_state(tmp_path / "exp")["progress"]["epoch"] >= 1
    if not closed:
        line = f"stopped by SIGINT, the state is saved; go on with: python train.py --resume {tmp_path / 'exp'}"
        assert seen.decode().splitlines()[-1] == line
        assert b"Traceback" not in seen
