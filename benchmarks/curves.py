"""Draw mAP against seconds, as `peers.py --stages map` measured them.

`python benchmarks/curves.py benchmarks/time-to-map.csv benchmarks/time-to-map.png`: a line a training, best scores in
the legend.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

CLOCK, SCORE = "seconds without", "mAP50-95"


def main() -> None:
    curves: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    with Path(sys.argv[1]).open(newline="") as file:
        for row in csv.DictReader(file):
            curves[row["side"]][row["seed"]].append((float(row[CLOCK]), float(row[SCORE])))
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, (side, seeds) in enumerate(curves.items()):
        best = [f"{max(score for _, score in points):.3f}" for points in seeds.values()]
        for points in seeds.values():
            axes.plot(*zip(*points, strict=True), color=f"C{number}", lw=1.4, marker=".", ms=4)
        name = "Lockstep, yolo-n" if side == "ours" else side
        axes.lines[-1].set_label(f"{name}: best {' / '.join(best)}")
    axes.set(xlabel="seconds from the start, validation not counted", ylabel=SCORE, xlim=0, ylim=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(sys.argv[2])


if __name__ == "__main__":
    main()
