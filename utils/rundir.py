"""Run folders: where a run writes, how it is numbered, and which one `--resume` means."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, many, suggest

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None  # type: ignore[assignment]

LAST = Path("weights") / "last.pt"
PREVIOUS = "last.previous.pt"  # the state before, which loading takes where `last.pt` is gone or damaged
LOCK = ".lock"
HYP = "hyp.yaml"
OPTIONS = "opt.yaml"
CHECKPOINTS = re.compile(r"(last|best|rollback|epoch\d+)(\.previous)?\.pt")


@dataclass(frozen=True)
class RunDir:
    """A run's folder, which is made. Raises `UserError` where it can't be."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        _make(self.path, exist_ok=True)

    @property
    def weights(self) -> Path:
        """The folder of a training's weights, made when it is first asked for."""
        folder = self.path / "weights"
        _make(folder, exist_ok=True)
        return folder

    def forget_weights(self, keep: str = "") -> None:
        """Remove the checkpoints of an earlier run in this folder, but for one: they would be taken for this one's."""
        for file in self.weights.glob("*.pt"):
            if CHECKPOINTS.fullmatch(file.name) and os.path.realpath(file) != os.path.realpath(keep):
                file.unlink(missing_ok=True)

    def write_options(self, values: Mapping[str, Any]) -> None:
        """Write the `opt.yaml` of a program that trains nothing: it marks the folder as a run's. A training's stays."""
        if not (self.path / LAST.parent).is_dir():
            self.write_yaml(OPTIONS, values)

    def write_yaml(self, name: str, values: Mapping[str, Any], header: str = "") -> Path:
        """Write plain values in their order; `header` becomes comment lines on top."""
        comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
        body = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)
        return self.write_text(name, comment + body)

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the run whole or not at all: a reader never meets half of it."""
        target = self.path / name
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"{target}: cannot be written: {error.strerror}") from None
        return target


class RunLock:
    """Keeps a second process out of a run folder for as long as this object, or this process, lives.

    The kernel holds the lock and takes it back when the process ends, however it ends; the file that stays means
    nothing. It is a record lock, which worker processes do not inherit: those of a killed run keep nobody out. (A
    process that itself opens and closes the file once more gives such a lock up.)
    """

    def __init__(self, folder: Path) -> None:
        """Raises `UserError` where a live process has the folder, or it can't be written to."""
        self.path = folder / LOCK
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None
        try:
            if fcntl is not None:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                owner = os.read(self._descriptor, 20).decode(errors="replace").strip()
                self.close()
                raise UserError(f"{folder}: process {owner or 'unknown'} is training in it; wait for its end") from None
            # else a file system that has no locks: there is nothing to hold on to
        with contextlib.suppress(OSError):  # only words for the other's message
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def close(self) -> None:
        """Let others in."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()


def new_run(project: str | Path, name: str = "exp", exist_ok: bool = False) -> RunDir:
    """Make the next free folder of `project`: `exp`, `exp2`, `exp3`, …; with `exist_ok` always `exp` itself.

    Two runs that start at the same moment get two folders: making one is the test for whether it was free.
    """
    if not name.strip() or Path(name).name in ("", "."):
        raise UserError(f"--name '{name}': give the run's folder a name, such as exp")
    first = Path(project) / name
    if exist_ok:
        check_place(project, name, exist_ok)
        return RunDir(first)
    number = 1
    while not _make(path := first if number == 1 else first.with_name(f"{first.name}{number}")):
        number += 1
    return RunDir(path)


def distinct(names: Sequence[str]) -> list[str]:
    """Names for files of one folder: those given, but that one that was there before gets `_2`, `_3`, … at its end."""
    taken, found = set(names), []
    seen: set[str] = set()
    for name in names:
        new, number = name, 1
        while new in seen or (number > 1 and new in taken):
            number += 1
            new = f"{name}_{number}"
        seen.add(new)
        found.append(new)
    return found


def met_again(names: Sequence[str], one: str) -> list[str]:
    """Warn of names that `distinct` changes, `one` being what each is the name of."""
    count = len(names) - len(set(names))
    return [f"warning: {many(count, one)} called as another: _2, _3, … is added to that name"] if count else []


def check_place(project: str | Path, name: str, exist_ok: bool) -> None:
    """Raise the `UserError` of a place for runs that can be known without making anything."""
    first = Path(project) / name
    ours = any((first / name).exists() for name in (LAST.parent, OPTIONS))
    if exist_ok and first.is_dir() and any(first.iterdir()) and not ours:
        raise UserError(f"--exist-ok: {first} is no run's folder: nothing is written among the files in it")
    above = next(folder for folder in first.parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{first}: cannot be made: {above} is not a folder")
    if not os.access(above, os.W_OK):
        raise UserError(f"{first}: cannot be made: {above} may not be written to")


def read_options(file: Path) -> dict[str, Any]:
    """Return what an `opt.yaml` says. Raises `UserError` where it is no yaml of options."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: can't be read as yaml ({type(error).__name__})") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: holds no options")
    return values


def newest_run(project: str | Path) -> Path | None:
    """Return the folder in `project`, at any depth, whose `weights/last.pt`, or the state before it, was written last.

    None without one.
    """
    checkpoints = [
        path
        for name in (LAST.name, PREVIOUS)
        for path in Path(project).glob(f"**/{LAST.parent}/{name}")
        if path.is_file()
    ]
    newest = max(checkpoints, key=lambda path: (path.stat().st_mtime_ns, str(path)), default=None)
    return newest.parents[1] if newest else None


def resolve_resume(arg: str | Path | bool | None, project: str | Path) -> Path:
    """Return the checkpoint file that `--resume` means.

    `arg`: nothing, True or '' for the newest run of `project`; else a checkpoint file, a run folder, its weights
    folder, or the name of a run in `project`. The file itself may be gone where the state before it stands.
    Raises `UserError` where there is none.
    """
    if arg in (None, True, ""):
        run = newest_run(project)
        if run is None:
            raise UserError(f"--resume: no run in {project} has a {LAST}; give --resume PATH (a run folder or a .pt)")
        return run / LAST
    for base in (Path(str(arg)), Path(project) / str(arg)):
        for path in (base, base / LAST, base / LAST.name):
            if path.is_file() or (path.name == LAST.name and path.with_name(PREVIOUS).is_file()):
                return _in_its_run(path)
        if base.is_dir():
            newest = newest_run(base)
            if newest is not None:
                raise UserError(f"--resume {arg}: a folder of runs; name one, such as the newest: --resume {newest}")
            raise UserError(f"--resume {arg}: {base} holds no {LAST}: that run saved no state to go on from")
    runs = [path.parents[1].name for path in Path(project).glob(f"*/{LAST.as_posix()}")]
    raise UserError(f"--resume {arg}: no such file or folder{suggest(Path(str(arg)).name, runs)}")


def _in_its_run(path: Path) -> Path:
    """Return a checkpoint's path with the two folders above it in it, or refuse one that lies in no run's folder."""
    full = Path(os.path.abspath(path))
    if full.parent.name != LAST.parent.name:
        raise UserError(
            f"--resume {path}: lies in no run's folder (RUN/{LAST}), and a run goes on in its own; "
            f"--weights {path} starts a new run from it"
        )
    return path if len(path.parents) > 1 else full


def _make(folder: Path, exist_ok: bool = False) -> bool:
    """Make a folder and those above it; return False where it is there already and may not be."""
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        if exist_ok:  # then what is there is no folder
            raise UserError(f"{folder}: cannot be made: a file of that name is in the way") from None
        return False
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    return True
