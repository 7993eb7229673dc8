# ruff: noqa: E402
"""Training on a GPU: `python benchmarks/gpu.py`. Everything is made here: pictures, labels, batches.

For yolo-n and yolo-s at 640 px, eager and compiled: images/s of steps on one batch that lies on the device, and of the
whole loop with its loader (target: 90 % of the former); peak memory; spread of single steps. With `--peer-python` the
same of Ultralytics (target: 1.5 times its images/s). On a machine without a GPU it says so; `--device cpu --quick` runs
the same code there, to see that it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import cv2
import numpy as np
import torch
import torchvision

from benchmarks.worker import start_side
from data.processes import cores


def make_images(folder: Path, count: int) -> Path:
    """Write `count` JPEGs of 640×480 with some boxes each, as YOLO files; return their data yaml."""
    config = folder / "data.yaml"
    draw = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 16)):
        images, labels = folder / "images" / split, folder / "labels" / split
        for path in (images, labels):
            path.mkdir(parents=True, exist_ok=True)
        for i in range(number):
            if (images / f"{i}.jpg").exists():
                continue
            coarse = draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)  # about as many bytes as a photograph
            picture = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC).astype(np.int16)
            picture = np.clip(picture + draw.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(images / f"{i}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
            rows = [f"{draw.integers(80)} {x:.4f} {y:.4f} 0.1 0.15\n" for x, y in draw.uniform(0.1, 0.9, (8, 2))]
            (labels / f"{i}.txt").write_text("".join(rows))
    config.write_text(f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\nnc: 80\n")
    return config


class Row(NamedTuple):
    """What is measured: whose net, how it is run, and what it takes."""

    who: str
    stage: str
    settings: dict[str, Any]


def rows(options: argparse.Namespace, shared: dict[str, Any]) -> Iterator[Row]:
    """Ours in two sizes, eager and compiled; the other's, as it sets itself up, where its Python is given."""
    for cfg in ("yolo-n", "yolo-s"):
        for compiled in (False,) if options.quick else (False, True):
            yield Row(f"{cfg}{', compiled' if compiled else ''}", "loop", {**shared, "cfg": cfg, "compile": compiled})
        if options.peer_python:
            net = options.peer_net + cfg[-1]
            yield Row(f"Ultralytics {net}", "peer:loop", {**shared, "net": net})


def measure(row: Row, options: argparse.Namespace, resident: bool) -> dict[str, Any]:
    """Run it in a process of its own: its peak of memory is its own, too."""
    settings, log = {**row.settings, "resident": resident}, Path(options.work) / "gpu.log"
    worker = start_side(row.stage, settings, options.peer_python, log)
    found = worker.go()
    worker.close()
    return {**found, **worker.facts, "rate": found["images"] / found["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="0")
    parser.add_argument("--quick", action="store_true", help="few steps of small pictures, eager only")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--work", default="benchmarks/work")
    parser.add_argument("--peer-python", help="Python of the other's environment, see benchmarks/README.md")
    parser.add_argument("--peer-net", default="yolo11", help="name of its nets without the size")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        print(f"not yet measured: torch {torch.__version__} sees no CUDA device (--device cpu --quick runs it there)")
        return
    name = torch.cuda.get_device_name() if options.device != "cpu" else "CPU"
    print(f"{name}, torch {torch.__version__}, torchvision {torchvision.__version__}, {time.strftime('%Y-%m-%d')}; "
          f"batch {options.batch}, {options.workers} workers")  # fmt: skip
    work = Path(options.work).resolve()
    os.environ |= {"LOCKSTEP_CACHE": str(work / "cache"), "YOLO_CONFIG_DIR": str(work / "peer"), "YOLO_OFFLINE": "true"}
    os.environ["PYTHONPATH"] = str(HERE.parent)
    data = str(make_images(work / "gpu", 128 if options.quick else 2048))
    shared = {"data": data, "yaml": data, "runs": str(work / "runs"), "device": options.device}
    shared |= {"batch": options.batch, "workers": options.workers, "size": 640, "steps": 100}
    shared |= {"size": 64, "steps": 5} if options.quick else {}
    print("| model | images/s, resident | images/s, loader | share | step ms (5 %, 50 %, 95 %) | peak GiB | |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows(options, shared):
        one, other = (measure(row, options, resident) for resident in (True, False))
        spread = ", ".join(f"{other[key]:.1f}" for key in ("low", "middle", "high"))
        number = other.get("precision") or f"amp {other['amp']}"
        print(f"| {row.who} | {one['rate']:.0f} | {other['rate']:.0f} | {other['rate'] / one['rate']:.2f} | {spread} | "
              f"{other['memory']:.2f} | {number} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
