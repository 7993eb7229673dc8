"""Checkpoints: the only place that writes and reads them.

Two kinds of file, both plain tensors and values that `torch.load(weights_only=True)` reads:
- *state* (`last.pt`): everything that resuming needs, fp32, nothing stripped;
- *model* (`best.pt`): a model to ship: averaged weights, class names, how to build it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from utils.errors import UserError

VERSION = 1
MSDOS_FOLDER = 0x10  # bit of a zip entry's external attributes


class Damaged(UserError):
    """The file is absent or not sound: another one may be taken in its place."""


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass
class TrainState:
    """All that a run is, at an optimizer step's boundary.

    components: what carries a `state_dict`: model, ema, optimizer, scheduler, scaler, stopping.
    epoch and batch: where the next step starts, both from 0.  step: optimizer steps done.
    means: running sums of the epoch under way.  seconds: of training so far, over all parts of the run.
    """

    components: dict[str, Stateful]
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    means: dict[str, Tensor] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        progress = {"epoch": self.epoch, "batch": self.batch, "step": self.step, "seconds": self.seconds}
        components = {name: part.state_dict() for name, part in self.components.items()}
        return {"progress": progress, "means": dict(self.means), "components": components}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state.

        Raises:
            ValueError: it has other components than this run.
        """
        if set(state["components"]) != set(self.components):
            raise ValueError(f"components {sorted(state['components'])}, here {sorted(self.components)}")
        for name, part in self.components.items():
            part.load_state_dict(state["components"][name])
        for name, value in state["progress"].items():
            setattr(self, name, value)
        self.means = dict(state["means"])


def save_state(path: Path, state: TrainState, description: dict[str, Any]) -> None:
    """Write a state file; the file that stood there before is kept as `<stem>.previous.pt`."""
    _write(path, {"lockstep": VERSION, "kind": "state", **description, "state": state.state_dict()}, keep=True)


def save_model(path: Path, weights: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write a model file."""
    _write(path, {"lockstep": VERSION, "kind": "model", **description, "weights": weights})


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read and verify a checkpoint of either kind, on the CPU.

    Every byte is checked against the archive's CRCs first (`torch.load` checks none), and nothing but tensors and
    plain values is built.

    Raises:
        Damaged: the file is absent or damaged.
        UserError: it is not one of ours, or of another version.
    """
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Damaged(f"{path}: no such checkpoint") from None
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0][:200]
        raise Damaged(f"{path}: not a sound checkpoint ({reason})") from None
    if not isinstance(content, dict) or "lockstep" not in content:
        raise UserError(f"{path}: not a Lockstep checkpoint")
    if content["lockstep"] != VERSION:
        raise UserError(f"{path}: checkpoint version {content['lockstep']}; this program reads version {VERSION}")
    return content


def load_state(path: Path) -> dict[str, Any]:
    """Read a state file; if it is damaged or gone, the one before it, with a warning on stderr.

    Raises:
        UserError: neither can be read, it is of another version, or a model, which has no state to resume from.
    """
    try:
        content = load_checkpoint(path)
    except Damaged as error:
        previous = _previous(path)
        if not previous.exists():
            raise
        print(f"warning: {error}; taking {previous}", file=sys.stderr)
        content = load_checkpoint(previous)
    if content["kind"] != "state":
        raise UserError(
            f"{path}: holds a model without its training state; --weights {path} starts a new run from it, "
            f"--resume continues from last.pt"
        )
    return content


def model_weights(content: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights to validate or ship from a checkpoint of either kind: a state's are its averaged ones."""
    if content["kind"] == "model":
        return content["weights"]
    averaged = content["state"]["components"]["ema"]
    return {name.removeprefix("module."): value for name, value in averaged.items() if name != "n_averaged"}


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            # Torch stores entries as they are. It takes one that is marked as a folder (by a flipped bit, say) for
            # empty, and its tensor is then whatever lies in memory.
            if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr & MSDOS_FOLDER:
                raise ValueError(f"the table of contents is wrong about {entry.filename}")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"checksum of {damaged} does not match")


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _write(path: Path, content: dict[str, Any], keep: bool = False) -> None:
    """Write beside the target, flush to disk, rename, flush the folder: a crash leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if keep:
            _keep_previous(path)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        stands = "; the one before it stands" if path.exists() else ""
        raise UserError(f"{path}: the checkpoint could not be written ({error}){stands}") from error


def _keep_previous(path: Path) -> None:
    """Give the current file its second name; a file system without hard links simply has no previous one."""
    if path.exists():
        link = path.with_name(f".{path.name}.link")
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)
            os.link(path, link)
            os.replace(link, _previous(path))
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)  # renamed onto another name of the same file, it is still there (POSIX)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the answer of network file systems that do not flush folders
                raise
        finally:
            os.close(descriptor)
