"""Draw mAP against seconds of a BCCD run beside the curves of other trainers.

`python benchmarks/bccd_curve.py runs/train/exp/results.csv benchmarks/bccd.png [peers.csv]`, where peers.csv has the
columns peer, epoch, seconds, mAP50, mAP50-95.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

METRICS = ("mAP50", "mAP50-95")


def read_curves(results: Path, peers: Path | None) -> dict[str, list[dict[str, str]]]:
    """Return rows with `seconds` and both metrics, by trainer."""
    curves: dict[str, list[dict[str, str]]] = defaultdict(list)
    with results.open() as file:
        for row in csv.DictReader(file):
            if row["metrics/mAP50"]:
                curves["lockstep"].append({"seconds": row["time"], **{m: row[f"metrics/{m}"] for m in METRICS}})
    if peers is not None:
        with peers.open() as file:
            for row in csv.DictReader(file):
                if row["seconds"]:  # not every trainer writes its own clock
                    curves[row["peer"]].append(row)
    return curves


def main() -> None:
    results, target = Path(sys.argv[1]), Path(sys.argv[2])
    curves = read_curves(results, Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    figure = Figure(figsize=(11, 4.5), dpi=110, layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), METRICS, strict=True):
        for name, rows in curves.items():
            seconds, values = ([float(row[key]) for row in rows] for key in ("seconds", metric))
            axes.plot(seconds, values, lw=2.2 if name == "lockstep" else 1.2, label=f"{name}: {values[-1]:.3f}")
        axes.set(xlabel="seconds of training", ylabel=metric, ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    figure.savefig(target)


if __name__ == "__main__":
    main()
