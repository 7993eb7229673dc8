# ruff: noqa: E402
"""Training on a GPU: `python benchmarks/gpu.py`. Everything is made here: pictures, labels, batches.

For yolo-n and yolo-s at 640 px, eager and compiled: images/s of steps on one batch that lies on the device, and of the
whole loop with its loader (target: 90 % of the former); peak memory; spread of single steps. On a machine without a GPU
it says so; `--device cpu --quick` runs the same code there, to see that it runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
import torchvision

import train
from benchmarks.stages_ours import build
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


def measure(settings: dict[str, Any], steps: int, resident: bool) -> dict[str, float]:
    """Run steps after a warm-up; images/s over all, and the 5th, 50th and 95th percentile of single steps in ms."""
    training = build(settings)
    device = training.precision.device
    batches = train.begin_steps(training)
    kept = next(batches)
    marks: list[Any] = []
    for i in range(steps + 10):
        if i == 10:
            wait(device)
            start, images = time.perf_counter(), 0
        if i >= 10:
            marks.append(mark(device))
        number, batch = kept if resident else next(batches)
        train.backward(training, batch, number)
        training.lr.apply(training.state.step)
        train.update(training)
        images = len(batch) if i < 10 else images + len(batch)
    marks.append(mark(device))
    wait(device)
    seconds = time.perf_counter() - start
    each = sorted(between(a, b) for a, b in zip(marks, marks[1:], strict=False))
    training.loader.close()
    return {
        "rate": images / seconds,
        "low": each[len(each) // 20],
        "middle": statistics.median(each),
        "high": each[-1 - len(each) // 20],
        "memory": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan"),
    }


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def mark(device: torch.device) -> Any:
    """A point in the device's time, for `between`; the host doesn't wait for it."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(first: Any, second: Any) -> float:
    return 1e3 * (second - first) if isinstance(first, float) else first.elapsed_time(second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="")
    parser.add_argument("--quick", action="store_true", help="few steps of small pictures, eager only")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--work", default="benchmarks/work")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        print(f"not yet measured: torch {torch.__version__} sees no CUDA device (--device cpu --quick runs it there)")
        return
    name = torch.cuda.get_device_name() if options.device != "cpu" else "CPU"
    print(f"{name}, torch {torch.__version__}, torchvision {torchvision.__version__}, {time.strftime('%Y-%m-%d')}; "
          f"batch {options.batch}, {options.workers} workers")  # fmt: skip
    os.environ["LOCKSTEP_CACHE"] = str(Path(options.work) / "cache")
    data = make_images(Path(options.work) / "gpu", 128 if options.quick else 2048)
    shared = {"data": str(data), "device": options.device, "size": 64 if options.quick else 640, "batch": options.batch}
    print("| model | | images/s, resident | images/s, loader | share | step ms (5 %, 50 %, 95 %) | peak GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for cfg in ("yolo-n", "yolo-s"):
        for compiled in (False,) if options.quick else (False, True):
            settings = {**shared, "cfg": cfg, "compile": compiled, "workers": options.workers}
            steps = 5 if options.quick else 100
            one, other = measure(settings, steps, resident=True), measure(settings, steps, resident=False)
            spread = f"{other['low']:.1f}, {other['middle']:.1f}, {other['high']:.1f}"
            print(f"| {cfg} | {'compiled' if compiled else 'eager'} | {one['rate']:.0f} | {other['rate']:.0f} | "
                  f"{other['rate'] / one['rate']:.2f} | {spread} | {other['memory']:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
