"""Saves killed, cut off, refused and corrupted at every point: a sound checkpoint always stands, and a whole table."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_checkpoint import DESCRIPTION, SHIPPED, equal, run
from utils.checkpoint import Damaged, TrainState, load_checkpoint, load_state, save_model, save_state
from utils.errors import UserError
from utils.loggers import CsvLogger

pytestmark = pytest.mark.torture

STATES = [run(steps=steps) for steps in range(5)]
KILLED_AT = "openat,write,fsync,rename,link,unlink,close,lseek"
LAST, PREVIOUS, BEST = "weights/last.pt", "weights/last.previous.pt", "weights/best.pt"
RESULTS = "results.csv"


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return state.components["ema"].module.state_dict()


def row(epoch: int) -> dict[str, float]:
    return {"time": epoch / 3, "train/box_loss": 1 / epoch, "metrics/mAP50": epoch / 7}


def save_last(folder: Path, epoch: int) -> None:
    save_state(folder / LAST, STATES[epoch], DESCRIPTION)


def save_best(folder: Path, epoch: int) -> None:
    save_model(folder / BEST, weights(STATES[epoch]), {**SHIPPED, "epoch": epoch})


def log(folder: Path, epoch: int) -> None:
    CsvLogger(folder / RESULTS).log(epoch, row(epoch))


def end_epoch(folder: Path, epoch: int) -> None:
    """What a run writes after an epoch, in its order."""
    log(folder, epoch)
    save_best(folder, epoch)
    save_last(folder, epoch)


def after(folder: Path, epochs: int) -> Path:
    """Make a run's folder as it stands after some epochs."""
    (folder / "weights").mkdir(parents=True)
    for epoch in range(1, epochs + 1):
        end_epoch(folder, epoch)
    return folder


def leave_crumbs(folder: Path) -> None:
    """What an earlier kill left: half a file, and a link that was not yet renamed."""
    (folder / "weights/.last.pt.tmp").write_bytes(b"PK\3\4half of it")
    os.link(folder / LAST, folder / "weights/.last.pt.link")


@dataclass
class Scenario:
    """A run after `epochs` epochs, in which `act` writes something of the next one."""

    epochs: int
    act: Callable[[Path, int], None]
    crumbs: bool = False

    def start(self, folder: Path) -> Path:
        after(folder, self.epochs)
        if self.crumbs:
            leave_crumbs(folder)
        return folder


SCENARIOS = {
    "first state": Scenario(0, save_last),
    "second state": Scenario(1, save_last),
    "third state": Scenario(2, save_last),
    "state after a crash": Scenario(2, save_last, crumbs=True),
    "first model": Scenario(0, save_best),
    "next model": Scenario(2, save_best),
    "first row": Scenario(0, log),
    "next row": Scenario(2, log),
    "whole epoch": Scenario(2, end_epoch),
}


# strace of a forked child


@pytest.fixture(scope="module")
def strace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of strace, where it is there and may trace. What a first save imports late is then imported."""
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is not installed")
    probe = subprocess.run([path, "-o", os.devnull, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"strace may not trace: {probe.stderr.strip()}")
    after(tmp_path_factory.mktemp("warm") / "run", 2)
    return path


def child_of(act: Callable[[], None], go: int, ready: int, answer: socket.socket) -> None:
    """What the forked child does: wait until it is traced, act, and say how it went by a call that no test disturbs."""
    try:
        os.write(ready, b"r")
        os.read(go, 1)
        try:
            act()
            result = {"saved": True}
        except UserError as error:
            result = {"error": str(error)}
        except BaseException:
            result = {"crash": traceback.format_exc()}
        answer.send(json.dumps(result).encode())
    finally:
        os._exit(0)


def traced(strace: str, options: list[str], act: Callable[[], None]) -> dict[str, Any]:
    """Run `act` in a forked child under strace.

    Returns:
        `saved`, or `error` (a UserError's text), or `crash` (a traceback); `killed` where SIGKILL ended it.
    """
    go_read, go_write = os.pipe()
    ready_read, ready_write = os.pipe()
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        child_of(act, go_read, ready_write, there)
    try:
        os.read(ready_read, 1)
        command = [strace, "-s", "1000000", *options, "-p", str(pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
            assert tracer.stderr is not None and b"attached" in tracer.stderr.readline()
            os.write(go_write, b"g")
            _, status = os.waitpid(pid, 0)
            pid = 0
            tracer.stderr.read()
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for descriptor in (go_read, go_write, ready_read, ready_write):
            os.close(descriptor)
        there.close()
        answer = here.recv(100_000)
        here.close()
    if os.WIFSIGNALED(status):
        return {"killed": os.WTERMSIG(status) == signal.SIGKILL}
    return json.loads(answer)


def count_calls(strace: str, names: str, scenario: Scenario, folder: Path) -> Counter[str]:
    """How often each system call is made in a scenario."""
    work, log_file = scenario.start(folder / "count"), folder / "count.txt"
    result = traced(
        strace, ["-e", f"trace={names}", "-o", str(log_file)], lambda: scenario.act(work, scenario.epochs + 1)
    )
    assert result == {"saved": True}
    return Counter(re.findall(r"^(\w+)\(", log_file.read_text(), re.MULTILINE))


# What must hold


def table(epochs: int, folder: Path) -> bytes:
    """The bytes of results.csv after some epochs, as an undisturbed run writes them."""
    folder.mkdir(exist_ok=True)
    for epoch in range(1, epochs + 1):
        log(folder, epoch)
    path = folder / RESULTS
    return path.read_bytes() if path.exists() else b""


def state_in(folder: Path) -> int | None:
    """The epoch of the state that resuming takes, all of which must be as it was saved; None without one."""
    if not (folder / LAST).exists() and not (folder / PREVIOUS).exists():
        return None
    content = load_state(folder / LAST)
    epoch = content["state"]["progress"]["epoch"]
    assert equal(content["state"], STATES[epoch].state_dict())
    return epoch


def model_in(folder: Path) -> int | None:
    if not (folder / BEST).exists():
        return None
    content = load_checkpoint(folder / BEST)
    assert equal(content["weights"], dict(weights(STATES[content["epoch"]])))
    return content["epoch"]


def rows_in(folder: Path) -> int:
    """Rows of results.csv, each of which must be whole."""
    path = folder / RESULTS
    if not path.exists():
        return 0
    rows = CsvLogger(path)._rows
    for epoch, cells in enumerate(rows, 1):
        assert int(cells["epoch"]) == epoch and float(cells["time"]) == row(epoch)["time"]
    return len(rows)


def check_folder(folder: Path, before: int, act: Callable[[Path, int], None]) -> None:
    """Everything is as it was after epoch `before`, or one further: never less, never half."""
    old, new = before or None, before + 1
    allowed = {
        save_last: (state_in,),
        save_best: (model_in,),
        log: (rows_in,),
        end_epoch: (state_in, model_in, rows_in),
    }
    for look in (state_in, model_in, rows_in):
        expected = (old, new) if look in allowed[act] else (old,)
        assert (look(folder) or None) in expected, look.__name__
    if (folder / PREVIOUS).exists():
        assert load_checkpoint(folder / PREVIOUS)["state"]["progress"]["epoch"] in (before - 1, before)


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_system_call_a_sound_state_stands(strace: str, tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    calls = count_calls(strace, KILLED_AT, scenario, tmp_path)
    assert calls["write"] and calls["fsync"] >= 2 and calls["rename"]
    points = [(call, number) for call, count in calls.items() for number in range(1, count + 1)]
    assert len(points) >= 12
    for call, number in points:
        folder = scenario.start(tmp_path / f"{call}{number}")
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}", "-o", os.devnull]
        result = traced(strace, inject, lambda folder=folder: scenario.act(folder, scenario.epochs + 1))
        assert result == {"killed": True}, (call, number)
        check_folder(folder, scenario.epochs, scenario.act)
        end_epoch(folder, scenario.epochs + 1)
        assert state_in(folder) == model_in(folder) == rows_in(folder) == scenario.epochs + 1
        assert left_over(folder) == [], (call, number)
        shutil.rmtree(folder)


# Power loss


@dataclass
class Inode:
    """A file's content: what is on disk for sure, and what was written since."""

    durable: bytes = b""
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def content(self, kept: int, cut: bool = False) -> bytes:
        """The content with the first `kept` pending writes, of the last of them only half if `cut`."""
        data = bytearray(self.durable)
        for number, (offset, part) in enumerate(self.pending[:kept]):
            part = part[: len(part) // 2] if cut and number == kept - 1 else part
            data[len(data) :] = bytes(max(offset - len(data), 0))
            data[offset : offset + len(part)] = part
        return bytes(data)

    def versions(self) -> set[bytes]:
        """What may be found after a power cut: nothing of the new, all, a part, or a block lost in the middle."""
        count = len(self.pending)
        found = {self.content(0), self.content(count), self.content(count, cut=True), self.content(count // 2)}
        if count:
            found.add(bytes(len(self.content(count))))  # its length was on disk before its blocks
        return found


@dataclass
class Disk:
    """A disk as it is for sure, and what may be on it: names change at once only when their folder is flushed."""

    inodes: list[Inode] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)  # as the program sees them
    durable: dict[str, int] = field(default_factory=dict)
    pending: list[dict[str, int | None]] = field(default_factory=list)  # changes of names not yet flushed
    position: dict[int, int] = field(default_factory=dict)

    def rename(self, changes: dict[str, int | None]) -> None:
        self.pending.append(changes)
        for name, inode in changes.items():
            if inode is None:
                self.names.pop(name, None)
            else:
                self.names[name] = inode

    def flush(self, folder: str) -> None:
        kept = []
        for changes in self.pending:
            if all(os.path.dirname(name) == folder for name in changes):
                apply(self.durable, changes)
            else:
                kept.append(changes)
        self.pending = kept

    def after_power_loss(self) -> Iterator[dict[str, bytes]]:
        """Every folder that may be found: any choice of unflushed changes of names, any version of unflushed files."""
        for chosen in itertools.product((True, False), repeat=len(self.pending)):
            names = dict(self.durable)
            for changes, kept in zip(self.pending, chosen, strict=True):
                if kept:
                    apply(names, changes)
            used = sorted(set(names.values()))
            for contents in itertools.product(*(sorted(self.inodes[inode].versions()) for inode in used)):
                found = dict(zip(used, contents, strict=True))
                yield {name: found[inode] for name, inode in names.items()}


def apply(names: dict[str, int], changes: dict[str, int | None]) -> None:
    for name, inode in changes.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def unescape(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def replay(lines: list[str], root: Path) -> Iterator[tuple[int, Disk]]:
    """Play a trace back; yield the epochs saved so far and the disk after each call that changed it."""
    disk, files, saved = Disk(), {}, 0
    for line in lines:
        match = re.match(r"(\w+)\((.*)\)\s+= (-?\d+)", line)
        if match is None or match[3].startswith("-") and match[1] != "access":
            continue
        call, arguments, result = match[1], match[2], int(match[3])
        paths = [unescape(text).decode(errors="replace") for text in re.findall(r'"((?:\\x..)*)"', arguments)]
        if call == "access" and paths[0].startswith("/saved/"):
            saved = int(paths[0].rpartition("/")[2])
            yield saved, disk
            continue
        if call == "openat" and "O_CREAT" in arguments and paths[0].startswith(str(root)):
            if paths[0] not in disk.names:
                disk.inodes.append(Inode())
                disk.rename({paths[0]: len(disk.inodes) - 1})
            else:
                disk.inodes[disk.names[paths[0]]] = Inode()  # truncated: at worst nothing is left
            files[result], disk.position[result] = disk.names[paths[0]], 0
        elif call == "openat":
            files[result] = paths[0]
        elif call in ("write", "lseek", "fsync") and (descriptor := int(arguments.split(",")[0])) in files:
            if call == "fsync" and isinstance(files[descriptor], str):
                disk.flush(files[descriptor])
            elif call == "fsync":
                inode = disk.inodes[files[descriptor]]
                inode.durable, inode.pending = inode.content(len(inode.pending)), []
            elif call == "lseek":
                disk.position[descriptor] = result
            else:
                data = unescape(re.search(r'"((?:\\x..)*)"', arguments)[1])[:result]
                disk.inodes[files[descriptor]].pending.append((disk.position[descriptor], data))
                disk.position[descriptor] += result
        elif call == "rename" and disk.names[paths[0]] != disk.names.get(paths[1]):
            disk.rename({paths[1]: disk.names[paths[0]], paths[0]: None})
        elif call == "link":
            disk.rename({paths[1]: disk.names[paths[0]]})
        elif call == "unlink":
            disk.rename({paths[0]: None})
        yield saved, disk


def test_after_a_power_loss_at_any_moment_what_was_saved_is_there(strace: str, tmp_path: Path) -> None:
    """Four epochs' writes; files not flushed are whole, empty, cut or zeros; names not flushed are there or not."""
    root, trace = tmp_path / "run", tmp_path / "trace.txt"
    (root / "weights").mkdir(parents=True)

    def train() -> None:
        for epoch in range(1, 5):
            end_epoch(root, epoch)
            os.access(f"/saved/{epoch}", os.F_OK)

    names = "openat,write,lseek,fsync,rename,link,unlink,access"
    assert traced(strace, ["-xx", "-e", f"trace={names}", "-o", str(trace)], train) == {"saved": True}
    seen: set[tuple[int, frozenset[tuple[str, bytes]]]] = set()
    for saved, disk in replay(trace.read_text().splitlines(), root):
        for files in disk.after_power_loss():
            state = (saved, frozenset(files.items()))
            if state not in seen:
                seen.add(state)
                check_after_power_loss(root, saved, files)
    assert len(seen) >= 64 and {saved for saved, _ in seen} == {0, 1, 2, 3, 4}


def check_after_power_loss(root: Path, saved: int, files: dict[str, bytes]) -> None:
    shutil.rmtree(root)
    (root / "weights").mkdir(parents=True)
    for name, content in files.items():
        Path(name).write_bytes(content)
    assert (state_in(root) or 0) in (saved, saved + 1)
    assert (model_in(root) or 0) in (saved, saved + 1)
    assert rows_in(root) in (saved, saved + 1) and rows_in(root) >= (state_in(root) or 0)


# Disks that refuse


FAULTS = [
    *((call, error) for call in ("openat", "write", "fsync", "rename") for error in ("ENOSPC", "EIO", "EROFS")),
    ("link", "EPERM"),
    ("close", "EIO"),
]


def saved_size(act: Callable[[Path, int], None], epoch: int, folder: Path) -> int:
    """Bytes of what `act` writes, found by writing it where nothing is in the way."""
    work = after(folder, epoch - 1)
    act(work, epoch)
    return (work / {save_last: LAST, save_best: BEST, log: RESULTS}[act]).stat().st_size


@pytest.mark.parametrize("name", ["second state", "third state", "next model", "next row"])
def test_a_disk_that_refuses_leaves_what_stood(strace: str, tmp_path: Path, name: str) -> None:
    """Each call in turn fails with each error; each write in turn, and then all, are said to be shorter than asked."""
    scenario = SCENARIOS[name]
    act, epoch = scenario.act, scenario.epochs + 1
    calls = count_calls(strace, ",".join({call for call, _ in FAULTS}), scenario, tmp_path)
    size = saved_size(act, epoch, tmp_path / "size")
    cases = [
        *((call, f"error={error}:when={n}") for call, error in FAULTS for n in range(1, calls[call] + 1)),
        *((call, f"error={error}:when=1+") for call, error in FAULTS if calls[call]),
        *(("write", f"retval=1:when={n}") for n in range(1, calls["write"] + 1)),
    ]
    assert len(cases) >= 20
    refused = 0
    for number, (call, fault) in enumerate(cases):
        folder = scenario.start(tmp_path / str(number))
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:{fault}", "-o", os.devnull]
        result = traced(strace, inject, lambda folder=folder: act(folder, epoch))
        assert result.keys() <= {"saved", "error"}, (call, fault, result)
        check_folder(folder, scenario.epochs, act)
        assert left_over(folder) == [], (call, fault)
        if "error" in result:
            refused += 1
            assert result["error"].startswith(f"{folder}/") and "\n" not in result["error"], (call, fault)
            said = re.search(r"could not be (read|written) \((.*?)\)(.*)", result["error"])
            assert said is not None and said[2] == reason(fault), (call, fault, result["error"])
            assert said[1] == "read" or said[3].startswith(f": it needs {size:,} bytes"), (call, fault, result["error"])
        else:
            assert call in ("link", "rename"), (call, fault, "the second name of the state before is all it may cost")
        shutil.rmtree(folder)
    assert refused >= 18


def reason(fault: str) -> str:
    name = re.match(r"error=(\w+)", fault)
    return os.strerror(getattr(errno, name[1])) if name else "the system took fewer bytes than it said"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_of_64_kb_fills_up(small_disk: Path, tmp_path: Path) -> None:
    folder = small_disk / "run"
    after(folder, 2)
    wide = run(width=400, steps=1)
    save_state(tmp_path / "elsewhere.pt", wide, DESCRIPTION)
    size = (tmp_path / "elsewhere.pt").stat().st_size
    assert size > 65_536
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for _ in range(3):
        with pytest.raises(UserError) as error:
            save_state(folder / LAST, wide, DESCRIPTION)
        words = (
            f"{folder / LAST}: the checkpoint could not be written (No space left on device): it needs {size:,} bytes"
        )
        assert str(error.value).startswith(words) and str(error.value).endswith("; the one before it stands")
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(UserError, match=r"results\.csv: the table of results could not be written \(No space"):
        log(folder, 3)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (small_disk / "ballast").unlink()
    log(folder, 3)
    assert rows_in(folder) == 3 and state_in(folder) == 2


def test_a_folder_that_became_read_only(small_disk: Path) -> None:
    folder = after(small_disk / "run", 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for act, path in ((save_last, LAST), (save_best, BEST), (log, RESULTS)):
        with pytest.raises(UserError) as error:
            act(folder, 2)
        assert str(error.value).startswith(f"{folder / path}: ") and "(Read-only file system): it needs" in str(
            error.value
        )
        assert "\n" not in str(error.value)
    check_folder(folder, 1, end_epoch)
    assert state_in(folder) == model_in(folder) == rows_in(folder) == 1


# Bits that rot


@contextlib.contextmanager
def flipped(path: Path, draw: random.Random, bits: int) -> Iterator[None]:
    """A file with some bits flipped, each of another byte, for as long as it takes to look at it."""
    with path.open("r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        places = draw.sample(range(size), bits)
        old = [os.pread(file.fileno(), 1, place) for place in places]
        for place, byte in zip(places, old, strict=True):
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << draw.randrange(8)]), place)
        yield
        for place, byte in zip(places, old, strict=True):
            os.pwrite(file.fileno(), byte, place)


def test_ten_thousand_flipped_bits_are_seen(tmp_path: Path) -> None:
    """Flipped anywhere, in one byte or in three: no checkpoint is loaded that is not what was saved."""
    path = tmp_path / "last.pt"
    save_state(path, STATES[3], DESCRIPTION)
    draw = random.Random(4)
    for trial in range(10_000):
        with flipped(path, draw, 1 if trial % 2 else 3), pytest.raises(Damaged, match="not a sound checkpoint"):
            load_checkpoint(path)
    assert equal(load_checkpoint(path)["state"], STATES[3].state_dict())


def test_a_file_cut_at_every_64_bytes_is_seen(tmp_path: Path) -> None:
    for act, name in ((save_last, LAST), (save_best, BEST)):
        folder = after(tmp_path / name.replace("/", ""), 0)
        act(folder, 3)
        whole = (folder / name).read_bytes()
        for size in (*range(0, len(whole), 64), len(whole) - 1):
            (folder / name).write_bytes(whole[:size])
            with pytest.raises(Damaged, match="not a sound checkpoint"):
                load_checkpoint(folder / name)


def test_flipped_bits_without_a_seal_are_seen_or_harmless(tmp_path: Path) -> None:
    """Files that were saved again by `torch.save` have their CRCs only: some bits of their headers mean nothing."""
    path = tmp_path / "last.pt"
    save_state(path, STATES[3], DESCRIPTION)
    content = load_checkpoint(path)
    torch.save(content, path)
    draw, loaded = random.Random(5), 0
    for _ in range(2_000):
        with flipped(path, draw, 1):
            try:
                found = load_checkpoint(path)
            except UserError as error:
                assert "\n" not in str(error)
            else:
                loaded += 1
                assert equal(found, content)
    assert 0 < loaded < 1_000


@pytest.mark.parametrize("gone", [False, True])
def test_the_state_before_is_taken_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gone: bool
) -> None:
    folder, draw = after(tmp_path / "run", 2), random.Random(6)
    if gone:
        (folder / LAST).unlink()
    for _ in range(1 if gone else 300):
        with contextlib.nullcontext() if gone else flipped(folder / LAST, draw, 1):
            assert state_in(folder) == 1
        warning = capsys.readouterr().err
        assert warning.startswith(f"warning: {folder / LAST}: ") and warning.endswith(f"; taking {folder / PREVIOUS}\n")
        assert warning.count("\n") == 1
