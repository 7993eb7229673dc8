"""Do other hyper-parameters learn faster or better? Whole trainings on data sets that are not the one that is reported.

    python benchmarks/tune.py --sets bccd-tune shapes --epochs 20 --seeds 0 1 --variants warmup_epochs=1 ema_decay=0.99

Two trainings at a time, each with one thread. Every variant has the seeds of the base, which is the defaults and
what `--base` says, so that differences are taken seed by seed. A training that lies in the work folder is not done
again.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

Curve = list[tuple[float, float]]  # of every epoch: seconds of training until its end, mAP50-95

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {"bccd-tune": ["--img", "320"]}  # of data sets for which the size from the data is not the one that is meant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["bccd-tune", "shapes"], help="data yamls")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--variants", nargs="+", default=[], help="each KEY=VALUE, or several joined by commas")
    parser.add_argument("--base", default="", help="what holds in all of them where they don't say otherwise")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each with one thread")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/work/tune"), help="folder of the trainings")
    options = parser.parse_args()
    variants = ["", *options.variants]
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [(d, v, s) for d in options.sets for s in options.seeds for v in variants]
        curves = dict(zip(jobs, pool.map(lambda job: train(options, *job), jobs), strict=True))
    for data in options.sets:
        print(f"\n{data}, {options.epochs} epochs, seeds {' '.join(map(str, options.seeds))}\n")
        print("| variant | mAP50-95 | difference | s to 0.9 of the base's mAP50-95 | ratio | s in all |")
        print("| --- | --- | --- | --- | --- | --- |")
        for variant in variants:
            print(row(variant, *([curves[data, v, s] for s in options.seeds] for v in (variant, ""))))


def train(options: argparse.Namespace, data: str, variant: str, seed: int) -> Curve:
    """Train, unless that was done before."""
    keys = dict(text.split("=", 1) for text in f"{options.base},{variant}".split(",") if text)
    settings = [f"{key}={value}" for key, value in keys.items()]
    name = "-".join([data, str(options.epochs), str(seed), *settings])
    results = options.work / name / "results.csv"
    if not results.exists() or len(read(results)) < options.epochs:
        command = [sys.executable, "train.py", "--data", data, "--epochs", str(options.epochs), "--seed", str(seed)]
        command += [
            "--project",
            str(options.work.resolve()),
            "--name",
            name,
            "--exist-ok",
            "--noplots",
            "--workers",
            "0",
        ]
        command += OPTIONS.get(data, []) + (["--set", *settings] if settings else [])
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=one_thread)
        print(f"{name}: {read(results)[-1][1]:.4f}", file=sys.stderr, flush=True)
    return read(results)


def read(results: Path) -> Curve:
    with results.open(newline="") as file:
        lines = csv.DictReader(file, skipinitialspace=True)
        return [(float(line["time"]), float(line["metrics/mAP50-95"])) for line in lines]


def row(variant: str, curves: list[Curve], base: list[Curve]) -> str:
    """A row: means over the seeds; differences and ratios are taken seed by seed, ± their standard error."""
    apart = [mine[-1][1] - other[-1][1] for mine, other in zip(curves, base, strict=True)]
    goals = [0.9 * curve[-1][1] for curve in base]
    seconds, others = ([seconds_to(*pair) for pair in zip(some, goals, strict=True)] for some in (curves, base))
    ratios = [a / b for a, b in zip(seconds, others, strict=True)]
    cells = [f"`{variant}`" if variant else "the base"]
    cells += [f"{mean(curve[-1][1] for curve in curves):.4f}", f"{mean(apart):+.4f}{error(apart)}" if variant else ""]
    cells += [f"{mean(seconds):.0f}", f"{mean(ratios):.2f}{error(ratios, 2)}" if variant else ""]
    return f"| {' | '.join([*cells, f'{mean(curve[-1][0] for curve in curves):.0f}'])} |"


def seconds_to(curve: Curve, goal: float) -> float:
    """Seconds until a mAP was reached, on straight lines between the epochs; infinity if it was not."""
    before = (0.0, 0.0)
    for seconds, value in curve:
        if value >= goal:
            share = (goal - before[1]) / (value - before[1])
            return before[0] + share * (seconds - before[0])
        before = (seconds, value)
    return float("inf")


def error(values: list[float], digits: int = 4) -> str:
    return f" ± {stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 and max(values) < 1e9 else ""


if __name__ == "__main__":
    main()
