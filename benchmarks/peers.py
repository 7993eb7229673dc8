"""Lockstep beside Ultralytics, stage by stage, on BCCD: `python benchmarks/peers.py --peer-python PEER/bin/python`.

Both sides are processes that stay up and take turns (A B B A …), after a warm-up, on the same cores. The table gives
medians, spreads ((max − min) / median) and ratios, the log everything. See `README.md` for the other's environment.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from benchmarks.time_to_map import measure_map
from benchmarks.worker import Worker, quiet, start_side
from data.config import load_data_config
from data.index import build_index

HERE = Path(__file__).resolve().parent
STAGES = ("step", "share", "loader", "post", "loss", "start", "map")


class Row(NamedTuple):
    """One line of the table. ours, theirs: in `unit`; ratio: ours is so many times better."""

    what: str
    ours: str
    theirs: str
    unit: str
    ratio: float
    target: str
    met: bool


class Bench:
    """What all measurements share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.rows, self.log = options, [], []
        self.work = Path(options.work).resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.runs = 3 if options.quick else 7
        os.environ |= {"LOCKSTEP_CACHE": str(self.work / "cache"), "YOLO_CONFIG_DIR": str(self.work / "peer")}
        os.environ |= {"YOLO_OFFLINE": "true", "PYTHONPATH": str(ROOT)}
        self.base = {"data": "bccd", "size": 320, "batch": 16, "runs": str(self.work / "runs")}
        self.base |= {"yaml": str(self.work / "bccd.yaml"), "images": str(self.work / "bccd/images/train")}

    def sides(self, stage: str, *variants: tuple[str, str, dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
        """Run named variants (name, stage, settings) in turns; a stage that begins with `peer:` is theirs."""
        quiet()
        workers = {}
        for name, kind, settings in variants:
            workers[name] = self.start(kind, settings, f"{stage}-{name.replace(' ', '-')}")
        found: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        order = list(workers)
        for turn in range(self.runs):
            for name in order if turn % 2 == 0 else reversed(order):
                found[name].append(workers[name].go())
        for name, worker in workers.items():
            worker.close()
            self.note(stage, name, worker.facts, found[name])
        return found

    def start(self, kind: str, settings: dict[str, Any], name: str) -> Worker:
        """A process of either side, with a log of that name."""
        return start_side(kind, self.base | settings, self.options.peer_python, self.work / f"{name}.log")

    def note(self, stage: str, name: str, facts: dict[str, Any], results: list[dict[str, float]]) -> None:
        self.log.append({"stage": stage, "name": name, "facts": facts, "load": os.getloadavg()[0], "runs": results})
        print(f"  {stage}: {name}: {facts} {[round(r['seconds'], 3) for r in results]}", flush=True)

    def rates(self, what: str, found: dict[str, list], ours: str, theirs: str, target: float) -> None:
        """Add a row that compares images/s."""
        one, other = ([r["images"] / r["seconds"] for r in found[name]] for name in (ours, theirs))
        self.add(what, shown(one), shown(other), "images/s", median(one) / median(other), target)

    def add(self, what: str, ours: str, theirs: str, unit: str, ratio: float, target: float) -> None:
        row = Row(what, ours, theirs, unit, ratio, f"≥ {target:g}", ratio >= target)
        self.rows.append(row)
        print(f"{what}: {ours} against {theirs} {unit}: {ratio:.2f} ({row.target})", flush=True)


def median(values: list[float]) -> float:
    return statistics.median(values)


def shown(values: list[float]) -> str:
    middle = median(values)
    return f"{middle:.3g} ± {100 * (max(values) - min(values)) / middle / 2:.0f} %"


def write_yolo(folder: Path) -> None:
    """BCCD as YOLO files, for the peer."""
    if (folder / "done").exists():
        return
    config = load_data_config("bccd")
    for split in ("train", "val"):
        index, _ = build_index(config, split)
        images, labels = folder / "images" / split, folder / "labels" / split
        for path in (images, labels):
            path.mkdir(parents=True, exist_ok=True)
        for i in range(len(index)):
            source = Path(index.path(i))
            shutil.copy(source, images / source.name)
            (w, h), (classes, boxes) = index.sizes[i], index.labels(i)
            rows = [
                f"{c} {(x1 + x2) / 2 / w:.6f} {(y1 + y2) / 2 / h:.6f} {(x2 - x1) / w:.6f} {(y2 - y1) / h:.6f}\n"
                for c, (x1, y1, x2, y2) in zip(classes, boxes, strict=True)
            ]
            (labels / f"{source.stem}.txt").write_text("".join(rows))
    names = "{0: RBC, 1: WBC, 2: Platelets}"
    folder.with_suffix(".yaml").write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {names}\n")
    (folder / "done").touch()


# ------------------------------------------------------------------------------------------------ stages


def measure_step(bench: Bench) -> None:
    """Forward, loss, backward, clipping, optimizer and EMA on a resident batch, at equal GFLOPs."""
    steps = {"steps": 4}
    probe = bench.start("step", steps, "probe")
    flops = probe.facts["GFLOPs"]
    probe.close()
    best = {**steps, "threads": 2, "channels_last": True}
    found = bench.sides(
        "step",
        ("ours", "step", steps),
        ("peer default", "peer:step", {**steps, "threads": 1, "channels_last": False, "GFLOPs": flops}),
        ("peer best", "peer:step", {**best, "GFLOPs": flops}),
    )
    bench.rates(
        f"training step at {flops:.2f} GFLOPs, peer at its default (1 thread)", found, "ours", "peer default", 1.3
    )
    bench.rates(f"training step at {flops:.2f} GFLOPs, peer at its best legal setting", found, "ours", "peer best", 1.3)
    found = bench.sides("net", ("our loop", "peer:their_net_in_our_loop", steps), ("their loop", "peer:step", {**best}))
    bench.rates("YOLOv8n in our loop and in its own", found, "our loop", "their loop", 1.1)


def measure_share(bench: Bench) -> None:
    """The loop with its loader beside forward and backward alone."""
    steps = {"steps": 6}
    found = bench.sides(
        "share",
        ("loop", "step", {**steps, "resident": False}),
        ("bare", "bare", steps),
    )
    bench.rates("our whole loop beside bare forward and backward", found, "loop", "bare", 0.8)


def measure_loader(bench: Bench) -> None:
    """Samples of one process from each cache; cold, batches of two workers, too: do both of them decode an image?"""
    for size in (320, 640):
        for cache, workers in (("cold", 0), ("cold", 2), ("ram", 0), ("disk", 0)):
            settings = {"size": size, "cache": cache, "workers": workers}
            who = f"{workers} workers" if workers else "one process"
            found = bench.sides(
                f"loader-{size}-{cache}-{workers}", ("ours", "loader", settings), ("peer", "peer:loader", settings)
            )
            bench.rates(f"loader, {size} px, {cache}, {who}", found, "ours", "peer", 3)


def measure_post(bench: Bench) -> None:
    """Detections from the raw predictions of an untrained net, of one after 2 epochs and after 8, on the test set."""
    raw = bench.work / "raw.pt"
    if not raw.exists():
        command = [sys.executable, "train.py", "--data", "bccd", "--img", "320", "--epochs", "8", "--noplots"]
        command += ["--save-period", "2", "--project", str(bench.work / "runs"), "--name", "regimes", "--exist-ok"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([sys.executable, HERE / "raw.py", bench.work / "runs/regimes/weights", raw], check=True)
    for regime in ("untrained", "mid", "trained"):
        settings = {"raw": str(raw), "regime": regime, "threads": 2}
        found = bench.sides(
            f"post-{regime}",
            ("ours", "post", {**settings, "nms": True}),
            ("NMS-free", "post", {**settings, "nms": False}),
            ("peer", "peer:post", settings),
        )
        bench.rates(f"NMS at 0.001, {regime}", found, "ours", "peer", 5)
        bench.rates(f"NMS-free beside their NMS, {regime}", found, "NMS-free", "peer", 5)


def measure_loss(bench: Bench) -> None:
    for nc in (3, 80):
        for boxes in (5, 30, 200):
            settings = {"size": 640, "nc": nc, "boxes": boxes, "threads": 2}
            found = bench.sides(
                f"loss-{nc}-{boxes}",
                ("ours", "loss", settings),
                ("v8", "peer:loss", {**settings, "net": "yolov8n"}),
                ("v26", "peer:loss", {**settings, "net": "yolo26n"}),
            )
            bench.rates(f"loss, nc {nc}, {boxes} boxes: ours (two branches), YOLOv8's (one)", found, "ours", "v8", 2)
            bench.rates(f"loss, nc {nc}, {boxes} boxes: ours, YOLO26's (two, no DFL)", found, "ours", "v26", 2)


def measure_start(bench: Bench) -> None:
    """From the command to the end of the first step, everything cached by a start before."""
    took: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(bench.runs + 1):  # the first fills the caches
        for name in ("ours", "peer") if turn % 2 else ("peer", "ours"):
            quiet()
            kind = "first_step" if name == "ours" else "peer:first_step"
            begin = time.perf_counter()
            worker = bench.start(kind, {"threads": 2}, f"start-{name}")
            took[name].append(time.perf_counter() - begin)
            worker.close()
    for name, values in took.items():
        bench.note("start", name, {}, [{"seconds": value} for value in values])
    one, other = took["ours"][1:], took["peer"][1:]
    bench.add("second start, to the first step", shown(one), shown(other), "s", median(other) / median(one), 1 / 0.6)


MEASURE = {"step": measure_step, "share": measure_share, "loader": measure_loader, "post": measure_post}
MEASURE |= {"loss": measure_loss, "start": measure_start, "map": measure_map}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True, help="the Python of an environment that has Ultralytics")
    parser.add_argument("--quick", action="store_true", help="3 turns instead of 7; mAP of one net, 8 epochs, one seed")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--nets", nargs="+", default=["yolov8n", "yolo11n", "yolo26n"], help="whose mAP is compared")
    parser.add_argument("--epochs", type=int, default=40, help="of each training that is compared by mAP")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--validated", type=int, default=1, help="the first so many seeds validate in the loop")
    parser.add_argument("--work", default="benchmarks/work", help="where data, caches and logs go")
    options = parser.parse_args()
    if options.quick:
        options.nets, options.epochs, options.seeds, options.validated = ["yolo11n"], 8, [0], 0
    bench = Bench(options)
    write_yolo(bench.work / "bccd")
    peer = subprocess.run(
        [options.peer_python, "-c", "import torch, ultralytics as u; print(torch.__version__, u.__version__)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    head = f"torch {torch.__version__}, peer: Ultralytics {peer[-1]} on torch {peer[-2]}; {platform.processor()} "
    head += f"{os.cpu_count()} cores; {bench.runs} turns; {time.strftime('%Y-%m-%d')}"
    print(head, flush=True)
    for stage in options.stages:
        MEASURE[stage](bench)
    lines = ["| what | ours | peer | | ratio | target | |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in bench.rows:
        cells = (row.what, row.ours, row.theirs, row.unit, f"{row.ratio:.2f}", row.target, "" if row.met else "missed")
        lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join([head, "", *lines])
    print("\n" + text)
    (bench.work / "peers.md").write_text(text + "\n")
    (bench.work / "peers.json").write_text(json.dumps(bench.log, indent=1))


if __name__ == "__main__":
    main()
