"""Checkpoints: the only place that writes and reads them.

Two kinds of file, both plain tensors and values that `torch.load(weights_only=True)` reads:
- *state* (`last.pt`): everything that resuming needs, fp32, nothing stripped;
- *model* (`best.pt`): a model to ship: averaged weights, class names, how to build it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from utils.archive import Seal, check_archive, check_savable, leaves
from utils.atomic import cannot_write, replace_file
from utils.errors import UserError, printable, suggest

VERSION = 1
# What every checkpoint says of itself, a model's also, and how far a run has come: key -> type.
DESCRIPTION = {
    **{"kind": str, "model": dict, "names": list, "imgsz": int, "data": str, "single_cls": bool},
    **{"hyp": dict, "options": dict},
}
MODEL = {"size": str, "nc": int, "backbone": str}
SHIPPED = {"epoch": int, "fitness": float}
PROGRESS = {"epoch": int, "batch": int, "step": int, "seconds": float}
# What users come with. Those files hold code, which is not run, and beside it weights of nets that are not built here.
FOREIGN = ("models.", "ultralytics.")
OTHERS = "weights of YOLOv5, YOLOv7 and Ultralytics are of other nets, and can't be used"
FOREIGN_NAME = re.compile(  # as those of other projects are called
    r"(yolov?\d[\w-]{0,9}|yolo_nas_\w|rtdetr-\w{1,2}|mobile_sam|sam2?(\.1)?_\w{1,2}|fastsam-\w)\.pt$", re.IGNORECASE
)
MAX_PROGRESS = 1e15
MAX_IMGSZ = 8192


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
        progress = {name: getattr(self, name) for name in PROGRESS}
        components = {name: part.state_dict() for name, part in self.components.items()}
        return {"progress": progress, "means": dict(self.means), "components": components}

    def load_state_dict(self, state: dict[str, Any], forced: bool = False) -> None:
        """Take a saved state; where that is `forced`, also of a run in another precision, without gradient scaling.

        Raises:
            UserError: it has other components than this run, which is then as it was, or one that does not fit.
        """
        saved = state["components"]
        if set(saved) != set(self.components):
            raise UserError(f"the saved state has components {sorted(saved)}, this run {sorted(self.components)}")
        for name, part in self.components.items():
            current = part.state_dict()
            hiding = [key for key in saved[name] if current and key not in current and hasattr(part, key)]
            if fault := f"it has {hiding[0]}" if hiding else _misfit(saved[name], current):
                raise UserError(f"the saved state of {name} does not fit this run: {fault}")
        for name, part in self.components.items():
            if forced and name == "scaler" and not saved[name]:
                continue
            try:
                part.load_state_dict(saved[name])
            except torch.OutOfMemoryError:
                raise
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise UserError(f"the saved state of {name} does not fit this run: {_one_line(error)}") from error
        for name, value in state["progress"].items():
            setattr(self, name, value)
        self.means = dict(state["means"])


def save_state(path: Path, state: TrainState, description: dict[str, Any]) -> None:
    """Write a state file; the file that stood there before is kept as `<stem>.previous.pt`."""
    content = {"lockstep": VERSION, "kind": "state", **description, "state": state.state_dict()}
    _write(path, content, previous=_previous(path))


def restart_from(taken: Path, last: Path, state: TrainState, description: dict[str, Any]) -> None:
    """Make a state that was read from another file than `last` the run's last one, before anything counts on it."""
    if taken == last:
        return
    if taken == _previous(last):  # the sound one: a damaged `last` shall not take its place
        last.unlink(missing_ok=True)
    save_state(last, state, description)


def save_model(path: Path, weights: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write a model file; the description of a model also has its `epoch` and `fitness`."""
    _write(path, {"lockstep": VERSION, "kind": "model", **description, "weights": weights})


def find_checkpoint(weights: str, instead: str = "") -> Path:
    """Return the path that `--weights` names. instead: what is said to do instead of taking weights of other nets.

    Raises:
        UserError: no file is there; with what may be meant instead.
    """
    path = Path(weights)
    if path.is_file():
        return path
    if path.is_dir():
        inside = next((path / name for name in ("weights/best.pt", "best.pt") if (path / name).is_file()), None)
        near = f"; did you mean '{inside}'?" if inside else ""
        raise UserError(f"--weights {weights}: a folder, not a checkpoint{near}")
    near = suggest(path.name, [file.name for file in path.parent.glob("*.pt")]) if path.parent.is_dir() else ""
    foreign = f"; {OTHERS}{instead}" if FOREIGN_NAME.match(path.name) else ""
    raise UserError(f"--weights {weights}: no such file{near or foreign}")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read and verify a checkpoint of either kind, on the CPU.

    Every byte is held against the file's SHA-256 first, and nothing but tensors and plain values is built.

    Raises:
        Damaged: the file is absent or damaged, or holds what no checkpoint needs.
        UserError: it is not one of ours, of another version, or lacks something.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # reading a named pipe would wait for ever
        raise Damaged(f"{path}: not a sound checkpoint (not a file)")
    try:
        with path.open("rb") as file:
            check_archive(file)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Damaged(f"{path}: no such checkpoint") from None
    except MemoryError:
        raise UserError(f"{path}: does not fit into memory") from None
    except Exception as error:  # a file may come from anywhere: whatever it makes a reader stumble over, it is unsound
        foreign = any(f"asks for {root}" in str(error) for root in FOREIGN)
        hint = f"; {OTHERS}" if foreign else ""
        raise Damaged(f"{path}: not a sound checkpoint ({_one_line(error)}){hint}") from None
    if not isinstance(content, dict) or "lockstep" not in content:
        raise UserError(f"{path}: not a Lockstep checkpoint; {OTHERS}")
    if type(content["lockstep"]) is not int or content["lockstep"] != VERSION:
        version = _one_line(repr(content["lockstep"]))
        raise UserError(f"{path}: checkpoint version {version}; this program reads version {VERSION}")
    if fault := _fault(content):
        raise UserError(f"{path}: not a checkpoint that this program wrote: {_one_line(fault)}")
    return content


def find_state(path: Path) -> tuple[dict[str, Any], Path]:
    """Read a state file; if it is damaged or gone, the one before it, with a warning on stderr. Return its content,
    and the file that it was read from.

    Raises:
        UserError: neither can be read, it is of another version, or a model, which has no state to resume from.
    """
    taken = path
    try:
        content = load_checkpoint(path)
    except Damaged as error:
        taken = _previous(path)
        if not os.path.exists(taken):
            raise
        print(f"warning: {error}; taking {taken}", file=sys.stderr)
        content = load_checkpoint(taken)
    if content["kind"] != "state":
        raise UserError(
            f"{path}: holds a model without its training state; --weights {path} starts a new run from it, "
            f"--resume continues from last.pt"
        )
    return content, taken


def load_state(path: Path) -> dict[str, Any]:
    """Return the content of `find_state`."""
    return find_state(path)[0]


def model_weights(content: dict[str, Any], source: str) -> dict[str, Tensor]:
    """Return the weights to validate or ship from a checkpoint of either kind: a state's are its averaged ones.

    Raises:
        UserError: `source` has weights that are no numbers.
    """
    weights = content.get("weights")
    if content["kind"] != "model":
        averaged = content["state"]["components"]["ema"]
        weights = {name.removeprefix("module."): value for name, value in averaged.items() if name != "n_averaged"}
    broken = next((name for name, value in weights.items() if not torch.isfinite(value).all()), "")
    if broken:
        raise UserError(f"{source}: its weights are not finite ({broken}): of a training that diverged")
    return weights


def remove_state(path: Path) -> None:
    """Remove a state file, and the one that stood there before."""
    for file in (path, _previous(path)):
        file.unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _write(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Write a sealed archive; ValueError if it could not be read again."""
    check_savable(content)
    if fault := _fault(content):
        raise ValueError(fault)

    def write(file: BinaryIO) -> int:
        seal = Seal(file)
        torch.save(content, seal)
        return seal.close()

    try:
        replace_file(path, write, previous)
    except (OSError, RuntimeError) as error:
        raise cannot_write(path, "the checkpoint", error, _size(content)) from error


def _size(content: dict[str, Any]) -> int:
    """Bytes of a checkpoint on disk, found by writing it to nowhere; 0 if not even that can be done."""
    with contextlib.suppress(OSError, RuntimeError):
        seal = Seal(_Nowhere())
        torch.save(content, seal)
        return seal.close()
    return 0


class _Nowhere(io.RawIOBase):
    def write(self, data: Any) -> int:
        return memoryview(data).nbytes

    def seek(self, *_: int) -> int:
        return 0


def _fault(content: dict[str, Any]) -> str:
    """Return what is missing or of the wrong type in a checkpoint, or an empty string.

    A description may hold more than is known here, as long as it is plain values.
    """
    if fault := _type_fault(content, DESCRIPTION):
        return fault
    if _type_fault(content["model"], MODEL) or not all(type(name) is str for name in content["names"]):
        return "model or names are not as they should be"
    if any(printable(name) != name for name in content["names"]):
        return "names hold what can't be shown"
    if content["model"]["nc"] != len(content["names"]) or not 1 <= content["imgsz"] <= MAX_IMGSZ:
        return f"{len(content['names'])} names for {content['model']['nc']} classes, imgsz {content['imgsz']}"
    own = {"state": "state", "model": "weights"}.get(content["kind"], "kind")
    if not isinstance(content.get(own), dict):
        return f"kind {content['kind']!r}, without what it should hold"
    for key, value in content.items():
        if key != own and any(isinstance(leaf, Tensor) for leaf in leaves(value)):
            return f"a tensor in {key}"
    if own == "weights":
        return _type_fault(content, SHIPPED) or _weights_fault(content["weights"], own)
    return _state_fault(content["state"])


def _state_fault(state: dict[str, Any]) -> str:
    if set(state) != {"progress", "means", "components"} or not all(type(part) is dict for part in state.values()):
        return "the state must have progress, means and components"
    progress = state["progress"]
    fault = _type_fault(progress, PROGRESS)
    if fault or set(progress) != set(PROGRESS):
        return f"progress: {fault or 'it has keys of its own'}"
    if not all(0 <= value < MAX_PROGRESS for value in progress.values()):
        return f"progress is {progress}"
    for name, value in state["means"].items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim > 2:
            return f"means: {name} is not a table of sums"
    for name, component in state["components"].items():
        if not isinstance(component, dict) or not all(type(key) is str for key in component):
            return f"component {name} is not a state"
    for name in ("model", "ema"):
        if fault := _weights_fault(state["components"].get(name), name):
            return fault
    return ""


def _weights_fault(weights: Any, name: str) -> str:
    if not isinstance(weights, dict) or not weights:
        return f"no {name}"
    for key, value in weights.items():
        if type(key) is not str or not isinstance(value, Tensor):
            return f"{name}: {key} is no tensor"
        if not value.is_floating_point() and value.dtype != torch.int64:
            return f"{name}: {key} is {value.dtype}"
    return ""


def _type_fault(values: dict[str, Any], types: dict[str, type]) -> str:
    for key, kind in types.items():
        if key not in values:
            return f"{key} is missing"
        if not isinstance(values[key], kind) or (kind is not bool and isinstance(values[key], bool)):
            return f"{key} must be of type {kind.__name__}, and is {type(values[key]).__name__}"
    return ""


def _misfit(saved: Any, current: Any, where: str = "") -> str:
    """Return where a saved state has other kinds of values than the current one, or an empty string.

    The current state of an optimizer before its first step, or of a scaler that is off, says nothing about the saved.
    """
    if isinstance(saved, dict) and isinstance(current, dict):
        pairs = [(saved[key], current[key], f"{where}{key}: ") for key in saved if key in current]
    elif isinstance(saved, (list, tuple)) and isinstance(current, (list, tuple)):
        if current and len(saved) != len(current):
            return f"{where}{len(saved)} values in place of {len(current)}"
        pairs = [(old, new, f"{where}{index}: ") for index, (old, new) in enumerate(zip(saved, current, strict=False))]
    else:
        numbers = all(type(value) in (int, float) for value in (saved, current))
        alike = numbers or type(saved) is type(current) or saved is None or current is None
        return "" if alike else f"{where}{type(saved).__name__} in place of {type(current).__name__}"
    return next((fault for old, new, place in pairs if (fault := _misfit(old, new, place))), "")


def _one_line(text: Any) -> str:
    """What a file says, fit for a terminal: one short line, nothing that steers."""
    line = str(text).partition("\n")[0][:200]
    return "".join(c if c.isprintable() else "?" for c in line)
