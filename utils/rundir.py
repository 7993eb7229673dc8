"""Run folders: where a run writes, how it is numbered, and which one `--resume` means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, suggest

LAST = Path("weights") / "last.pt"


@dataclass(frozen=True)
class RunDir:
    """A run's folder and its `weights` folder; both are made. Raises `UserError` where they can't be."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        _make(self.weights, exist_ok=True)

    @property
    def weights(self) -> Path:
        return self.path / "weights"

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


def new_run(project: str | Path, name: str = "exp", exist_ok: bool = False) -> RunDir:
    """Make the next free folder of `project`: `exp`, `exp2`, `exp3`, …; with `exist_ok` always `exp` itself.

    Two runs that start at the same moment get two folders: making one is the test for whether it was free.
    """
    if not name.strip() or Path(name).name in ("", "."):
        raise UserError(f"--name '{name}': give the run's folder a name, such as exp")
    first = Path(project) / name
    if exist_ok:
        return RunDir(first)
    number = 1
    while not _make(path := first if number == 1 else first.with_name(f"{first.name}{number}")):
        number += 1
    return RunDir(path)


def newest_run(project: str | Path) -> Path | None:
    """Return the folder in `project`, at any depth, whose `weights/last.pt` was written last; None without one."""
    checkpoints = [path for path in Path(project).glob(f"**/{LAST.as_posix()}") if path.is_file()]
    newest = max(checkpoints, key=lambda path: (path.stat().st_mtime_ns, str(path)), default=None)
    return newest.parents[1] if newest else None


def resolve_resume(arg: str | Path | bool | None, project: str | Path) -> Path:
    """Return the checkpoint file that `--resume` means.

    `arg`: nothing, True or '' for the newest run of `project`; else a checkpoint file, a run folder, its weights
    folder, or the name of a run in `project`. Raises `UserError` where there is none.
    """
    if arg in (None, True, ""):
        run = newest_run(project)
        if run is None:
            raise UserError(f"--resume: no run in {project} has a {LAST}; give --resume PATH (a run folder or a .pt)")
        return run / LAST
    for base in (Path(str(arg)), Path(project) / str(arg)):
        for path in (base, base / LAST, base / LAST.name):
            if path.is_file():
                return path
        if base.is_dir():
            raise UserError(f"--resume {arg}: {base} holds no {LAST}: that run saved no state to go on from")
    runs = [path.parents[1].name for path in Path(project).glob(f"*/{LAST.as_posix()}")]
    raise UserError(f"--resume {arg}: no such file or folder{suggest(Path(str(arg)).name, runs)}")


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
