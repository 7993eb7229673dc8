"""What a run's weights depend on beside its options: code, data, libraries, machine. A resumed run is held to it."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("models", "data", "utils")
PROGRAMS = ("train.py", "val.py", "detect.py")  # what else lies there is the user's
# What may differ and leave every bit of the weights alone, or at least should: two revisions with the same sources are
# the same code, and kernels are chosen by what the processor can, not by its name.
HARMLESS = {"code/revision", "libraries/python", "device/name"}
MEANING = {  # of what is only known by a hash
    "data/train": " (training images were added or removed, or their boxes or classes changed)",
    "data/val": " (validation images were added or removed, or their boxes or classes changed)",
    "data/files": " (training image files changed)",
    "code/sources": " (the program changed)",
}


def fingerprint(
    data: Mapping[str, Any], device: torch.device, numbers: str, world_size: int
) -> dict[str, dict[str, Any]]:
    """Describe what this process would train with.

    data: what says which images and labels are trained on and evaluated, such as the indices' digests.
    numbers: the format that is computed in, as a `Precision` describes it.
    """
    cpu = device.type == "cpu"
    return {
        "code": {"revision": revision(ROOT), "sources": source_digest(ROOT)},
        "data": dict(data),
        "libraries": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": _installed("torchvision"),
            "numpy": str(np.__version__),
            "opencv": str(cv2.__version__),
        },
        "device": {
            "type": device.type,
            "name": _processor() if cpu else _accelerator(device),
            "kernels": torch.backends.cpu.get_cpu_capability() if cpu else _generation(device),
            "numbers": numbers,
            "threads": torch.get_num_threads() if cpu else 0,  # they split sums
            "processes": world_size,
        },
    }


def differences(saved: object, current: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """Return {`group/key`: (then, now)} of what differs; what `saved` does not know is not held against it."""
    found = {}
    for group, values in current.items():
        old = saved.get(group) if isinstance(saved, Mapping) else None
        for key, now in values.items():
            if isinstance(old, Mapping) and key in old and old[key] != now:
                found[f"{group}/{key}"] = (old[key], now)
    return found


def check_same_run(saved: object, current: Mapping[str, Mapping[str, Any]], where: Path, force: bool) -> list[str]:
    """Return what differs from when the run began, in words, if it is harmless or the user forces it.

    Raises:
        UserError: with it the run would not be the same.
    """
    found = differences(saved, current)
    words = {name: f"{name}{_change(then, now)}{MEANING.get(name, '')}" for name, (then, now) in found.items()}
    grave = [text for name, text in words.items() if name not in HARMLESS]
    if grave and not force:
        ways = (
            f"put it back, start a new one with --weights {where}/weights/last.pt, or go on all the same with --force"
        )
        raise UserError(f"{where}: would not go on as the same run: {'; '.join(grave)}: {ways}")
    return list(words.values())


def source_digest(root: Path) -> str:
    """sha256 over names and bytes of the program's Python files: says of changed code what a revision cannot."""
    files = [root / name for name in PROGRAMS if (root / name).is_file()]
    files += [file for part in PARTS for file in (root / part).rglob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def revision(root: Path) -> str:
    """The commit that git has checked out in `root`, read from its files; empty where there is none."""
    try:
        folder = root / ".git"
        if folder.is_file():  # a linked worktree
            folder = root / folder.read_text().removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        common = folder / "commondir"
        shared = folder / common.read_text().strip() if common.is_file() else folder
        for base in (folder, shared):
            if (base / name).is_file():
                return (base / name).read_text().strip()
        packed = (shared / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
    except (OSError, UnicodeDecodeError):
        return ""


def _installed(package: str) -> str:
    """The version of a package, without importing it, which may take a second; empty where its installer left none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine() or sys.platform)


def _accelerator(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _generation(device: torch.device) -> str:
    """What decides which kernels a GPU runs: what it can, and the library that chooses among them."""
    if device.type != "cuda":
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}, cuDNN {torch.backends.cudnn.version()}"


def _change(then: object, now: object) -> str:
    """What became of a value; of two lists the first members that differ."""
    if isinstance(then, list) and isinstance(now, list):
        number = next((i for i, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), min(len(then), len(now)))
        then, now = (values[number] if number < len(values) else "absent" for values in (then, now))
        return f" {number} was {_short(then)}, is {_short(now)}"
    return f" was {_short(then)}, is {_short(now)}"


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 else text or "unknown"
