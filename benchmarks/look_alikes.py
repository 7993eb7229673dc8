"""Time the search for look-alikes: `python benchmarks/look_alikes.py [COUNT …]` (default 10000 and 100000 images)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.similar import Looks, nearest  # noqa: E402


def random_looks(count: int) -> Looks:
    """Images of noise: none looks like another."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    looks = random.integers(-127, 128, (count, 256), dtype=np.int8)
    return Looks(hashes, looks, np.zeros(count, bool), {})


def main() -> None:
    for count in map(int, sys.argv[1:] or ("10000", "100000")):
        looks = random_looks(count)
        begin = time.perf_counter()
        nearest(looks)
        seconds = time.perf_counter() - begin
        print(f"{count} images against each other: {seconds:.2f} s, {1000 * seconds / count:.4f} ms an image")


if __name__ == "__main__":
    main()
