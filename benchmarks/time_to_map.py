"""Seconds to a mAP, ours and theirs: the stage `map` of `peers.py`.

Every training keeps the weights of each epoch and the seconds at which they were there. Only then are they scored, all
by one COCO evaluator. A training that lies in the work folder is not done again, so the stage can be done in pieces.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from faster_coco_eval import COCO, COCOeval_faster

from benchmarks.worker import quiet

HERE = Path(__file__).resolve().parent


class Training(NamedTuple):
    """A whole training. clocks: seconds until the weights of epoch 1, 2, … were there, validations `in` the loop (if
    there were any) and `out` of it; scores: epoch → mAP50-95."""

    side: str
    seed: int
    folder: Path
    clocks: dict[str, list[float]]
    scores: dict[int, float]

    def best(self, clock: str) -> tuple[float, float]:
        """The highest mAP, and the seconds until it was reached."""
        epoch = max(self.scores, key=lambda e: self.scores[e])
        return self.scores[epoch], self.clocks[clock][epoch - 1]

    def reaches(self, wanted: float, clock: str) -> float:
        """Seconds until the first of the scored epochs that is at least as good; infinity if none is."""
        epochs = (epoch for epoch in sorted(self.scores) if self.scores[epoch] >= wanted)
        return next((self.clocks[clock][epoch - 1] for epoch in epochs), float("inf"))


def measure_map(bench: Any) -> None:
    """Ours reaches the best mAP of the other's whole training in a third of the time that took, and ends above."""
    options = bench.options
    found: dict[str, list[Training]] = {}
    for number, seed in enumerate(options.seeds):
        for side in ("ours", *options.nets):
            found.setdefault(side, []).append(train(bench, side, seed, number < options.validated))
    truth = bench.work / "trainings/truth.json"
    for training in [one for side in found.values() for one in side]:
        score(bench, training, truth)
    write(bench.work / "time-to-map.csv", [one for side in found.values() for one in side])
    for net in options.nets:
        for clock, count in (("in", options.validated), ("out", len(options.seeds))):
            if count:
                compare(bench, net, clock, found["ours"][:count], found[net][:count])


def compare(bench: Any, net: str, clock: str, ours: list[Training], theirs: list[Training]) -> None:
    """Two rows: seconds to the best mAP of theirs, seed by seed, and the best mAP of whole trainings."""
    bests = [training.best(clock) for training in theirs]
    one = [mine.reaches(best, clock) for mine, (best, _) in zip(ours, bests, strict=True)]
    other = [seconds for _, seconds in bests]
    where = "in" if clock == "in" else "out of"
    what = f"until {net}'s best mAP50-95 of {bench.options.epochs} epochs, validation {where} the loop"
    bench.add(what, shown(one, 0), shown(other, 0), "s", min(b / a for a, b in zip(one, other, strict=True)), 3)
    one, other = [training.best(clock)[0] for training in ours], [best for best, _ in bests]
    ratio = min(a / b for a, b in zip(one, other, strict=True))
    bench.add(f"best mAP50-95 of these trainings ({net})", shown(one, 4), shown(other, 4), "", ratio, 1)


def shown(values: list[float], digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)


def train(bench: Any, side: str, seed: int, validate: bool) -> Training:
    """Train, unless that was done before."""
    folder = bench.work / f"trainings/{side}-{seed}-{'in' if validate else 'out'}-{bench.options.epochs}"
    known = folder / "seconds.json"
    if not known.exists():
        quiet()
        clocks = (train_ours if side == "ours" else train_theirs)(bench, side, seed, validate, folder)
        known.write_text(json.dumps(clocks))
        bench.note("map", f"{side} seed {seed}", {"validate": validate, **clocks}, [{"seconds": clocks["out"][-1]}])
    return Training(side, seed, folder, json.loads(known.read_text()), {})


def train_theirs(bench: Any, net: str, seed: int, validate: bool, folder: Path) -> dict[str, list[float]]:
    settings = {"net": net, "seed": seed, "threads": 2, "validate": validate, "folder": str(folder)}
    worker = bench.start("peer:train_whole", {**settings, "epochs": bench.options.epochs}, "map-peer")
    answer = worker.go()
    worker.close()
    return {clock: answer[clock if validate else "out"] for clock in ("in", "out")}


def train_ours(bench: Any, _: str, seed: int, validate: bool, folder: Path) -> dict[str, list[float]]:
    """Seconds from the start of the command until the files of the weights were written.

    The clock without validation goes on, from the first epoch's file (validation included), by the seconds in
    `results.csv`, which counts steps only.
    """
    root, epochs = HERE.parent, bench.options.epochs
    command = [sys.executable, "train.py", "--data", "bccd", "--img", "320", "--batch", "16", "--epochs", str(epochs)]
    command += ["--seed", str(seed), "--project", str(folder.parent), "--name", folder.name, "--exist-ok", "--noplots"]
    command += ["--save-period", "1", *["--noval"] * (not validate)]
    begin = time.time()
    with (bench.work / "map-ours.log").open("w") as log:
        subprocess.run(command, cwd=root, check=True, stdout=log)
    kept = [folder / f"weights/epoch{epoch}.pt" for epoch in range(1, epochs + 1)]
    seconds = [path.stat().st_mtime - begin for path in kept]
    for path in kept:
        os.replace(path, folder / path.name)
    if not validate:
        return {"in": seconds, "out": seconds}
    with (folder / "results.csv").open(newline="") as file:
        steps = [float(row["time"]) for row in csv.DictReader(file, skipinitialspace=True)]
    return {"in": seconds, "out": [seconds[0] + step - steps[0] for step in steps]}


def score(bench: Any, training: Training, truth: Path) -> None:
    """Score every epoch of ours; of theirs every fourth, then the three before and after the best of them."""
    count, known = bench.options.epochs, training.folder / "scores.json"
    if known.exists():
        training.scores.update({int(epoch): value for epoch, value in json.loads(known.read_text()).items()})
        return
    mine = training.side == "ours"
    score_epochs(bench, training, truth, list(range(1, count + 1)) if mine else [*range(4, count, 4), count])
    if not mine:
        best = max(training.scores, key=lambda e: training.scores[e])
        score_epochs(bench, training, truth, list(range(max(best - 3, 1), min(best + 3, count) + 1)))
    known.write_text(json.dumps(training.scores))


def score_epochs(bench: Any, training: Training, truth: Path, epochs: list[int]) -> None:
    """Add the scores of some epochs, from the detections that each side's own validation writes."""
    mine, wanted = training.side == "ours", [epoch for epoch in epochs if epoch not in training.scores]
    settings = {"folder": str(training.folder), "epochs": wanted, "threads": 2}
    worker = bench.start("detections" if mine else "peer:detections", settings, "map-detections")
    worker.go()
    worker.close()
    if mine:
        os.replace(training.folder / "truth.json", truth)
    for epoch in wanted:
        training.scores[epoch] = coco_map(truth, training.folder / f"epoch{epoch}.json")


def coco_map(truth: Path, detections: Path) -> float:
    """mAP50-95 of COCO detections; images may go by their file's stem, classes from 1."""
    known, rows = COCO(json.loads(truth.read_text())), json.loads(detections.read_text())
    ids = {Path(image["file_name"]).stem: image["id"] for image in known.dataset["images"]}
    if rows and rows[0]["image_id"] in ids:
        first = min(known.getCatIds())
        rows = [{**r, "image_id": ids[r["image_id"]], "category_id": r["category_id"] - 1 + first} for r in rows]
    if not rows:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        scored = COCOeval_faster(known, known.loadRes(rows), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return float(scored.stats[0])


def write(path: Path, trainings: list[Training]) -> None:
    """A row an epoch that was scored."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["side", "seed", "epoch", "seconds with validation", "seconds without", "mAP50-95"])
        for one in trainings:
            for epoch, value in sorted(one.scores.items()):
                seconds = [f"{one.clocks[clock][epoch - 1]:.1f}" for clock in ("in", "out")]
                seconds[0] = "" if one.clocks["in"] == one.clocks["out"] else seconds[0]
                rows.writerow([one.side, one.seed, epoch, *seconds, f"{value:.4f}"])
