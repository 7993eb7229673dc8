"""How quickly a large YOLO data set is indexed, and in how much memory, beside Ultralytics' own scan of the same files.

`python benchmarks/index.py [--images 100000] [--peer-python /path/to/venv/bin/python]`

The data set is made in a temporary folder: JPEGs of 640 x 480 and label files, hard-linked under many names, all in the
page cache. Every figure comes from a process of its own. The peer runs in its own environment, without network and with
an empty folder for its settings; nothing of it is imported here.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from torch.utils.data import DataLoader, Dataset  # noqa: E402

from data.config import load_data_config  # noqa: E402
from data.index import Index, build_index  # noqa: E402

DISTINCT = 256  # different images and label files
CLASSES = 80
OBJECTS = (0, 1, 2, 4, 7, 12, 20)  # in an image; COCO has 7.3 on average
MOST_LINKS = 60_000  # ext4 allows 65,000 names of a file
PEER_TOO_SLOW = 300_000  # images
TARGETS = {"first scan": "≥ 5×", "second start": "≥ 1×", "peak memory growth": "< 250 MB at 1 M"}
TARGETS["worker's own memory, growth over an epoch"] = "≈ 0"

PEER = """
import json, resource, sys, time, yaml
from pathlib import Path
from ultralytics.data.dataset import YOLODataset
root = Path(sys.argv[1])
data = yaml.safe_load((root / "data.yaml").read_text())
data |= {"names": dict(enumerate(data["names"])), "nc": len(data["names"]), "channels": 3}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin = time.perf_counter()
dataset = YOLODataset(img_path=str(root / "images"), data=data, task="detect", augment=False, imgsz=640)
seconds = time.perf_counter() - begin
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print("\\nRESULT", json.dumps({"images": len(dataset.labels), "seconds": seconds, "grown": grown * 1024}))
"""


def make_data(root: Path, count: int) -> None:
    """Write a data set of `count` images in one folder."""
    draw = np.random.default_rng(0)
    for folder in ("sources", "images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(DISTINCT):
        pixels = cv2.resize(draw.integers(0, 256, (12, 16, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(root / f"sources/{i}.jpg"), pixels)
        rows = []
        for _ in range(OBJECTS[i % len(OBJECTS)]):
            w, h = draw.uniform(0.02, 0.5, 2)
            x, y = draw.uniform(w / 2, 1 - w / 2), draw.uniform(h / 2, 1 - h / 2)
            rows.append(f"{draw.integers(CLASSES)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n")
        (root / f"sources/{i}.txt").write_text("".join(rows))
    assert count / DISTINCT < MOST_LINKS
    for i in range(count):
        os.link(root / f"sources/{i % DISTINCT}.jpg", root / f"images/{i:012d}.jpg")
        os.link(root / f"sources/{i % DISTINCT}.txt", root / f"labels/{i:012d}.txt")
    names = ", ".join(f"class{i}" for i in range(CLASSES))
    (root / "data.yaml").write_text(f"path: {root}\ntrain: images\nval: images\nnames: [{names}]\n")


class Touched(Dataset[int]):
    """What a training sample takes from the index, without the picture."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def __getitem__(self, i: int) -> int:
        index = self.index
        path, (classes, boxes), size = index.path(i), index.labels(i), index.sizes[i]
        touched = len(path) + int(classes.sum()) + float(boxes.sum()) + int(size.sum())
        return own_memory() if i % (len(index) // 50) == 0 else -int(touched > 0)

    def __len__(self) -> int:
        return len(self.index)


def own_memory() -> int:
    """Bytes that only this process has: what would be freed if it ended."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def measure_ours(root: Path) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    index, faults = build_index(load_data_config(root / "data.yaml"), "train")
    seconds = time.perf_counter() - begin
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert not faults
    return {"images": len(index), "objects": len(index.boxes), "seconds": seconds, "grown": grown * 1024}


def measure_worker(root: Path) -> dict[str, float]:
    """Memory of a forked worker at a fiftieth, and at the end, of an epoch over the index (from its cache)."""
    index, _ = build_index(load_data_config(root / "data.yaml"), "train")
    loader = DataLoader(
        Touched(index), num_workers=1, multiprocessing_context="fork", batch_size=None, collate_fn=lambda item: item
    )
    seen = [value for value in loader if value > 0]
    return {"images": len(index), "first": seen[1], "last": seen[-1], "grown": seen[-1] - seen[1]}


def run(command: list[str], **variables: str) -> dict[str, float]:
    """Run a command in a process of its own; what it prints after RESULT."""
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    if result.returncode or not lines:
        sys.exit(f"{' '.join(command[:3])} failed:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def rows(root: Path, count: int, peer_python: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield the lines of the table: what, ours, peer, ratio."""

    def ours(what: str) -> dict[str, float]:
        own = [sys.executable, __file__, "--measure", what, str(root)]
        return run(own, LOCKSTEP_CACHE=str(root / "cache"))

    def peer() -> dict[str, float]:
        command = [peer_python, "-c", PEER, str(root)]
        return run(command, YOLO_CONFIG_DIR=str(root / "settings"), YOLO_OFFLINE="true")

    run_peer = bool(peer_python) and count <= PEER_TOO_SLOW
    for what in ("first scan", "second start"):
        mine = ours("index")
        other = peer() if run_peer else None
        assert mine["images"] == count and (other is None or other["images"] == count)
        yield what, f"{mine['seconds']:.2f} s", *compare(mine, other, "seconds", lambda value: f"{value:.2f} s")
        if what == "first scan":
            yield "peak memory growth", in_mb(mine["grown"]), *compare(mine, other, "grown", in_mb)
    worker = ours("worker")
    yield "worker's own memory, growth over an epoch", in_mb(worker["grown"]), "", ""


def compare(
    mine: dict[str, float], other: dict[str, float] | None, key: str, show: Callable[[float], str]
) -> tuple[str, str]:
    return (show(other[key]), f"{other[key] / mine[key]:.1f}×") if other else ("", "")


def in_mb(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the index.")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--peer-python", default="", help="python of an environment with ultralytics")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, root = options.measure
        print("RESULT", json.dumps((measure_worker if what == "worker" else measure_ours)(Path(root))))
        return
    folder = Path(tempfile.mkdtemp(prefix="lockstep-index-"))
    try:
        make_data(folder / "set", options.images)
        print(f"{options.images:,} images\n\n| | ours | peer | ratio | target |\n| --- | --- | --- | --- | --- |")
        for name, *cells in rows(folder / "set", options.images, options.peer_python):
            print(f"| {name} | {' | '.join(cells)} | {TARGETS[name]} |", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
